"""What ran where: the controller's record of it, and what a client makes of that."""

from __future__ import annotations

import itertools
import json
import tracemalloc
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel import client
from ipython1.kernel.client.timeline import Timeline as Seen
from ipython1.kernel.controller import timeline as module
from ipython1.kernel.controller.liveoutput import ALL_KEPT, TEXT_KEPT, LiveOutput
from ipython1.kernel.controller.queue import Command
from ipython1.kernel.controller.timeline import SHORT, SPAN, TOGETHER, Timeline
from ipython1.kernel.error import CompositeError
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire.records import End, Event, Result
from tests.unit.task_peers import TaskWorld


class Clock:
    """A wall clock."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def now() -> Clock:
    return Clock()


@pytest.fixture
def record(now: Clock) -> Timeline:
    return Timeline(now)


def rows(record: Timeline, *names: str) -> list[tuple[Any, ...]]:
    """Some fields of all spans."""
    return [tuple(span[SPAN.index(name)] for name in names) for span in record.spans(0)]


def run(
    record: Timeline, started: float, completed: float, label: str = "f", status: str = "ok", id: str = "c-1"
) -> None:
    """A command ran on engine 0."""
    command = Command(id, "execute", label, b"", queued=started)
    record.command(0, command, Result(id, 0, "execute", status, started, completed, 0, ()))


def end(index: int, started: float, completed: float, status: str = "ok") -> End:
    return (index, 1, status, started, completed, 0, ())


# -- spans ----------------------------------------------------------------------------


def test_a_command_is_a_span(record: Timeline) -> None:
    run(record, 990.0, 992.5, "step()", "error", "cafe-7")
    [span] = record.answer(0)["spans"]
    assert dict(zip(SPAN, span, strict=True)) == {
        "serial": 1,
        "engine": 0,
        "id": "cafe-7",
        "label": "step()",
        "kind": "command",
        "started": 990.0,
        "completed": 992.5,
        "busy": 2.5,
        "status": "error",
        "count": 1,
        "failed": 1,
    }


def test_what_never_ran_is_counted_but_no_span(record: Timeline) -> None:
    run(record, 0.0, 992.5, status="error")
    assert record.spans(0) == []
    assert (record.totals["commands"], record.totals["failed"]) == (1, 1)


def test_short_ones_of_one_label_share_a_span(record: Timeline) -> None:
    for i in range(100):
        run(record, 1000 + i * 0.002, 1000 + i * 0.002 + 0.001, status="error" if i == 50 else "ok")
    assert rows(record, "count", "failed", "status") == [(100, 1, "error")]
    [(started, completed, busy)] = rows(record, "started", "completed", "busy")
    assert (started, completed, busy) == pytest.approx((1000, 1000.199, 0.1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"label": "g"}, "another label"),
        ({"id": "d-1"}, "another client"),
        ({"started": 1000.2, "completed": 1000.201}, "a pause"),
        ({"completed": 1000.1}, "a long one"),
    ],
)
def test_others_do_not(record: Timeline, change: dict[str, Any], why: str) -> None:
    run(record, 1000.0, 1000.001)
    run(record, **{"started": 1000.002, "completed": 1000.003, **change})
    assert rows(record, "count") == [(1,), (1,)], why


def test_a_shared_span_ends(record: Timeline) -> None:
    for i in range(3000):
        run(record, 1000 + i * 0.001, 1000 + i * 0.001 + 0.0009)
    assert 3 <= len(record.spans(0)) <= 4
    assert all(completed - started <= TOGETHER for started, completed in rows(record, "started", "completed"))


def test_short_tasks_of_one_record_are_one_span(record: Timeline) -> None:
    record.tasks(2, "c-1", "map f", [end(i, 1000 + i * 0.001, 1000 + i * 0.001 + 0.0005) for i in range(50)])
    assert rows(record, "engine", "id", "kind", "count") == [(2, "c-1#0", "task", 50)]
    record.tasks(2, "c-1", "map f", [end(50, 1000.051, 1000.052, "error")])
    assert rows(record, "count", "failed") == [(51, 1)]


def test_long_tasks_are_spans_of_their_own(record: Timeline) -> None:
    record.tasks(
        0, "c-1", "", [end(3, 1000, 1001), end(4, 1001, 1002, "error"), end(5, 1002, 1003, "rejected")]
    )
    found = rows(record, "id", "label", "status", "failed")
    assert found == [
        ("c-1#3", "c-1#3", "ok", 0),
        ("c-1#4", "c-1#4", "error", 1),
        ("c-1#5", "c-1#5", "rejected", 0),
    ]


def test_a_death_ends_what_ran(record: Timeline, now: Clock) -> None:
    record.died(1, "step()", "command", 995.0)
    assert rows(record, "engine", "label", "started", "completed", "status") == [
        (1, "step()", 995.0, 1000.0, "died")
    ]


def test_spans_are_bounded_and_come_in_pages(now: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPANS_KEPT", 50)
    record = Timeline(now)
    for i in range(120):
        run(record, 1000.0 + i, 1000.5 + i)
    after, seen = 0, []
    while page := record.spans(after, 20):
        assert len(page) <= 20
        seen += [span[0] for span in page]
        after = seen[-1]
    assert seen == list(range(71, 121))
    assert record.spans(120) == record.spans(10**9) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.0005, 0.004, 0.02, 0.5]), st.booleans())))
def test_nothing_is_lost_by_sharing(works: list[tuple[int, float, bool]]) -> None:
    record, time = Timeline(lambda: 1000.0), 1000.0
    for i, (engine, length, failed) in enumerate(works):
        record.tasks(engine, "c-1", "f", [end(i, time, time + length, "error" if failed else "ok")])
        time += length
    spans = [dict(zip(SPAN, span, strict=True)) for span in record.spans(0)]
    assert sum(span["count"] for span in spans) == record.totals["tasks"] == len(works)
    assert sum(span["failed"] for span in spans) == record.totals["failed"]
    assert sum(span["busy"] for span in spans) == pytest.approx(sum(length for _, length, _ in works))
    for span in spans:
        assert span["count"] == 1 or span["busy"] < SHORT * span["count"]
        assert (span["status"] == "error") == (span["failed"] > 0)
    for engine in range(4):
        own = [span for span in spans if span["engine"] == engine]
        assert all(a["completed"] <= b["started"] + 1e-9 for a, b in itertools.pairwise(own))


def test_what_changed_is_what_is_new_and_what_grew(record: Timeline) -> None:
    run(record, 1000.0, 1000.001)
    run(record, 1000.002, 1000.003)
    assert record.grown() == [], "nobody had seen it"
    last = record.last
    run(record, 1000.004, 1000.005)
    run(record, 1000.006, 1000.007)
    run(record, 1001.0, 1002.0)
    [grown] = record.grown()
    assert dict(zip(SPAN, grown, strict=True))["count"] == 4
    [new] = record.newest(last, 10)
    assert (grown[0], new[0]) == (1, 2)
    assert record.grown() == []
    assert record.newest(record.last, 10) == []
    assert [span[0] for span in record.newest(0, 1)] == [2]


def test_a_full_record_takes_little_memory(now: Clock) -> None:
    tracemalloc.start()
    try:
        record = Timeline(now)
        for i in range(module.SPANS_KEPT + 1000):
            run(
                record,
                1000.0 + i,
                1000.5 + i,
                "".join(["execute step(", str(i), ")"]),
                id=f"cafecafecafe-{i}",
            )
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used < 14_000_000
    assert len(record.spans(0, 10**6)) == module.SPANS_KEPT


# -- rates and incidents -----------------------------------------------------------------


def test_rates_are_by_the_second(record: Timeline, now: Clock) -> None:
    run(record, 999.0, 999.5)
    run(record, 999.8, 999.9, status="error")
    now.time = 1001.5
    record.tasks(0, "c-1", "f", [end(i, 1001, 1001.1) for i in range(7)])
    record.sample(lambda: (3, 9))
    record.sample(lambda: pytest.fail("asked twice in a second"))
    first, second = record.rates_since(0)
    assert first[:4] == [1000, 2, 0, 1]
    assert first[4:6] == pytest.approx([1.2, 1.0])
    assert second == [1001, 0, 7, 0, 0.0, 0.0, 3, 9]
    assert record.rates_since(1001) == [second]


def test_rates_are_bounded(record: Timeline, now: Clock) -> None:
    for _ in range(1000):
        now.time += 1
        run(record, now.time, now.time)
    assert len(record.rates_since(0)) == module.RATES_KEPT


def test_a_link_that_ends_with_its_engine_is_one_incident(record: Timeline, now: Clock) -> None:
    record.note("away", 1)
    now.time += 0.01
    record.note("died", 1, "killed by signal 9 (SIGKILL)" + "x" * 1000)
    record.note("away", 2)
    now.time += 100
    record.note("died", 2)
    assert [(i["engine"], i["what"]) for i in record.incidents] == [(1, "died"), (2, "away"), (2, "died")]
    assert len(record.incidents[0]["text"]) == module.TEXT_KEPT
    assert [i["engine"] for i in record.incidents_since(2)] == [2, 2]
    assert record.totals["died"] == 2


# -- output ----------------------------------------------------------------------------------


def printed(engine: int, text: str, kind: str = "stdout") -> Event:
    return Event("c-1", engine, 0, kind, text, ())


def test_output_is_kept_only_while_somebody_looks() -> None:
    output = LiveOutput()
    output.event(printed(0, "unseen"))
    output.watched = True
    output.event(printed(0, "a"))
    output.event(printed(0, "b"))
    output.event(printed(0, "e", "stderr"))
    output.event(printed(1, "c"))
    output.event(printed(1, "never", "publish"))
    assert output.after(0) == [
        [1, 0, "stdout", "ab", False],
        [2, 0, "stderr", "e", False],
        [3, 1, "stdout", "c", False],
    ]
    output.event(printed(1, "d"))
    assert output.after(output.last - 1) == [[4, 1, "stdout", "d", False]]
    output.watched = False
    output.watched = True
    assert output.after(0) == []


@pytest.mark.parametrize("looks", [7, 100_000])
@pytest.mark.parametrize("size", [50, 30_000])
def test_a_flood_of_output_is_bounded(size: int, looks: int) -> None:
    output = LiveOutput()
    output.watched = True
    for i in range(20_000):
        output.event(printed(i % 200, "x" * size))
        if i % looks == 0:
            output.after(0)
    chunks = output.after(0)
    assert ALL_KEPT - TEXT_KEPT <= sum(len(chunk[3]) for chunk in chunks) <= ALL_KEPT
    assert all(len(chunk[3]) <= TEXT_KEPT and chunk[4] == (size > TEXT_KEPT) for chunk in chunks)


def test_output_without_text_is_none() -> None:
    output = LiveOutput()
    output.watched = True
    for i in range(100):
        output.event(printed(0, "", "stdout" if i % 2 else "stderr"))
    assert output.after(0) == []
    assert len(output._chunks) == output.last == 0


# -- in a controller -----------------------------------------------------------------------------


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(2) as cluster:
        yield cluster


def test_a_client_sees_commands_and_tasks(cluster: MemoryCluster) -> None:
    mec, tc = cluster.client(), cluster.task_client()
    mec.execute("a = 1")
    with pytest.raises(CompositeError):
        mec.execute("1/0", targets=1)
    tc.map(abs, range(4))
    found = mec.timeline()
    assert found.engines == [0, 1]
    commands = [span for span in found.spans if span["kind"] == "command"]
    assert [(span["engine"], span["label"], span["status"]) for span in commands] == [
        (0, "a = 1", "ok"),
        (1, "a = 1", "ok"),
        (1, "1/0", "error"),
    ]
    assert all(span["completed"] >= span["started"] for span in found.spans)
    assert sum(span["count"] for span in found.spans if span["kind"] == "task") >= 1
    assert found.only([0]).engines == [0]


def test_pages_are_joined(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Timeline.spans, "__defaults__", (3,))
    mec = cluster.client()
    for i in range(10):
        mec.execute(f"a = {i}")
    labels = [span["label"] for span in mec.timeline().spans if span["engine"] == 0]
    assert labels == [f"a = {i}" for i in range(10)]


def test_what_runs_is_seen_and_deaths_are(cluster: MemoryCluster) -> None:
    mec = cluster.client()
    assert cluster.controller is not None
    engine = cluster.engine(1)
    engine.loop.run_ready = lambda: 0  # it takes for ever
    pending = mec.execute("forever()", targets=1, block=False)
    cluster.settle()
    [span] = mec.timeline().spans
    assert (span["engine"], span["label"], span["status"]) == (1, "forever()", "running")
    cluster.end_engine(engine, "killed by signal 9 (SIGKILL)", restart=True)
    with pytest.raises(CompositeError):
        pending.get_result()
    cluster.run_until(lambda: cluster.ready_ids() == [0, 1])
    found = mec.timeline()
    assert [(span["label"], span["status"]) for span in found.spans] == [("forever()", "died")]
    assert [i["what"] for i in found.incidents] == ["died", "restarted"]
    assert found.incidents[0]["text"] == "killed by signal 9 (SIGKILL)"


def test_a_retried_task_is_a_span_each_time() -> None:
    world = TaskWorld()
    try:
        outcomes = iter(["error", "ok"])
        world.engine("e", lambda key, attempt: (next(outcomes), 0.5))
        user = world.client("c1")
        batch = user.open(1, label="f", retries=1)
        world.run(5.0)
        assert user.end(batch) == "ok"
        assert world.controller is not None
        assert rows(world.controller.timeline, "status", "label") == [("error", "f"), ("ok", "f")]
    finally:
        world.close()


# -- pictures and traces ---------------------------------------------------------------------------


def span(engine: int, started: float, completed: float, **other: Any) -> dict[str, Any]:
    """As a client sees it."""
    return {
        "engine": engine,
        "id": "c-1",
        "label": "f",
        "kind": "command",
        "started": started,
        "completed": completed,
        "busy": completed - started,
        "status": "ok",
        "count": 1,
        "failed": 0,
        **other,
    }


EVIL = "<script>alert('\ud800\x00\")]]></script>"


@pytest.fixture
def seen() -> Seen:
    spans = [span(0, 1000.0, 1001.0), span(3, 1000.5, 1003.0, label=EVIL, failed=1, status="error")]
    return Seen(spans, [{"time": 1002.0, "engine": 3, "what": "died", "text": EVIL}], {3: "mars"})


def test_the_trace_is_what_perfetto_reads(seen: Seen, tmp_path: Path) -> None:
    seen.save(tmp_path / "t.json")
    trace = json.loads((tmp_path / "t.json").read_text())
    events = trace["traceEvents"]
    assert [e["args"]["name"] for e in events if e["ph"] == "M"] == [
        "ipython1",
        "engine 0",
        "engine 3 (mars)",
    ]
    first, second = (e for e in events if e["ph"] == "X")
    assert (first["tid"], first["ts"], first["dur"], first["name"], first["cat"]) == (
        0,
        0,
        1e6,
        "f",
        "command",
    )
    assert (second["tid"], second["ts"], second["dur"]) == (3, 5e5, 2.5e6)
    [incident] = (e for e in events if e["ph"] == "i")
    assert (incident["ts"], incident["tid"], incident["name"]) == (2e6, 3, "died")


def test_the_picture_is_well_formed_and_escaped(seen: Seen, tmp_path: Path) -> None:
    seen.save(tmp_path / "t.svg")
    picture = ET.fromstring((tmp_path / "t.svg").read_bytes())
    tags = {element.tag.rpartition("}")[2] for element in picture.iter()}
    assert tags == {"svg", "title", "rect", "text", "path"}
    titles = [element.text or "" for element in picture.iter() if element.tag.endswith("title")]
    assert any("<script>alert(" in title for title in titles)
    assert seen._repr_html_() == (tmp_path / "t.svg").read_text()


def test_a_picture_of_many_stays_small() -> None:
    many = Seen(span(i % 4, 1000 + i * 0.01, 1000 + i * 0.01 + 0.009) for i in range(20_000))
    assert len(many.svg()) < 1_500_000


def test_a_png(seen: Seen, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    seen.save(tmp_path / "t.png")
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_no_png_without_matplotlib(seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        seen.save(tmp_path / "t.png")


def test_another_suffix_says_which_there_are(seen: Seen, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.svg, \.png or \.json"):
        seen.save(tmp_path / "t.pdf")


@pytest.mark.parametrize("make", [Seen.svg, Seen.trace, repr, len])
def test_nothing_ran(make: Callable[[Seen], Any]) -> None:
    assert make(Seen([])) is not None
    assert repr(Seen([])) == "<Timeline: nothing ran>"


def test_a_table_of_it(seen: Seen) -> None:
    pandas = pytest.importorskip("pandas")
    assert list(pandas.DataFrame(seen.spans)["engine"]) == [0, 3]


def test_the_client_saves_at_once(cluster: MemoryCluster, tmp_path: Path) -> None:
    mec: client.MultiEngineClient = cluster.client()
    mec.execute("a = 1")
    mec.timeline(tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
