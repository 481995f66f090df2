"""Progress bars: where they show, what they say, and that they end."""

from __future__ import annotations

import contextlib
import io
import json
import threading
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from ipython1.kernel.client import progress
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.progress import Bar, ItemBar, Report, grouped_reports

from .test_pending import FakeCore, error, event, make, ok


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> FakeCore:
    monkeypatch.setattr(progress, "REDRAW", 0.0)
    return FakeCore()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bars go to stderr, whatever that is."""
    monkeypatch.setattr(progress, "place", lambda: "terminal")


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, str], bool]]:
    """What is published in a notebook, and whether in the place of what was there."""
    published: list[tuple[dict[str, str], bool]] = []
    names = set()

    def publish(bundle: dict[str, str], *, transient: dict[str, str], update: bool) -> None:
        names.add(transient["display_id"])
        assert len(names) == 1
        published.append((bundle, update))

    monkeypatch.setattr(progress, "place", lambda: "notebook")
    monkeypatch.setattr("IPython.display.publish_display_data", publish)
    return published


def tell(
    pending: PendingResult, engine: int, index: int, done: Any, total: Any = None, label: str = ""
) -> None:
    event(pending, engine, index, "progress", json.dumps({"done": done, "total": total, "label": label}))


# -- where they show ------------------------------------------------------------------------


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    shell = SimpleNamespace(kernel=None)
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert progress.place() == ""
    monkeypatch.setattr(screen, "isatty", lambda: True)
    assert progress.place() == "terminal"
    shell.kernel = object()
    assert progress.place() == "notebook"
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert progress.place() == ""


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_program_without_stderr(monkeypatch: pytest.MonkeyPatch, stream: Any) -> None:
    if stream:
        stream = io.StringIO()
        stream.close()
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        assert progress.place() == ""


def test_elsewhere_nothing_shows(core: FakeCore, capfd: pytest.CaptureFixture[str]) -> None:
    pending = make(core)
    core.steps += [lambda: ok(pending, 0), lambda: ok(pending, 1)]
    pending.wait_interactive()
    with Bar("engines", 4) as bar:
        bar.show(1, "1 of 4")
        bar.clear()
    assert capfd.readouterr() == ("", "")


def test_a_blocking_call_shows_a_bar_only_after_a_while(
    core: FakeCore, terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for after, shown in ((60.0, False), (0.0, True)):
        monkeypatch.setattr(progress, "BAR_AFTER", after)
        pending = make(core)
        core.steps += [lambda: ok(pending, 0), lambda: ok(pending, 1)]  # noqa: B023
        progress.wait(pending)
        assert ("execute" in capsys.readouterr().err) is shown


def test_a_thread_of_the_program_shows_none(
    core: FakeCore, terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(progress, "BAR_AFTER", 0.0)
    pending = make(core)
    core.steps += [lambda: ok(pending, 0), lambda: ok(pending, 1)]
    thread = threading.Thread(target=progress.wait, args=(pending,))
    thread.start()
    thread.join()
    assert pending.done()
    assert capsys.readouterr().err == ""


# -- on a terminal --------------------------------------------------------------------------


def test_engines_that_finish_and_one_that_tells(core: FakeCore, terminal: None, capsys: Any) -> None:
    pending = make(core)
    core.steps += [
        lambda: tell(pending, 0, 0, 1, 4, "fit {x}"),
        lambda: ok(pending, 1),
        lambda: event(pending, 0, 1, "stdout", "x\n"),
        lambda: error(pending, 0),
    ]
    pending.wait_interactive()
    bar = capsys.readouterr().err
    assert "execute  12%|" in bar
    assert "0 of 2 engines" in bar
    assert "[0] 25% fit {x}" in bar
    assert "execute  62%|" in bar
    last = bar.rstrip("\n").rpartition("\r")[2]
    assert last.startswith("execute 100%|")
    assert "2 of 2 engines, 1 failed" in last
    assert bar.endswith("\n")  # it stays


def test_a_bar_beside_the_stream_goes(core: FakeCore, terminal: None, capsys: Any) -> None:
    pending = make(core, (0,))
    core.steps += [lambda: event(pending, 0, 0, "stdout", "x"), lambda: ok(pending, 0)]
    pending.stream(progress_after=0.0)
    out, err = capsys.readouterr()
    assert out == "[stdout:0] x\n"
    assert "1 of 1 engine, " in err
    assert err.endswith("\r")
    assert err.rstrip("\r").rpartition("\r")[2].strip() == ""


def test_bytes_on_their_way_come_first(core: FakeCore, terminal: None, capsys: Any) -> None:
    pending = make(core, method="push")
    sent = iter([(5_000_000, 40_000_000), (20_000_000, 40_000_000)])
    core.sent = lambda id: next(sent, (40_000_000, 40_000_000))  # type: ignore[method-assign]
    core.steps += [lambda: ok(pending, 0), lambda: ok(pending, 1)]
    pending.wait_interactive()
    bar = capsys.readouterr().err
    assert "5.0 MB of 40.0 MB sent" in bar
    assert "push  50%|" in bar
    assert "2 of 2 engines" in bar
    assert bar.index("MB sent") < bar.index("engines")


def test_a_bar_ends_with_an_error(core: FakeCore, terminal: None, capsys: Any) -> None:
    pending = make(core)
    core.steps.append(lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pending.wait_interactive()
    assert capsys.readouterr().err.endswith("\n")
    from tqdm.std import tqdm

    assert not list(getattr(tqdm, "_instances", ()))


# -- in a notebook --------------------------------------------------------------------------


def test_a_notebook_has_one_place_that_changes(core: FakeCore, notebook: list, capfd: Any) -> None:
    pending = make(core)
    core.steps += [
        lambda: tell(pending, 0, 0, 1, 4, "<fit>"),
        lambda: event(pending, 1, 0, "publish", ""),
        lambda: ok(pending, 0),
        lambda: ok(pending, 1, events=1),
    ]
    pending.wait_interactive()
    updates = [update for _, update in notebook]
    assert updates == [False] + [True] * (len(notebook) - 1)
    markup = [bundle["text/html"] for bundle, _ in notebook]
    assert '<progress value="0.25" max="2"' in markup[0]
    assert '<code>[0]</code> <progress value="0.25" max="1"' in markup[0]
    assert "25% &lt;fit&gt;" in markup[0]
    assert "2 of 2 engines, 1 published" in markup[-1]
    assert "fit" not in markup[-1]
    assert notebook[-1][0]["text/plain"].startswith("execute: 2 of 2 engines, 1 published, ")
    assert capfd.readouterr() == ("", "")


def test_what_stands_in_the_output_of_a_notebook() -> None:
    pending = make(FakeCore(), range(20))
    for slot in range(20):
        event(pending, slot, 0, "progress", json.dumps({"done": slot, "total": 20, "label": ""}))
    markup = pending._repr_html_()
    assert markup.count("<progress") == 1 + progress.NOTEBOOK_REPORTS
    assert "… 12 more" in markup
    assert "0 of 20 finished" in markup
    assert pending.id in markup


# -- what engines tell ----------------------------------------------------------------------


def test_equal_reports_stand_together() -> None:
    told = {
        3: {"done": 7, "total": None, "label": "load"},
        0: {"done": 1, "total": 3, "label": "fit"},
        1: {"done": 33, "total": 100, "label": "fit"},
        2: {"done": 5, "total": 4},
    }
    assert grouped_reports(told) == [
        Report("[0-1]", 0.33, "33% fit"),
        Report("[2]", 1.0, "100%"),
        Report("[3]", None, "7 load"),
    ]


@pytest.mark.parametrize(
    ("done", "total"), [(float("nan"), 3), (1, 0), (-1, 5), (1, -5), (float("inf"), float("inf"))]
)
def test_reports_that_make_no_sense(done: float, total: float) -> None:
    [report] = grouped_reports({0: {"done": done, "total": total, "label": ""}})
    assert report.share is None or 0 <= report.share <= 1


def test_a_total_that_is_not_known(terminal: None, capsys: Any) -> None:
    with contextlib.closing(Bar("imap", None, leave=True)) as bar:
        bar.show(3, "3 done")
    assert capsys.readouterr().err.strip().startswith("imap 3 done, ")


def test_items_of_a_map_are_counted_while_one_waits(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    core, timeouts = FakeCore(), []
    future: Future[None] = Future()

    def wait(waited: Future[None], timeout: float | None) -> None:
        timeouts.append(timeout)
        if len(timeouts) == 3:
            future.set_result(None)
        else:
            raise TimeoutError

    monkeypatch.setattr(core, "wait", wait)
    with ItemBar("imap", core) as bar:
        bar.items = 17
        bar.wait(future)
        bar.wait(future)  # is there: no wait
    assert timeouts == [progress.BAR_AFTER, progress.REDRAW, progress.REDRAW]
    shown = capsys.readouterr().err
    assert "imap 17 so far" in shown
    assert shown.rstrip("\r").rpartition("\r")[2].strip() == ""
