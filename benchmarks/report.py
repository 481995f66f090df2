"""What is shown of a run: tables (reStructuredText that reads well as it is), a page, and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rows import LIMITS, ROWS, SECTIONS, Row
from benchmarks.summary import Summary, advantage, best_of, rounded, shown, shown_ratio
from benchmarks.systems import OURS, PEERS

if TYPE_CHECKING:
    from benchmarks.runner import Results

#: Peers that are clusters; what the others do stands beside them, but is no rival.
RIVALS = ("ipyparallel", "dask", "ray")
NOTHING = "–"
#: How much dearer a command may become, the more are outstanding.
FLAT = 1.5


def simple_table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A reStructuredText simple table; no cell may be empty in the first column."""
    lines = [list(heading), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    rule = "  ".join("=" * width for width in widths)
    texts = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([rule, texts[0], rule, *texts[1:], rule]) + "\n"


def summaries(results: Results, row: Row) -> dict[str, Summary]:
    """The summary of each system that has values in a row."""
    return {name: Summary.of(values) for name, values in results.values.get(row.key, {}).items() if values}


def ratio(results: Results, row: Row) -> tuple[float, str] | None:
    """How many times better ipython1 is than the best rival, and which that is."""
    found = summaries(results, row)
    best = best_of({name: found[name].median for name in RIVALS if name in found}, row.less)
    if best is None or OURS not in found:
        return None
    return advantage(found[OURS].median, found[best].median, row.less), best


def present(results: Results) -> list[str]:
    """The systems of a run, in the order of columns."""
    return [name for name in (OURS, *PEERS) if name in results.systems]


def measured(results: Results) -> list[Row]:
    """The rows in which anything was found."""
    return [row for row in ROWS if row.key in results.values or row.key in results.missing]


def main_table(results: Results, rows: Sequence[Row] | None = None, spread: bool = True) -> str:
    """Rows (all, where none are given) and systems: median (least–most), and ipython1 against the best rival.

    Columns for limits and targets are there where a row has one.
    """
    columns = present(results)
    limits = {row.key: row for row in LIMITS}
    rows = measured(results) if rows is None else rows
    lines = []
    for row in rows:
        found = summaries(results, row)
        cells = [row.title]
        for name in columns:
            summary = found.get(name)
            cells.append(NOTHING if summary is None else _cell(summary, row.unit, spread))
        limit = limits.get(row.limit)
        bound = summaries(results, limit).get("limits") if limit is not None else None
        cells.append(NOTHING if bound is None else _cell(bound, row.unit, False))
        against = ratio(results, row)
        cells.append(NOTHING if against is None else f"{shown_ratio(against[0])} {against[1]}")
        cells.append(row.target or NOTHING)
        lines.append(cells)
    heading = ["work", *columns, "limit", "against the best", "target"]
    dropped = {"limit": any(row.limit for row in rows), "target": any(row.target for row in rows)}
    kept = [i for i, name in enumerate(heading) if dropped.get(name, True)]
    return simple_table([heading[i] for i in kept], [[line[i] for i in kept] for line in lines])


def _cell(summary: Summary, unit: str, spread: bool) -> str:
    return shown(summary if spread else Summary(summary.median, 0, 0, 1), unit)


def limits_table(results: Results) -> str:
    """What the machine itself can do."""
    lines = []
    for row in LIMITS:
        found = summaries(results, row).get("limits")
        if found is not None:
            lines.append([row.title, shown(found, row.unit)])
    return simple_table(["limit of the machine", "median (least–most)"], lines)


def growth(costs: Sequence[float]) -> float:
    """How many times dearer a command becomes, at worst, than with fewer outstanding; at least 1."""
    return max(later / earlier for i, earlier in enumerate(costs) for later in costs[i:])


def flatness(results: Results) -> str:
    """The growth of the cost of a command with the number outstanding, of each system."""
    rows = [row for row in ROWS if row.group == "outstanding"]
    words = []
    for name in present(results):
        found = {row.key: summaries(results, row).get(name) for row in rows}
        costs = {key: summary.median for key, summary in found.items() if summary is not None}
        if len(costs) > 1:
            first, *_, last = (f"{int(key.rpartition('-')[2]):,}" for key in costs)
            words.append(f"{name} {rounded(growth([*costs.values()]), 2)} ({first} to {last})")
    return ", ".join(words)


def gaps(results: Results) -> list[str]:
    """Why there are gaps in the table."""
    titles = {row.key: row.title for row in [*ROWS, *LIMITS]}
    reasons: dict[tuple[str, str], list[str]] = {}
    for key, by_system in results.missing.items():
        for name, reason in by_system.items():
            if name not in results.values.get(key, {}):
                reasons.setdefault((name, reason), []).append(titles.get(key, key))
    lines = [f"{name}: {reason} ({', '.join(rows)})" for (name, reason), rows in reasons.items()]
    for name, about in results.systems.items():
        lines += [f"{name}: {problem}" for problem in about["problems"]]
    return [" ".join(line.split()) for line in lines]


def systems_table(results: Results) -> str:
    """Versions, and what to mind."""
    lines = []
    for name in present(results):
        about = results.systems[name]
        facts = [f"{what}: {_fact(value)}" for what, value in sorted(about["facts"].items())]
        lines.append([name, about["version"] or NOTHING, "; ".join([*filter(None, [about["note"]]), *facts])])
    return simple_table(["system", "version", "to mind"], [[*line[:2], line[2] or NOTHING] for line in lines])


def _fact(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def text(results: Results) -> str:
    """All tables, as they are printed."""
    parts = [main_table(results), limits_table(results), systems_table(results)]
    flat = flatness(results)
    if flat:
        parts.append(f"Growth of the cost of a command: {flat}\n")
    parts += [f"- {line}\n" for line in gaps(results)]
    return "\n".join(parts)


def page(results: Results) -> str:
    """The page ``docs/performance.rst``."""
    machine = results.machine
    repeats = max((len(values) for found in results.values.values() for values in found.values()), default=0)
    missing = [f"- {line}\n" for line in gaps(results)]
    lines = [
        _heading("How fast it is", "="),
        "``python -m benchmarks`` runs the same work on ipython1 and on the peers that are installed\n"
        "(``pip install '.[bench]'``), one after the other and all of it several times, in a network\n"
        "namespace that has only loopback, and checks every result. This is one run of it.\n",
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB; "
        f"Linux {machine['kernel']}, Python {machine['python']}; {machine['date']}.\n"
        f"Engines: {results.options['engines']}; repeats: {repeats}.\n",
        systems_table(results),
        "Values are medians of the repeats, with the least and the most of them. MB and GB are powers of\n"
        "ten, and bytes that arrive at several engines count at each. *Against the best* says how many\n"
        f"times better ipython1 is than the best of {', '.join(RIVALS[:-1])} and {RIVALS[-1]} (below 1:\n"
        "worse). mpi and pool have no controller, no namespaces and no second client: they are yardsticks,\n"
        "as is the *limit*: a Unix socket's ping-pong, or one warm copy in memory. *Target* is what\n"
        "ipython1 has set itself.\n",
    ]
    if results.options.get("small"):
        lines.append("**Sizes of a hundredth: this run says only that everything works.**\n")
    for section in SECTIONS:
        rows = [row for row in measured(results) if row.group in section.groups]
        if rows:
            lines += [_heading(section.title, "-"), f"{section.about}\n", main_table(results, rows)]
            flat = flatness(results) if "outstanding" in section.groups else ""
            if flat:
                lines.append(
                    "Growth, what a command costs at most with more outstanding against fewer\n"
                    f"(target: at most {FLAT:g}): {flat}.\n"
                )
            lines += [f"{row.title}\n    {row.meaning}\n" for row in rows if row.meaning]
    lines += [_heading("The machine's limits", "-"), limits_table(results)]
    lines += [_heading("Gaps", "-"), *missing] if missing else []
    return "\n".join(lines)


def _heading(text: str, line: str) -> str:
    return f"{text}\n{line * len(text)}\n"


def write_page(results: Results, path: Path) -> None:
    """Write the page of a run."""
    path.write_text(page(results))


def plot(results: Results, path: Path) -> None:
    """A dot a system and row: how it stands to ipython1, to the right is better; none without ipython1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in measured(results) if OURS in summaries(results, row)]
    if not rows:
        return
    figure, axes = pyplot.subplots(figsize=(9, 2 + 0.27 * len(rows)), layout="constrained")
    for name in present(results):
        points, heights, errors = [], [], []
        for height, row in enumerate(rows):
            found = summaries(results, row)
            if name not in found or min(found[name].least, found[OURS].median) <= 0:
                continue
            mine = found[OURS].median
            middle, *ends = (
                1 / advantage(mine, value, row.less)
                for value in (found[name].median, found[name].least, found[name].most)
            )
            points.append(middle)
            heights.append(height)
            errors.append((middle - min(ends), max(ends) - middle))
        if points:
            bars = [list(side) for side in zip(*errors, strict=True)]
            axes.errorbar(points, heights, xerr=bars, fmt="o", label=name, alpha=0.8, markersize=5)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.title for row in rows])
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("times as good as ipython1 (median, and the spread of the repeats)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=6, frameon=False)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
