"""Draws what ran where: a row for each engine, time to the right."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

from ipython1.kernel.texts import duration_text

Span = Mapping[str, Any]

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 960, 52, 14, 30, 26
COLOURS = {"command": "#2f6fb0", "task": "#2a8f82", "failed": "#c0392b", "running": "#9db8d6"}
NAMES = {"command": "command", "task": "task", "failed": "failed", "running": "runs now"}
FONT = 'font-family="system-ui, DejaVu Sans, sans-serif" font-size="11"'
#: Pixels that a piece has at least; what would be finer is joined.
FINE = 0.5


def svg(spans: Sequence[Span], incidents: Iterable[Span], began: float, ended: float) -> str:
    """The picture as SVG, with what each piece is as its title."""
    engines = sorted({span["engine"] for span in spans})
    row = _row_height(len(engines))
    height = TOP + row * max(1, len(engines)) + BOTTOM
    scale = (WIDTH - LEFT - RIGHT) / max(1e-6, ended - began)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" {FONT}>',
        f"<title>What ran where: {len(engines)} engines, {duration_text(ended - began)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        *_legend(began, ended),
        *_axis(began, ended, scale, height),
    ]
    for i, engine in enumerate(engines):
        top = TOP + i * row
        if i % math.ceil(12 / row) == 0:
            y = top + row / 2 + 4
            lines.append(f'<text x="{LEFT - 8}" y="{y:.0f}" text-anchor="end" fill="#5b6673">{engine}</text>')
        own = sorted(
            (span for span in spans if span["engine"] == engine), key=lambda span: float(span["started"])
        )
        gap = min(2.0, row / 6)
        for left, right, colour, title in _pieces(own, began, scale, FINE, LEFT):
            lines.append(
                f'<rect x="{left:.1f}" y="{top + gap:.1f}" width="{right - left:.1f}"'
                f' height="{row - 2 * gap:.1f}" fill="{COLOURS[colour]}"><title>{_text(title)}</title></rect>'
            )
    places = {engine: TOP + i * row for i, engine in enumerate(engines)}
    for incident in incidents:
        if incident["what"] == "died" and incident["engine"] in places and began <= incident["time"] <= ended:
            x, y = LEFT + (incident["time"] - began) * scale, places[incident["engine"]]
            lines.append(
                f'<path d="M{x:.1f} {y}v{row}" stroke="{COLOURS["failed"]}" stroke-width="2">'
                f"<title>{_text('died: ' + incident['text'])}</title></path>"
            )
    return "\n".join([*lines, "</svg>\n"])


def png(spans: Sequence[Span], incidents: Iterable[Span], began: float, ended: float) -> bytes:
    """The picture as PNG, by matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError:
        raise ImportError(
            "A timeline becomes a PNG with matplotlib only: pip install matplotlib. Or save it as .svg."
        ) from None
    engines = sorted({span["engine"] for span in spans})
    figure = Figure(figsize=(9.6, 1.2 + min(12.0, 0.22 * len(engines))), layout="constrained")
    axes = figure.add_subplot()
    for i, engine in enumerate(engines):
        own = sorted(
            (span for span in spans if span["engine"] == engine), key=lambda span: float(span["started"])
        )
        bars = [
            (left, right - left, COLOURS[colour]) for left, right, colour, _ in _pieces(own, began, 1.0, 0.0)
        ]
        axes.broken_barh([bar[:2] for bar in bars], (i - 0.4, 0.8), facecolors=[bar[2] for bar in bars])
    for incident in incidents:
        if incident["what"] == "died" and incident["engine"] in engines:
            axes.plot(
                incident["time"] - began, engines.index(incident["engine"]), "x", color=COLOURS["failed"]
            )
    step = math.ceil(len(engines) / 40)
    axes.set_yticks(range(0, len(engines), step), labels=[str(engine) for engine in engines[::step]])
    axes.invert_yaxis()
    axes.set(xlabel=f"seconds from {_clock(began)}", ylabel="engine", xlim=(0, max(1e-6, ended - began)))
    handles = [Patch(color=COLOURS[name], label=NAMES[name]) for name in COLOURS]
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False, fontsize="small")
    written = io.BytesIO()
    FigureCanvasAgg(figure).print_png(written)
    return written.getvalue()


def _pieces(
    spans: Iterable[Span], began: float, scale: float, fine: float, offset: float = 0.0
) -> Iterator[tuple[float, float, str, str]]:
    """The rectangles of one engine: ends, colour, what it is. What no eye can tell apart is one."""
    last: tuple[float, float, str, str] | None = None
    for span in spans:
        left = offset + (span["started"] - began) * scale
        right = max(left + fine, offset + (span["completed"] - began) * scale)
        colour = _colour(span)
        if last is not None and last[2] == colour and right - last[0] < 2 * fine:
            last = (last[0], max(last[1], right), colour, f"{last[3].removesuffix(' …')} …")
            continue
        if last is not None:
            yield last
        last = (left, right, colour, _title(span))
    if last is not None:
        yield last


def _colour(span: Span) -> str:
    if span["status"] == "running":
        return "running"
    return "failed" if span["failed"] else str(span["kind"])


def _title(span: Span) -> str:
    many = f"{span['count']} × " if span["count"] > 1 else ""
    each = f", {duration_text(span['busy'])} in all" if span["count"] > 1 else ""
    how = {"ok": "", "running": ", runs"}.get(span["status"], f", {span['status']}")
    took = duration_text(max(0.0, span["completed"] - span["started"]))
    return f"{_clock(span['started'])} {many}{span['label']}: {took}{each}{how} {span['id']}".rstrip()


def _legend(began: float, ended: float) -> Iterator[str]:
    when = (
        f"{time.strftime('%Y-%m-%d', time.localtime(began))} {_clock(began)}, {duration_text(ended - began)}"
    )
    yield f'<text x="{LEFT}" y="18" fill="#1d232b">{when}</text>'
    x = WIDTH - RIGHT - 275
    for name, colour in COLOURS.items():
        yield f'<rect x="{x}" y="9" width="9" height="9" rx="2" fill="{colour}"/>'
        yield f'<text x="{x + 13}" y="18" fill="#5b6673">{NAMES[name]}</text>'
        x += 36 + 6 * len(NAMES[name])


def _axis(began: float, ended: float, scale: float, height: int) -> Iterator[str]:
    span = max(1e-6, ended - began)
    step = 10.0 ** math.floor(math.log10(span))
    step = next(each for each in (step / 5, step / 2, step, 2 * step) if span / each <= 10)
    for i in range(int(span / step) + 1):
        x = LEFT + i * step * scale
        yield f'<path d="M{x:.1f} {TOP}V{height - BOTTOM}" stroke="#dfe3e8"/>'
        text = f"{i * step:.6g} s"
        yield f'<text x="{x:.1f}" y="{height - 9}" text-anchor="middle" fill="#5b6673">{text}</text>'


def _row_height(engines: int) -> int:
    return 18 if engines <= 24 else 9 if engines <= 80 else 4


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _text(text: str) -> str:
    """As XML can have it, which knows no control characters and no lone surrogates."""
    shown = "".join(c if c.isprintable() else " " for c in text)
    return escape(shown.encode("utf-8", "replace").decode())
