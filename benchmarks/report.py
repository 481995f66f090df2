"""What is shown of a run: tables (reStructuredText that reads well as it is), a page, and a plot."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rows import LIMITS, ROWS, Row
from benchmarks.summary import Summary, advantage, best_of, rounded, shown, shown_ratio
from benchmarks.systems import OURS, PEERS

if TYPE_CHECKING:
    from benchmarks.runner import Results

#: Peers that are clusters; what the others do stands beside them, but is no rival.
RIVALS = ("ipyparallel", "dask", "ray")
NOTHING = "–"


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


def main_table(results: Results, spread: bool = True) -> str:
    """Every row and system: median (least–most of the repeats), and ipython1 against the best rival."""
    columns = present(results)
    limits = {row.key: row for row in LIMITS}
    lines = []
    for row in measured(results):
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
        lines.append(cells)
    return simple_table(["work", *columns, "limit", "against the best"], lines)


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


def flatness(results: Results) -> str:
    """What a command costs with the most outstanding, against the cost with 100, of each system."""
    rows = [row for row in ROWS if row.group == "outstanding" and row.key != "outstanding-10"]
    words = []
    for name in present(results):
        found = [(row, summaries(results, row)[name]) for row in rows if name in summaries(results, row)]
        if len(found) > 1:
            growth = found[-1][1].median / found[0][1].median
            number = int(found[-1][0].key.rpartition("-")[2])
            words.append(f"{name} {rounded(growth, 2)} (100 to {number:,})")
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
    engines = results.options["engines"]
    repeats = max(len(values) for found in results.values.values() for values in found.values())
    meanings = [f"{row.title}\n    {row.meaning}\n" for row in measured(results) if row.meaning]
    missing = [f"- {line}\n" for line in gaps(results)]
    return "\n".join(
        [
            "How fast it is\n==============\n",
            "``python -m benchmarks`` runs the same work on ipython1 and on the peers that are installed\n"
            "(``pip install '.[bench]'``), one after the other and all of it several times, in a network\n"
            "namespace that has only loopback, and checks every result. This is one run of it.\n",
            f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory'] / 1e9:.0f} GB; "
            f"Linux {machine['kernel']}, Python {machine['python']}; {machine['date']}.\n"
            f"Engines: {engines}; repeats: {repeats}.\n",
            systems_table(results),
            "Medians (least–most of the repeats)\n-----------------------------------\n",
            "MB and GB are powers of ten, and bytes that arrive at several engines count at each. The last\n"
            "column says how many times better ipython1 is than the best of "
            f"{', '.join(RIVALS[:-1])} and {RIVALS[-1]}\n"
            "(below 1: worse); mpi and pool have no controller, no namespaces and no second client: they\n"
            "are yardsticks, as is the limit: a Unix socket's ping-pong, or one warm copy in memory.\n",
            main_table(results),
            f"Growth of the cost of a command with the number outstanding: {flatness(results)}.\n",
            "What each means\n---------------\n",
            *meanings,
            "The machine's limits\n--------------------\n",
            limits_table(results),
            *(["Gaps\n----\n", *missing] if missing else []),
        ]
    )


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
