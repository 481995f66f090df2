from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ipython1.kernel.client import completions
from ipython1.kernel.client.completions import QuickAnswers, continuations, names, remote_code
from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.testing import MemoryCluster


@pytest.mark.parametrize(
    ("text", "everything", "expected"),
    [
        ("%px a.b", False, "a.b"),
        ("x = 1\n  %px  a.b", False, "a.b"),
        ("%%px --targets 0\nx\na.b", False, "x\na.b"),
        ("%%px\n", False, ""),
        ("%%px --tar", False, None),
        ("%pxconfig --ta", False, None),
        ("%%pxx\na", False, None),
        ("a.b", False, None),
        ("a.b", True, "a.b"),
        ("%ti", True, None),
        ("!ls", True, None),
    ],
)
def test_what_runs_on_engines(text: str, everything: bool, expected: str | None) -> None:
    assert remote_code(text, "", everything) == expected


def test_a_suffix_of_the_magics() -> None:
    assert remote_code("%px_2 a", "_2", False) == "a"
    assert remote_code("%%px_2\na", "_2", False) == "a"
    assert remote_code("%px a", "_2", False) is None


class Pending:
    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.aborted = False

    def exception(self, timeout: float) -> None:
        assert timeout == completions.PATIENCE
        if self.answer is None:
            raise TimeoutError

    def value_of(self, target: int, default: Any) -> Any:
        return self.answer

    def abort(self) -> None:
        self.aborted = True


def test_who_is_busy_is_left_alone() -> None:
    now = 0.0
    sent: list[Any] = []

    def answering(*answers: Any) -> Any:
        pendings = iter(map(Pending, answers))

        def send() -> Any:
            sent.append(next(pendings))
            return sent[-1]

        return send

    quick = QuickAnswers(lambda: now)
    assert quick.get("keys", 0, answering(["a"]), []) == ["a"]
    assert quick.get("keys", 0, answering(), []) == ["a"], "asked a moment ago"
    now = 1.0
    assert quick.get("keys", 0, answering(None), []) == ["a"], "no answer in time"
    assert sent[-1].aborted
    now = 2.9
    assert quick.get("keys", 0, answering(), []) == ["a"]
    assert quick.get("x.", 0, answering(), []) == [], "busy, whatever one asks"
    assert quick.get("keys", 1, answering(["b"]), []) == ["b"], "another engine is not"
    now = 3.1
    assert quick.get("keys", 0, answering(["c"]), []) == ["c"]
    for number in range(1000):
        quick.get(number, 0, answering(number), None)
    assert len(quick._known) <= completions.KEPT


@pytest.fixture
def mec() -> Iterator[MultiEngineClient]:
    with MemoryCluster(2) as cluster:
        yield cluster.client()


def test_names_of_the_first_target(mec: MultiEngineClient) -> None:
    mec.push({"alpha": 1}, targets=0)
    mec.push({"beta": 1}, targets=1)
    assert mec._ipython_key_completions_() == ["alpha"]
    assert mec[1]._ipython_key_completions_() == ["beta"]


def test_continuations(mec: MultiEngineClient) -> None:
    mec.push({"alpha": "text"})
    fragment, texts = continuations(mec, None, "x = alp")
    assert (fragment, texts) == ("alp", ["alpha"])
    fragment, texts = continuations(mec, 1, "alpha.splitl")
    assert "alpha.splitl".removesuffix(fragment) + texts[0] == "alpha.splitlines"
    assert continuations(mec, None, "no_such.x") == ("", [])
    mec.execute("class Bad:\n    def __dir__(self): raise KeyboardInterrupt\nbad = Bad()")
    assert continuations(mec, None, "bad.x")[1] == []
    assert mec.execute("1")[0]["number"] == 2, "a completion has no number"


def test_nothing_where_there_is_nothing() -> None:
    with MemoryCluster(0) as cluster:
        mec = cluster.client()
        assert names(mec) == []
        assert continuations(mec, None, "x") == ("", [])
        mec.close()
        assert names(mec) == []


def test_the_matcher() -> None:
    matcher = completions.make_matcher("", lambda: False, lambda code: (code[-2:], ["alpha"]))
    context = SimpleNamespace(full_text="%%px\nx = al\nmore", cursor_line=1, text_until_cursor="x = al")
    found = matcher(context)
    assert [completion.text for completion in found["completions"]] == ["alpha"]
    assert (found["matched_fragment"], found["suppress"]) == ("al", True)
    context.full_text = "x = al"
    context.cursor_line = 0
    assert matcher(context) == {"completions": [], "matched_fragment": "", "suppress": False}
