"""Pictures of the cells of an executed notebook, as a browser shows them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

#: Of the window, in CSS pixels; the picture is cut to what there is.
WIDTH, HEIGHT = 860, 3000
#: Flags without which Chromium asks for hosts far away, or for a desktop.
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
#: Cells whose tags begin so have a picture of the rest of the name.
TAG = "screenshot-"


def browser() -> str | None:
    """Where Chromium is."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def take(cells: list[Any], picture: Path, scratch: Path, theme: str = "light") -> None:
    """Write a PNG of executed cells.

    Parameters
    ----------
    cells : list of NotebookNode
    picture : Path
    scratch : Path
        An empty folder.
    theme : {'light', 'dark'}
    """
    import nbconvert
    import nbformat

    exporter = nbconvert.HTMLExporter(theme=theme, embed_images=True)
    exporter.mathjax_url = exporter.require_js_url = ""
    markup, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    page = scratch / "page.html"
    page.write_text(markup, encoding="utf-8")
    raw = scratch / "page.png"
    chromium = browser()
    assert chromium is not None
    subprocess.run(
        [
            chromium,
            *FLAGS,
            f"--user-data-dir={scratch / 'profile'}",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={raw}",
            page.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    _cut(raw, picture)


def _cut(raw: Path, picture: Path) -> None:
    """Copy a picture without the empty space at its edges, in few colours."""
    from PIL import Image, ImageChops

    whole = Image.open(raw).convert("RGB")
    empty = Image.new("RGB", whole.size, whole.getpixel((0, whole.height - 1)))
    left, top, right, bottom = ImageChops.difference(whole, empty).getbbox() or (0, 0, *whole.size)
    box = max(0, left - 8), max(0, top - 8), min(whole.width, right + 8), min(whole.height, bottom + 8)
    whole.crop(box).quantize(128).save(picture, optimize=True)
