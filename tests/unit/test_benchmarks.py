"""The arithmetic and the tables of the benchmarks; nothing is measured here."""

from __future__ import annotations

import io
import json
import math
import time
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import isolation, payloads, report, works
from benchmarks import rows as table
from benchmarks.runner import Results, Runner, planned
from benchmarks.session import Session
from benchmarks.summary import Summary, advantage, best_of, rounded, scale, shown, shown_ratio
from benchmarks.systems import NotOffered
from benchmarks.systems.base import System
from benchmarks.works import NO_TIME, Context

POSITIVE = st.floats(min_value=1e-9, max_value=1e12)


@given(st.lists(POSITIVE, min_size=1))
def test_summary_bounds(values):
    found = Summary.of(values)
    assert found.least <= found.median <= found.most
    assert found.count == len(values)


def test_summary_of_an_even_number():
    assert Summary.of([4.0, 1.0, 2.0, 8.0]) == Summary(3.0, 1.0, 8.0, 4)


def test_advantage():
    assert advantage(2.0, 6.0, less_is_better=True) == 3.0
    assert advantage(2.0, 6.0, less_is_better=False) == pytest.approx(1 / 3)


@given(POSITIVE, POSITIVE, st.booleans())
def test_advantage_turned_round(ours, theirs, less):
    assert advantage(ours, theirs, less) * advantage(theirs, ours, less) == pytest.approx(1)


def test_advantage_of_memory_given_back():
    assert advantage(-5.0, 1e6, less_is_better=True) > 1000


def test_best_of():
    medians = {"a": 3.0, "b": 1.0, "c": 2.0}
    assert best_of(medians, less_is_better=True) == "b"
    assert best_of(medians, less_is_better=False) == "a"
    assert best_of({}, less_is_better=True) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1.0, "1"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (9.996, "10"),
        (123.4, "123"),
        (1234.0, "1230"),
        (28_749.0, "28,700"),
        (0.01234, "0.0123"),
        (-2.5, "-2.5"),
        (100.0, "100"),
    ],
)
def test_rounded(value, text):
    assert rounded(value) == text


@given(POSITIVE)
def test_rounded_keeps_three_digits(value):
    assert float(rounded(value).replace(",", "")) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("value", "unit", "name"),
    [
        (0.0012, "s", "ms"),
        (0.998, "s", "ms"),
        (0.9999, "s", "s"),
        (90.0, "s", "s"),
        (3e-5, "s", "µs"),
        (2.5e9, "B/s", "GB/s"),
        (-3.1e6, "B", "MB"),
        (12_000.0, "/s", "/s"),
        (0.0, "B", "B"),
    ],
)
def test_scale(value, unit, name):
    divisor, found = scale(value, unit)
    assert found == name
    assert abs(value) / divisor < 1000 or unit == "/s"


@given(POSITIVE, st.sampled_from(["s", "B", "B/s", "/s"]))
def test_scale_leaves_few_digits(value, unit):
    divisor, name = scale(value, unit)
    assert name.endswith(unit)
    if unit.startswith("B") and 1 <= value < 1e12:
        assert 0.999 <= value / divisor < 1000


def test_shown():
    assert shown(Summary(0.0012, 0.0011, 0.0015, 3), "s") == "1.2 ms (1.1–1.5)"
    assert shown(Summary(0.0012, 0.0012, 0.0012, 1), "s") == "1.2 ms"
    assert shown_ratio(2.345) == "2.3×"
    assert shown_ratio(math.inf) == "> 1000×"


def test_simple_table():
    table = report.simple_table(["work", "a"], [["push", "1"], ["apply, one", "–"]])
    assert table.splitlines() == [
        "==========  =",
        "work        a",
        "==========  =",
        "push        1",
        "apply, one  –",
        "==========  =",
    ]


@pytest.fixture
def results():
    found = Results(options={"engines": 4, "repeats": 2})
    found.machine = {
        "cpu": "a CPU",
        "cores": 2,
        "memory": 8e9,
        "kernel": "6",
        "python": "3.11",
        "date": "2026-01-01",
    }
    found.add("limits", [{"row": "ping-unix", "values": [2e-5]}])
    for factor in (1.0, 2.0):
        found.add("ipython1", [{"row": "apply-one", "values": [0.001 * factor, 9.0, 0.0005]}])
        found.add("ray", [{"row": "apply-one", "values": [0.004 * factor]}])
        found.add("dask", [{"row": "apply-one", "values": [0.006 * factor]}])
        found.add("pool", [{"row": "apply-one", "values": [0.0001]}])
    found.add("ray", [{"version": "2.0", "note": "read-only"}, {"facts": {"writable": False}}])
    found.add("dask", [{"row": "death", "missing": "no error in 20 s"}, {"problem": "did\nnot stop"}])
    return found


def row(key):
    return next(row for row in table.ROWS if row.key == key)


def test_results_hold_the_median_of_each_session(results):
    assert results.values["apply-one"]["ipython1"] == [0.001, 0.002]


def test_ratio_is_to_the_best_rival_only(results):
    assert report.ratio(results, row("apply-one")) == (pytest.approx(4.0), "ray")
    assert report.ratio(results, row("death")) is None


def test_main_table(results):
    lines = report.main_table(results).splitlines()
    assert lines[1].split() == ["work", "ipython1", "dask", "ray", "pool", "limit", "against", "the", "best"]
    with_target = report.main_table(results, [row("pipelined"), row("death")]).splitlines()
    assert with_target[1].split()[-4:] == ["against", "the", "best", "target"]
    assert with_target[3].endswith("10,000 /s")
    [line] = [line for line in lines if line.startswith("apply, one engine")]
    assert "1.5 ms (1–2)" in line
    assert "20 µs" in line
    assert line.endswith("4× ray")


def test_gaps_are_told(results):
    assert report.gaps(results) == [
        "dask: no error in 20 s (kill -9 of an engine to the error)",
        "dask: did not stop",
    ]


def test_a_row_that_came_out_once_is_no_gap(results):
    results.add("ray", [{"row": "apply-one", "missing": "TimeoutError"}])
    assert not any("ray" in line for line in report.gaps(results))


def test_results_are_saved_and_loaded(results, tmp_path):
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_page_has_everything(results, tmp_path):
    report.write_page(results, tmp_path / "performance.rst")
    page = (tmp_path / "performance.rst").read_text()
    assert report.main_table(results, [row("apply-one")]) in page
    assert "Small commands\n--------------\n" in page
    assert "Tasks\n-----\n" not in page  # nothing of it was measured
    assert "hundredth" not in page
    assert "a CPU, 2 cores, 8 GB" in page
    assert "writable: no" in page


def test_page_of_a_try_says_so(results):
    results.options["small"] = True
    assert "Sizes of a hundredth" in report.page(results)


def test_page_of_nothing_has_no_tables():
    empty = Results(options={"engines": 4}, machine=dict.fromkeys(("cpu", "kernel", "python", "date"), "?"))
    empty.machine |= {"cores": 2, "memory": 8e9}
    assert "Small commands" not in report.page(empty)


def test_every_group_has_its_section():
    groups = [group for section in table.SECTIONS for group in section.groups]
    assert len(set(groups)) == len(groups)
    assert {row.group for row in table.ROWS} == set(groups)


@pytest.mark.parametrize(
    ("costs", "wanted"), [([4, 2, 1], 1), ([1, 2, 4], 4), ([4, 1, 3, 2], 3), ([1, 1], 1), ([2, 1, 8, 1], 8)]
)
def test_growth(costs, wanted):
    assert report.growth(costs) == wanted


def test_flatness(results):
    results.add("ray", [{"row": f"outstanding-{n}", "values": [n**0.5]} for n in (10, 100, 10_000)])
    results.add("dask", [{"row": f"outstanding-{n}", "values": [9 / n]} for n in (10, 100)])
    assert report.flatness(results) == "dask 1 (10 to 100), ray 32 (10 to 10,000)"
    assert "(target: at most 1.5): dask 1" in report.page(results)


def test_rows_have_keys_of_their_own_and_known_limits():
    keys = [row.key for row in [*table.ROWS, *table.LIMITS]]
    assert len(set(keys)) == len(keys)
    assert {row.limit for row in table.ROWS} - {""} <= {row.key for row in table.LIMITS}


def test_chosen():
    assert table.chosen(table.ROWS, []) == table.ROWS
    assert [row.key for row in table.chosen(table.ROWS, ["memory", "apply"])] == [
        "engine-memory",
        "head-memory",
        "apply-one",
        "apply-all",
    ]
    assert table.chosen(table.ROWS, ["nothing like it"]) == []


def test_important_rows_come_first():
    important = table.chosen(table.ROWS, ["important"])
    assert {row.key for row in important} > {"pipelined", "gather-80MB", "death", "tasks-100000-1"}
    assert len(important) < len(table.ROWS)
    with_dicts = table.chosen(table.ROWS, ["important", "dict"])
    assert {row.key for row in with_dicts} == {row.key for row in important} | {"dict-push", "dict-pull"}
    order = sorted(table.ROWS, key=table.urgency)
    assert {row.key for row in order[: len(important) - 1]} == {row.key for row in important} - {"death"}
    assert order[-1].key == "death"  # the engine is gone then


def test_a_series_grows_in_its_order():
    keys = [row.key for row in sorted(table.WORK, key=table.urgency) if row.group == "outstanding"]
    assert keys == [f"outstanding-{n}" for n in (10, 100, 1_000, 10_000, 100_000)]


def test_plan_interleaves_systems_and_begins_with_another_each_time():
    plan = planned(["a", "b"], [["life"], ["work"]], 3)
    assert [system for _, system, _ in plan] == [
        *("limits", "a", "a", "b", "b"),
        *("limits", "b", "b", "a", "a"),
        *("limits", "a", "a", "b", "b"),
    ]


def test_sessions_share_the_time_there_is(monkeypatch):
    clock, given = [100.0], []
    runner = Runner(4, False, 60.0, 180, lambda line: None, seconds=1000.0)

    def session(system, keys, seconds):
        given.append((system, seconds))
        clock[0] += seconds / 2 if system == "limits" else seconds
        return []

    monkeypatch.setattr(runner, "session", session)
    monkeypatch.setattr("benchmarks.runner.time.monotonic", lambda: clock[0])
    runner.run(["a", "b"], table.chosen(table.ROWS, ["apply", "start"]), 1, Results())
    weights = {"limits": 4, "life": 2, "work": 2}
    share = 1000 * weights["limits"] / 12
    assert given[0] == ("limits", pytest.approx(share))
    later = (1000 - share / 2) / 4  # what the first one left is for the others
    assert given[1:] == [(name, pytest.approx(later)) for name in ("a", "a", "b", "b")]
    assert clock[0] == pytest.approx(1100)


def test_what_comes_too_late_is_refused(tmp_path):
    context = Context(tmp_path, budget=10.0, end=time.monotonic() + 5)
    context.learn("series", 10, 1.0)
    context.afford("series", 40)
    with pytest.raises(NotOffered, match="no time"):
        context.afford("series", 60)
    with pytest.raises(NotOffered, match="more than 10 s"):
        context.afford("series", 1000)


def test_a_row_after_the_end_is_not_begun(tmp_path):
    file = io.StringIO()
    session = Session(file, Context(tmp_path, end=time.monotonic() - 1), 60)
    session.measure(row("pipelined"), None)
    assert json.loads(file.getvalue()) == {"row": "pipelined", "missing": NO_TIME}


class Here(System):
    """One engine: this process."""

    def start(self): ...

    def stop(self): ...

    def one(self, engine, f, *args):
        return f(*args)

    def all(self, f, *args):
        return [f(*args)]

    def submit(self, engine, f, *args):
        return f(*args)

    def collect(self, handles):
        return handles


class Views(Here):
    """... whose arrays cannot be changed."""

    def push(self, name, value, engine):
        value = value[:]
        value.flags.writeable = False
        super().push(name, value, engine)

    def pull(self, name, engine):
        values = super().pull(name, engine)
        for value in values:
            value.flags.writeable = False
        return values


TRANSFERS = [partial(works.push, 80_000, None), partial(works.pull, 80_000, None)]


@pytest.mark.parametrize("run", TRANSFERS)
def test_read_only_arrays_are_not_writable(run, tmp_path):
    context = Context(tmp_path)
    assert run(Views(1, tmp_path), context)
    assert list(context.facts.values()) == [False]
    system = Views(1, tmp_path)
    with pytest.raises(works.WrongResultError, match="writable where pu"):
        works.writable(run, system, context)
    assert not system.writable


@pytest.mark.parametrize("run", [*TRANSFERS, partial(works.scatter, 80_000)])
def test_writable_arrays_are(run, tmp_path):
    assert works.writable(run, Here(1, tmp_path), Context(tmp_path))
    assert not payloads.NAMESPACE.get("dealt")


def test_an_array_is_copied_where_it_has_to_be():
    value = payloads.array(800, 1)
    assert payloads.own(value) is value
    value.flags.writeable = False
    copy = payloads.own(value)
    copy += 1
    assert payloads.digest(copy) == payloads.digest(payloads.array(800, 2))


def test_what_is_changed_where_it_arrived_is_checked(tmp_path):
    run = partial(works.push, 80_000, None, changed=True)

    class Lazy(Here):
        def push(self, name, value, engine):
            super().push(name, value.copy(), engine)

        def increase(self, name):
            """Does not."""

    with pytest.raises(works.WrongResultError, match="push to 0"):
        run(Lazy(1, tmp_path), Context(tmp_path))


def test_what_counts_as_outside():
    heading = "Iface Destination Gateway\n"
    assert isolation.outside(["lo"], heading) == []
    assert isolation.outside([], heading) == []
    assert isolation.outside(["lo", "eth0"], heading) == ["eth0"]
    assert isolation.outside(["lo"], heading + "wlan0 00000000 0101A8C0\n") == ["wlan0"]
