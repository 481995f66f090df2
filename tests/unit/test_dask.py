"""What `become_dask` decides without Dask."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ipython1.kernel.client import dask
from ipython1.kernel.error import LaunchError
from ipython1.kernel.wire.runners import call_in


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets the address that this host has towards the controller."""

    def be(address: str) -> None:
        monkeypatch.setattr(dask, "outward", lambda *towards: address)

    return be


@pytest.mark.parametrize("address", ["127.0.0.1", "10.0.0.1"])
def test_on_one_host_all_is_on_the_loopback_address(here: Callable[[str], None], address: str) -> None:
    here(address)
    assert dask._hosts({0: address, 1: address}, "10.0.0.1") == {0: "127.0.0.1", 1: "127.0.0.1"}


def test_on_several_hosts_each_has_its_own_address(here: Callable[[str], None]) -> None:
    here("10.0.0.1")
    own = {0: "10.0.0.1", 1: "10.0.0.2", 4: "10.0.0.2"}
    assert dask._hosts(own, "10.0.0.1") == own


def test_a_client_that_is_elsewhere(here: Callable[[str], None]) -> None:
    here("10.0.0.9")
    assert dask._hosts({0: "10.0.0.1"}, "10.0.0.1") == {0: "10.0.0.1"}


@pytest.mark.parametrize("address", ["", "127.0.0.1"])
def test_an_engine_that_nobody_could_reach(here: Callable[[str], None], address: str) -> None:
    here("10.0.0.1")
    with pytest.raises(LaunchError, match="at which others can reach engine 3; see ipcluster start --loc"):
        dask._hosts({0: "10.0.0.1", 3: address}, "10.0.0.1")


def test_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    nothing: Any = None
    for call in (lambda: dask.become_dask(nothing, None, False, {}), lambda: dask.stop_dask(nothing, None)):
        with pytest.raises(ImportError, match=r"needs distributed: pip install 'ipython1\[dask\]'"):
            call()


def test_without_distributed_on_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, dask.ENGINE_SIDE, raising=False)
    with pytest.raises(ImportError, match=r"needs distributed: pip install 'ipython1\[dask\]'"):
        call_in(dask.ENGINE_SIDE, "look", "127.0.0.1")


def test_nothing_of_dask_is_imported_before_it_is_wanted() -> None:
    code = (
        "import sys; from ipython1.kernel import client; import ipython1.kernel.engine.process; "
        "client.MultiEngineClient.become_dask; print({'dask', 'distributed', 'tornado'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")
