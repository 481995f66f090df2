"""Every transcript in the documentation and the README runs, and prints what it shows."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import ROOT, Running
from .transcripts import WILDCARD, Cell, blocks, cells, difference, matches, normal

#: Pages for engines of another kind, and where they are tested.
ELSEWHERE = {"docs/launchers/mpi.rst": "tests/services/test_mpi.py"}
PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [ROOT / "README.rst", *sorted((ROOT / "docs").rglob("*.rst"))]
    if "_build" not in path.parts
    and path.relative_to(ROOT).as_posix() not in ELSEWHERE
    and list(blocks(path.read_text(encoding="utf-8"), "ipython"))
}
#: The port that the pages name; each test has another.
PORT = "10105"
#: What some pages need.
NEEDED = {"docs/tutorial/executor.rst": "sklearn", "docs/tutorial/dask.rst": "distributed"}
SESSION_TIMEOUT = 100.0


def play(page: list[Cell], cluster: Running, folder: Path) -> list[str]:
    """The differences between what a page shows and what its cells print now."""
    sources = ["\n".join(cell.code).replace(PORT, cluster.port) for cell in page]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "tests.docs.session"],
            input=json.dumps(sources),
            cwd=folder,
            env=cluster.env,
            capture_output=True,
            text=True,
            timeout=SESSION_TIMEOUT,
        )
        stdout, stderr = done.stdout, done.stderr
    except subprocess.TimeoutExpired as error:
        stdout, stderr = (part.decode() if part else "" for part in (error.stdout, error.stderr))
    answers = [json.loads(line) for line in stdout.splitlines()]
    found = []
    for cell, (number, printed) in zip(page, answers, strict=False):
        if cell.number != number:
            found.append(f"line {cell.line}: In [{cell.number}] is IPython's In [{number}]")
        found.append(difference(cell, printed.replace(cluster.port, PORT)))
    if len(answers) < len(page):
        cell = page[len(answers)]
        found.append(f"line {cell.line}: In [{cell.number}] never ended\n{stderr}")
    return [text for text in found if text]


@pytest.mark.parametrize("name", PAGES)
def test_page(name: str, cluster: Running, tmp_path: Path) -> None:
    if name in NEEDED and find_spec(NEEDED[name]) is None:
        pytest.skip(f"{name} needs {NEEDED[name]}, which is not installed")
    found = play(cells(PAGES[name].read_text(encoding="utf-8")), cluster, tmp_path)
    if found:
        pytest.fail("\n\n".join([f"{name}:", *found]), pytrace=False)


def test_the_readme_shows_what_ipcluster_prints(cluster: Running) -> None:
    shown = [lines for _, lines in blocks(PAGES["README.rst"].read_text(encoding="utf-8"), "console")]
    [banner] = [lines[1:] for lines in shown if lines[0].endswith("ipcluster -n 4")]
    assert matches(normal(banner), normal(cluster.banner)), "\n".join(cluster.banner)


def test_a_page_that_shows_something_else_fails(cluster: Running, tmp_path: Path) -> None:
    page = [
        Cell(1, 10, ["1 + 1"], ["Out[1]: 2"]),
        Cell(2, 12, ["1 + 1"], ["Out[2]: 3"]),
        Cell(4, 14, ["for i in range(2):", "    print(i)", ""], ["0", "1"]),
        Cell(4, 18, ["import os", "os._exit(3)"], []),
    ]
    assert play(page, cluster, tmp_path) == [
        "line 12: In [2] prints something else (- page, + now)\n- Out[2]: 3\n+ Out[2]: 2",
        "line 14: In [4] is IPython's In [3]",
        "line 18: In [4] never ended\n",
    ]


def test_cells_of_a_page() -> None:
    text = """
Title
=====
Text.

.. code-block:: console

   $ In [1]: is not a cell here

.. code-block:: ipython

   In [1]: a = 1

   In [2]: for i in range(2):
      ...:     print(i)
      ...:
   0

   1
Text again.

.. code-block:: ipython
   :emphasize-lines: 1

     In [3]: [[1,
        ...:   2]]
     Out[3]:
     [[1,
       2]]
"""
    assert cells(text) == [
        Cell(1, 12, ["a = 1"], [""]),
        Cell(2, 14, ["for i in range(2):", "    print(i)", ""], ["0", "", "1"]),
        Cell(3, 25, ["[[1,", "  2]]"], ["Out[3]:", "[[1,", "  2]]", ""][:3]),
    ]


def test_a_transcript_must_start_with_a_prompt() -> None:
    with pytest.raises(ValueError, match="line 3: a transcript starts with"):
        cells(".. code-block:: ipython\n\n   Out[1]: 3\n")


@pytest.mark.parametrize(
    ("page", "printed", "equal"),
    [
        ("a", "a", True),
        ("a", "\na  \n\n", True),
        ("a", "b", False),
        ("a", "a\nb", False),
        ("a", "", False),
        ("", "a", False),
        ("a…c", "abbbc", True),
        ("a…c", "ab\nbc", False),
        ("a\n…", "a", True),
        ("a\n…\nz", "a\n1\n2\nz", True),
        ("a\n…\nz", "a\n1\n2", False),
        ("… 60 more", "… 60 more", True),
        ("a...", "abc", False),
        ("0xcafe", "0xcaff", False),
        ("<f at 0x7f01abcd>", "<f at 0x7f02cafe>", True),
        ("(pid 4242) in 0.9 s", "(pid 17) in 12 s", True),
        ("4 engines", "5 engines", False),
        ("100%", "\r  0%\r 50%\r100%", True),
        ("00c0ffee0000-3@0-3", "123456789abc-7@0-3", True),
        ("00c0ffee0000-3@0-3", "123456789abc-7@0-2", False),
        ("task 00c0ffee0000-3#1 failed", "task 123456789abc-7#1 failed", True),
        ("00c0ffee0000-3#1", "123456789abc-7#2", False),
        ("00c0ffee0000-3#1", "123456789abc-7@1", False),
        ("x\n[stdout:0] a\n[stdout:1] b", "x\n[stdout:1] b\n[stdout:0] a", True),
        ("[stdout:0] a\n[stdout:0] b", "[stdout:0] b\n[stdout:0] a", False),
        ("[stdout:0] a\nx", "x\n[stdout:0] a", False),
    ],
)
def test_comparison(page: str, printed: str, equal: bool) -> None:
    assert (difference(Cell(1, 1, ["x"], page.split("\n")), printed) == "") is equal


def test_a_page_is_not_all_wildcards() -> None:
    for name, path in PAGES.items():
        shown = [line for cell in cells(path.read_text(encoding="utf-8")) for line in normal(cell.output)]
        assert sum(line.strip() == WILDCARD for line in shown) <= len(shown) / 4, name
