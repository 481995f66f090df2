"""How a run of tests is spread over workers."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from tests import workers


class Config:
    """Of a pytest that was called with `args` and `options`."""

    def __init__(self, args: list[str], **options: Any) -> None:
        self.args, self.options = args, options

    def getini(self, name: str) -> list[str]:
        return {"testpaths": ["tests"]}[name]

    def getoption(self, name: str) -> Any:
        assert name in workers.CHOICES
        return self.options.get(name, "" if name in ("keyword", "markexpr") else False)


@pytest.fixture
def cores(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    machine = SimpleNamespace(count=2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(machine.count)), raising=False)
    return machine


@pytest.mark.parametrize(("count", "number"), [(1, 0), (2, 2), (3, 3), (64, 4)])
def test_the_whole_suite_uses_the_cores(cores: SimpleNamespace, count: int, number: int) -> None:
    cores.count = count
    assert workers.pytest_xdist_auto_num_workers(Config(["tests"])) == number


@pytest.mark.parametrize(
    "config",
    [
        Config(["tests/unit/test_workers.py"]),
        Config(["tests"], keyword="workers"),
        Config(["tests"], markexpr="timeout"),
        Config(["tests"], lf=True),
        Config(["tests"], collectonly=True),
    ],
)
def test_a_part_of_it_waits_for_no_workers(cores: SimpleNamespace, config: Config) -> None:
    assert workers.pytest_xdist_auto_num_workers(config) == 0
