"""What engines show, and progress, in a real Jupyter kernel and on a real terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pexpect
import pytest

from ipython1.kernel import client
from ipython1.kernel.client import MultiEngineClient
from ipython1.kernel.files import ClusterFiles

from .conftest import ReactorThread

NAME = "notes"
#: Seconds that anything may take on a busy machine.
PATIENCE = 60.0
SLOW = """
def slow(seconds):
    import time
    from ipython1 import this_engine
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        this_engine.progress(seconds - left, seconds, "working")
        time.sleep(0.05)
    return seconds
"""


@pytest.fixture(scope="module")
def mec(reactor_thread: ReactorThread) -> Iterator[MultiEngineClient]:
    with client.Cluster(n=4, cluster=NAME, options=["--client-grace", "1", "--no-dashboard"]) as mec:
        yield mec


def connect() -> str:
    """Code that makes `mec` and `tc`."""
    files = ClusterFiles(NAME)
    return (
        "from ipython1.kernel import client\n"
        f"mec = client.MultiEngineClient({os.fspath(files.furl('multiengine'))!r})\n"
        f"tc = client.TaskClient({os.fspath(files.furl('task'))!r})\n"
        "mec.activate()\n"
    )


class Notebook(nbclient.NotebookClient):
    """A notebook that one types into."""

    def __init__(self) -> None:
        super().__init__(nbformat.v4.new_notebook(), timeout=PATIENCE, kernel_name="python3")
        self.updates: list[str] = []

    def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
        if msg["msg_type"] in ("display_data", "update_display_data"):
            self.updates.append(msg["content"]["data"].get("text/html", ""))
        return super().process_message(msg, cell, cell_index)

    def cell(self, source: str) -> list[Any]:
        """Run a new cell; returns its outputs."""
        self.updates.clear()
        self.nb.cells.append(nbformat.v4.new_code_cell(source))
        outputs: list[Any] = self.execute_cell(self.nb.cells[-1], len(self.nb.cells) - 1).outputs
        return outputs


@pytest.fixture(scope="module")
def notebook(mec: MultiEngineClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Notebook]:
    notebook = Notebook()
    runtime = tmp_path_factory.mktemp("runtime")
    with notebook.setup_kernel(env={**os.environ, "JUPYTER_RUNTIME_DIR": os.fspath(runtime)}):
        notebook.cell(connect() + SLOW)
        yield notebook


def shown(outputs: list[Any]) -> list[str]:
    """The outputs in their order: text as it is, and the richest type of the others."""
    found = []
    for output in outputs:
        if output.output_type == "stream":
            found += output.text.splitlines()
        else:
            types = ("image/png", "text/html", "text/latex", "text/plain")
            found.append(next(mime for mime in types if mime in output.data))
    return found


def bars(outputs: list[Any]) -> list[str]:
    """The bars among the outputs, as they ended."""
    markup = [output.data.get("text/html", "") for output in outputs if "data" in output]
    return [text for text in markup if "<progress" in text]


# -- rich output ---------------------------------------------------------------------------


def test_figures_appear_under_their_engine_in_their_cell(notebook: Notebook) -> None:
    pytest.importorskip("matplotlib")
    plot = "%%px --targets {}\nimport matplotlib.pyplot as plt\nplt.plot([1, 2]);\nprint('plotted')"
    notebook.cell("%px import matplotlib.pyplot as plt")  # takes more than two seconds at times
    outputs = shown(notebook.cell(plot.format(2)))
    assert outputs == ["[stdout:2] plotted", "[output:2]", "image/png"]
    assert shown(notebook.cell("%px a = 1")) == []


def test_matplotlib_inline_on_engines(notebook: Notebook) -> None:
    pytest.importorskip("matplotlib")
    assert shown(notebook.cell("%px %matplotlib inline")) == []
    outputs = shown(
        notebook.cell("%%px\nimport matplotlib.pyplot as plt\nplt.figure(figsize=(1, 1)); plt.plot([1]);")
    )
    assert outputs.count("image/png") == 4
    labels = outputs[::2]
    assert sorted(labels) == [f"[output:{i}]" for i in range(4)]


def test_the_figure_of_a_function_does_not_wait_for_a_later_cell(notebook: Notebook) -> None:
    pytest.importorskip("matplotlib")
    notebook.cell(
        "def plot(x=0):\n    import matplotlib.pyplot as plt\n    plt.figure(figsize=(1, 1)); plt.plot([1])"
    )
    assert shown(notebook.cell("mec[1].apply(plot, block=False).stream()")) == ["[output:1]", "image/png"]
    mapped = shown(notebook.cell("tc.map(plot, range(2), block=False).stream()"))
    assert mapped.count("image/png") == 2
    assert shown(notebook.cell("%px a = 1")) == []


def test_html_latex_and_tables(notebook: Notebook) -> None:
    pytest.importorskip("pandas")
    outputs = shown(
        notebook.cell(
            "%%px --targets 1\nfrom IPython.display import HTML, Math, display\nimport pandas as pd\n"
            "display(HTML('<b>x</b>')); display(Math('a'))\npd.DataFrame({'a': [1]})"
        )
    )
    assert outputs[:4] == ["[output:1]", "text/html", "[output:1]", "text/latex"]
    assert re.fullmatch(r"\[1\] Out\[\d+\]:", outputs[4])
    assert outputs[5:] == ["text/html"]
    [result] = notebook.cell('mec.execute(\'display(Math("a")); pd.DataFrame({"a": [1]})\', targets=1)')
    assert "<div>$\\displaystyle a$</div>" in result.data["text/html"]
    assert 'class="dataframe"' in result.data["text/html"]


def test_a_display_is_updated_in_place(notebook: Notebook) -> None:
    outputs = notebook.cell(
        "%%px --targets 0\nfrom IPython.display import HTML, display\n"
        "h = display(HTML('<i>1</i>'), display_id=True)\nh.update(HTML('<i>2</i>'))"
    )
    assert shown(outputs) == ["[output:0]", "text/html"]
    assert outputs[1].data["text/html"] == "<i>2</i>"


# -- progress in a notebook ----------------------------------------------------------------


def test_progress_is_seen_while_engines_work(notebook: Notebook) -> None:
    outputs = notebook.cell("mec[:2].apply(slow, 1.5, block=False).wait_interactive()")
    moving = [text for text in notebook.updates if "working" in text]
    assert len(set(moving)) >= 4
    assert re.search(r"<code>\[[01](-1)?\]</code> <progress", moving[0])
    [end] = bars(outputs)
    assert "2 of 2 engines" in end
    assert "working" not in end


@pytest.mark.parametrize(
    ("call", "after"),
    [
        ("mec.map(slow, [2.6] * 4)", 2.0),
        ("tc.map(slow, [0.9] * 4)", 0.3),
        ("%px slow(2.4)", 2.0),
        ("mec.apply(slow, 0.9)", 0.3),
    ],
)
def test_what_takes_long_shows_a_bar(notebook: Notebook, call: str, after: float) -> None:
    notebook.cell(f"from ipython1.kernel.client import progress; progress.BAR_AFTER = {after}")
    notebook.cell("mec.push_function({'slow': slow})")
    outputs = notebook.cell(call)
    [end] = bars(outputs)
    assert '<progress value="4" max="4"' in end
    assert any("working" in text for text in notebook.updates)


def test_what_is_quick_shows_none(notebook: Notebook) -> None:
    notebook.cell("progress.BAR_AFTER = 2.0")
    for call in ("mec.map(slow, [0.1] * 4)", "tc.map(abs, range(50))", "%px 1", "mec.wait_for_engines(4)"):
        assert bars(notebook.cell(call)) == []


def test_an_error_leaves_a_bar_that_says_so(notebook: Notebook) -> None:
    outputs = notebook.cell(
        "progress.BAR_AFTER = 0.3\n"
        "try:\n    mec.map(lambda x: 1 / slow(x), [0.9, 0.9, 0.9, 0])\nexcept Exception as error:\n    pass"
    )
    [end] = bars(outputs)
    assert "4 of 4 engines, 1 failed" in end


def test_results_status_and_queues_are_tables(notebook: Notebook) -> None:
    [output] = notebook.cell("mec.status()")
    assert output.data["text/html"].count("<tr>") == 5
    [output] = notebook.cell(
        "prs = [mec.execute('slow(0.5)', block=False) for _ in range(3)]; mec.queue_status()"
    )
    assert '<td style="text-align: left">slow(0.5)' in output.data["text/html"]
    [output] = notebook.cell("prs[-1]")
    assert "0 of 4 finished" in output.data["text/html"]
    notebook.cell("mec.barrier(prs)")


# -- progress on a terminal ----------------------------------------------------------------


def on_a_terminal(code: str, folder: Path, **env: str) -> str:
    """What a program prints."""
    script = folder / "script.py"
    script.write_text(connect().replace("mec.activate()\n", "") + SLOW + code)
    process = pexpect.spawn(
        sys.executable,
        [os.fspath(script)],
        encoding="utf-8",
        timeout=PATIENCE,
        dimensions=(30, 120),
        env={**os.environ, **env},
    )
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus == 0, process.before
    printed: str = process.before
    return printed


def test_a_terminal_has_a_line_that_goes(mec: MultiEngineClient, tmp_path: Path) -> None:
    printed = on_a_terminal("print(mec.apply(slow, 2.6))\n", tmp_path)
    assert re.search(r"\rapply +\d+%\|.*\| 0 of 4 engines, \d\.\d s.*\[0", printed)
    assert "working" in printed
    assert re.search(r"\r +\r\[2.6, 2.6, 2.6, 2.6\]\r\n$", printed)  # wiped out


def test_it_can_be_switched_off(mec: MultiEngineClient, tmp_path: Path) -> None:
    printed = on_a_terminal(
        "mec.apply(slow, 0.2, block=False).wait_interactive()\n", tmp_path, TQDM_DISABLE="1"
    )
    assert printed == ""


def test_output_is_printed_above_the_bar(mec: MultiEngineClient, tmp_path: Path) -> None:
    code = (
        "pr = mec[0].execute('import time\\nfor i in range(5): print(i); time.sleep(0.2)', block=False)\n"
        "pr.stream(progress_after=0)\n"
    )
    printed = on_a_terminal(code, tmp_path)
    assert "execute" in printed
    lines = re.findall(r"(?:^|\r) *\r?\[stdout:0\] (\d)\r\n", printed)
    assert lines == list("01234")


def test_large_objects_are_counted_while_they_are_sent(mec: MultiEngineClient, tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    code = (
        "import numpy as np\nfrom ipython1.kernel.client import progress\n"
        "progress.BAR_AFTER = 0.1\n"
        "mec._core._blobs._shared.put = lambda buffers: None\n"  # as where there is no room in it
        "mec.push({'a': np.ones(12_000_000)})\n"
        "mec.execute('a = None')\n"
    )
    printed = on_a_terminal(code, tmp_path)
    assert re.search(r"push +\d+%\|[^|]*\| \d+\.\d MB of 96.0 MB sent", printed)
