"""The notebooks run in a Jupyter kernel with a real cluster, and give what the manual shows.

``IPYTHON1_SCREENSHOTS=1 python -m pytest tests/docs/test_notebooks.py`` writes the pictures of the
manual anew; it needs Chromium and nbconvert.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from . import screenshots
from .conftest import ROOT, Running
from .transcripts import blocks

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((ROOT / "docs/examples").glob("*.ipynb"))
PAGE = ROOT / "docs/tutorial/notebook.rst"
PICTURES = ROOT / "docs/_static"
TAKE = bool(os.environ.get("IPYTHON1_SCREENSHOTS"))
#: Name of the picture of a cell while it ran.
RUNNING = "running"


class Client(nbclient.NotebookClient):
    """Keeps what the displays of each cell were updated to: what bars looked like while they moved."""

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] == "update_display_data":
            bundle = msg["content"]["data"]
            self.updates.setdefault(cell_index, []).append(bundle.get("text/html", ""))
        return super().process_message(msg, cell, cell_index)


def executed(path: Path, cluster: Running, folder: Path) -> tuple[Any, dict[int, list[str]]]:
    """A notebook with its outputs, and what displays were updated to, by cell."""
    notebook = nbformat.read(path, 4)
    runtime = folder / "runtime"
    env = {**cluster.env, "JUPYTER_RUNTIME_DIR": os.fspath(runtime)}
    client = Client(
        notebook, timeout=90, kernel_name="python3", resources={"metadata": {"path": os.fspath(folder)}}
    )
    client.updates = {}
    client.execute(env=env)
    return notebook, client.updates


def kinds(cell: Any) -> list[str]:
    """What a cell gave: names of streams, and the richest MIME type of displays."""
    found = []
    for output in cell.outputs:
        data = output.get("data", {})
        found.append(
            output.get("name")
            or next((mime for mime in ("image/png", "text/html") if mime in data), "text/plain")
        )
    return found


def tagged(notebook: Any) -> dict[str, Any]:
    """The cells that are pictured, by name."""
    return {
        tag[len(screenshots.TAG) :]: cell
        for cell in notebook.cells
        for tag in cell.metadata.get("tags", ())
        if tag.startswith(screenshots.TAG)
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path: Path, cluster: Running, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    pytest.importorskip("matplotlib")
    if path.stem == "exploring_data":
        pytest.importorskip("pandas")
    notebook, updates = executed(path, cluster, tmp_path)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    warned = [output for cell in code for output in cell.outputs if output.get("name") == "stderr"]
    assert not warned
    CHECKS[path.stem](tagged(notebook))
    if TAKE:
        picture(path.stem, notebook, updates, tmp_path)


def check_first_steps(cells: dict[str, Any]) -> None:
    """Text of four engines, two figures under theirs, and the sum of all."""
    text = "".join(output.text for output in cells["hello"].outputs)
    assert sorted(text.splitlines()) == [f"[stdout:{i}] hello from engine {i}" for i in range(4)]
    figures = cells["figures"].outputs
    labels = [output.text for output in figures if output.get("name") == "stdout"]
    assert sorted(labels) == ["[output:0]\n", "[output:3]\n"]
    assert [kind for kind in kinds(cells["figures"]) if kind == "image/png"] == ["image/png"] * 2
    assert kinds(cells["histogram"]) == ["image/png"]
    assert kinds(cells["status"]) == ["text/html"]


def check_percolation(cells: dict[str, Any]) -> None:
    """A figure on each of two engines, and the curve."""
    assert [kind for kind in kinds(cells["grids"]) if kind == "image/png"] == ["image/png"] * 2
    assert kinds(cells["threshold"]) == ["image/png"]


def check_exploring_data(cells: dict[str, Any]) -> None:
    """A table under each engine."""
    tables = [o.data["text/html"] for o in cells["tables"].outputs if "data" in o]
    assert sum("Harbour" in table for table in tables) == 4
    assert "stdout" not in kinds(cells["longest"])


CHECKS = {
    "first_steps": check_first_steps,
    "percolation": check_percolation,
    "exploring_data": check_exploring_data,
}


def picture(name: str, notebook: Any, updates: dict[int, list[str]], folder: Path) -> None:
    """Write the pictures of a notebook that the page shows."""
    page = PAGE.read_text(encoding="utf-8")
    cells = tagged(notebook)
    for index, markups in updates.items():
        moving = [markup for markup in markups if "[0]" in markup]
        if moving:
            shown = nbformat.v4.new_output("display_data", {"text/html": moving[len(moving) // 2]})
            cells[RUNNING] = nbformat.from_dict({**notebook.cells[index], "outputs": [shown]})
    for tag, cell in cells.items():
        file = f"{name}-{tag}.png"
        if f"/_static/{file}" in page:
            scratch = folder / tag
            scratch.mkdir()
            PICTURES.mkdir(exist_ok=True)
            screenshots.take([cell], PICTURES / file, scratch)


def test_a_picture_of_a_cell(tmp_path: Path) -> None:
    pytest.importorskip("nbconvert")
    image = pytest.importorskip("PIL.Image")
    if screenshots.browser() is None:
        pytest.skip("Chromium is not installed")
    output = nbformat.v4.new_output("display_data", {"text/html": '<div style="height: 200px">x</div>'})
    cell = nbformat.v4.new_code_cell("1", outputs=[output])
    (tmp_path / "scratch").mkdir()
    screenshots.take([cell], tmp_path / "cell.png", tmp_path / "scratch")
    with image.open(tmp_path / "cell.png") as shown:
        assert 100 < shown.width <= screenshots.WIDTH
        assert 30 < shown.height < 300


def test_every_notebook_is_tested() -> None:
    assert {path.stem for path in NOTEBOOKS} == CHECKS.keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_outputs_are_kept(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    nbformat.validate(notebook)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert text == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def test_the_page_has_the_cells_of_the_notebook() -> None:
    notebook = nbformat.read(ROOT / "docs/examples/first_steps.ipynb", 4)
    written = ["\n".join(lines).strip() for _, lines in blocks(PAGE.read_text(encoding="utf-8"), "ipython3")]
    assert written == [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def test_the_pictures_of_the_page_are_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    named = [line.split("/_static/")[1] for line in page.splitlines() if line.startswith(".. image:: ")]
    assert len(named) == 7
    assert all((PICTURES / name).is_file() for name in named)
