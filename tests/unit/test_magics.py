"""The magics, in a real IPython shell, on a cluster in memory."""

from __future__ import annotations

import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.completer import provisionalcompleter
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.profiledir import ProfileDir
from traitlets.config import Config

from ipython1.kernel.client import magics, streaming
from ipython1.kernel.client.multiengine import MultiEngineClient
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.client.results import ResultList
from ipython1.kernel.error import CompositeError, InvalidEngineID
from ipython1.kernel.testing import MemoryCluster


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(3) as cluster:
        yield cluster


@pytest.fixture
def mec(cluster: MemoryCluster) -> MultiEngineClient:
    return cluster.client()


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Any]:
    config = Config()
    config.HistoryManager.enabled = False
    profile = ProfileDir.create_profile_dir(os.fspath(tmp_path / "profile"))
    shell = InteractiveShell(config=config, profile_dir=profile, user_module=types.ModuleType("session"))
    yield shell
    shell.restore_sys_module_state()


@pytest.fixture
def px(shell: Any, mec: MultiEngineClient) -> magics.ParallelMagics:
    return magics.activate(mec, shell=shell)


def run(shell: Any, cell: str) -> Any:
    """Run a cell as a user does; what it raised is raised."""
    outcome = shell.run_cell(cell)
    outcome.raise_error()
    return outcome.result


# -- %px and %%px ---------------------------------------------------------------------


def lose(cluster: MemoryCluster, mec: MultiEngineClient) -> None:
    """The controller goes, and does not come back."""
    cluster.stop_controller()
    cluster.run_until(lambda: mec._core._error is not None)


@pytest.mark.usefixtures("px")
class TestPX:
    """With an active client."""

    def test_a_line(self, shell: Any, mec: MultiEngineClient) -> None:
        assert run(shell, "%px a = {'k': 5}; b = '$HOME'") is None
        assert mec["a"] == [{"k": 5}] * 3  # braces and dollars are the engines'
        assert mec["b"] == ["$HOME"] * 3

    def test_output_is_labelled(self, shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
        run(shell, "%px print(engine_id)")
        assert sorted(capsys.readouterr().out.splitlines()) == [
            "[stdout:0] 0",
            "[stdout:1] 1",
            "[stdout:2] 2",
        ]

    def test_the_value_of_the_last_expression(self, shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
        run(shell, "%px engine_id * 10")
        assert capsys.readouterr().out.splitlines() == ["[0] Out[1]: 0", "[1] Out[1]: 10", "[2] Out[1]: 20"]

    def test_a_value_of_several_lines(self, shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
        run(shell, "%%px --targets 0\nclass Two:\n    def __repr__(self):\n        return '1\\n2'\nTwo()")
        assert capsys.readouterr().out == "[0] Out[1]:\n1\n2\n"

    def test_a_rich_value(self, shell: Any, mec: MultiEngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[dict[str, Any]] = []
        monkeypatch.setattr(streaming, "running_shell", lambda: shell)
        monkeypatch.setattr(shell.display_pub, "publish", lambda data, metadata, **kw: shown.append(data))
        run(shell, "%px from IPython.display import HTML")
        run(shell, "%%px --targets 0\nHTML('<b>x</b>')")
        [bundle] = shown
        assert bundle["text/html"] == "<b>x</b>"

    def test_a_cell(self, shell: Any, mec: MultiEngineClient) -> None:
        run(shell, "%%px\nx = 1\nfor i in range(3):\n    x += i\n")
        assert mec["x"] == [4] * 3

    @pytest.mark.parametrize(
        ("option", "ids"),
        [
            ("--targets 0", [0]),
            ("--targets=-1", [2]),
            ("-t 0,2", [0, 2]),
            ("--targets 1:", [1, 2]),
            ("--targets ::2", [0, 2]),
            ("--targets all", [0, 1, 2]),
            ("", [0, 1, 2]),
        ],
    )
    def test_targets(self, shell: Any, mec: MultiEngineClient, option: str, ids: list[int]) -> None:
        run(shell, f"%%px {option}\nx = 1")
        assert [view.ids[0] for view in mec if "x" in view] == ids

    @pytest.mark.parametrize("option", ["--targets some", "--targets 1:2:3:4", "--out 1x", "--nonsense"])
    def test_bad_options(self, shell: Any, option: str) -> None:
        with pytest.raises(UsageError):
            run(shell, f"%%px {option}\nx = 1")

    def test_no_such_engine(self, shell: Any) -> None:
        with pytest.raises(InvalidEngineID):
            run(shell, "%%px --targets 7\nx = 1")

    def test_noblock(self, shell: Any) -> None:
        pending = run(shell, "%%px --noblock\nprint(1)")
        assert isinstance(pending, PendingResult)
        assert [result["stdout"] for result in pending.r] == ["1\n"] * 3

    def test_block_follows_the_client(self, shell: Any, mec: MultiEngineClient) -> None:
        mec.block = False
        assert isinstance(run(shell, "%px x = 1"), PendingResult)
        assert run(shell, "%%px --block\ny = 1") is None

    def test_out(self, shell: Any) -> None:
        run(shell, "%%px --out kept\n6 * 7")
        kept = shell.user_ns["kept"]
        assert isinstance(kept, PendingResult)
        assert [result["result"]["text/plain"] for result in kept.r] == ["42"] * 3
        run(shell, "%%px --out µ\n6 * 7")
        assert len(run(shell, "µ.r")) == 3  # in code it is another character

    def test_silent(self, shell: Any, capsys: pytest.CaptureFixture[str]) -> None:
        run(shell, "%%px --silent\n6 * 7")
        assert capsys.readouterr().out == ""

    def test_local(self, shell: Any, mec: MultiEngineClient) -> None:
        run(shell, "%%px --local\nx = 3")
        assert mec["x"] == [3] * 3
        assert shell.user_ns["x"] == 3

    def test_timeout(self, shell: Any) -> None:
        with pytest.raises(ValueError, match="timeout"):
            run(shell, "%%px --timeout 0\nx = 1")

    def test_an_error_is_raised_after_what_the_others_gave(
        self, shell: Any, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(CompositeError) as caught:
            run(shell, "%px 6 // engine_id")
        assert caught.value.engines == [0]
        out = capsys.readouterr().out
        assert "[1] Out[1]: 6" in out
        assert "[2] Out[1]: 3" in out

    def test_result(self, shell: Any) -> None:
        run(shell, "%px x = 1")
        run(shell, "%px y = 2")
        last, first = run(shell, "%result"), run(shell, "%result 1")
        assert isinstance(last, ResultList)
        assert {result["input"]["raw"] for result in last} == {"y = 2"}
        assert {result["input"]["raw"] for result in first} == {"x = 1"}
        with pytest.raises(UsageError, match="number"):
            run(shell, "%result one")

    def test_pxconfig(self, shell: Any, mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]) -> None:
        run(shell, "%pxconfig --targets 0,1 --noblock")
        pending = run(shell, "%px x = 1")
        assert pending.targets == (0, 1)
        assert mec.targets == "all"  # the client's own attributes stay
        run(shell, "%pxconfig")
        assert capsys.readouterr().out.splitlines()[-2:] == ["targets: [0, 1]", "block: False"]

    def test_a_closed_client(self, shell: Any, mec: MultiEngineClient) -> None:
        mec.close()
        with pytest.raises(UsageError, match=r"closed.*mec\.activate"):
            run(shell, "%px x = 1")

    def test_a_lost_client(self, shell: Any, mec: MultiEngineClient, cluster: MemoryCluster) -> None:
        lose(cluster, mec)
        with pytest.raises(UsageError, match=r"lost its controller.*mec\.activate\(\).*Nobody listens"):
            run(shell, "%px x = 1")


# -- %autopx -----------------------------------------------------------------------------


@pytest.mark.usefixtures("px")
class TestAutoPX:
    """Every cell goes to the engines."""

    def test_on_and_off(self, shell: Any, mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]) -> None:
        run(shell, "%autopx")
        run(shell, "x = 1\ny = x + 1")
        run(shell, "%autopx")
        run(shell, "z = 3")
        assert mec["y"] == [2] * 3
        assert "x" not in shell.user_ns
        assert shell.user_ns["z"] == 3
        assert "z" not in mec
        assert capsys.readouterr().out.splitlines() == ["%autopx enabled", "%autopx disabled"]

    def test_errors_leave_it_on_and_are_shown_once(
        self, shell: Any, mec: MultiEngineClient, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(shell, "%autopx")
        capsys.readouterr()
        outcome = shell.run_cell("1 / 0")
        assert isinstance(outcome.error_in_exec, CompositeError)
        shown = capsys.readouterr()
        assert (shown.out + shown.err).count("CompositeError: one or more") <= 1
        run(shell, "x = 1")
        assert mec["x"] == [1] * 3

    @pytest.mark.parametrize(
        "cell", ["!true", "%time x = 1", "f'''{1}\n'''", "# é ≠\nx = 'é\\n'", "if 1:\n    x = 1\n"]
    )
    def test_the_engines_ipython_reads_the_cell(self, shell: Any, mec: MultiEngineClient, cell: str) -> None:
        run(shell, "%autopx")
        run(shell, cell)
        [result] = mec.get_result(targets=0)
        assert result["input"]["raw"].strip() == cell.strip()

    @pytest.mark.parametrize(
        "cell", ["%pxconfig", "%result 1", "%px y = 1", "%%px --targets 0\ny = 1", "", " \n"]
    )
    def test_our_magics_stay_here(self, shell: Any, mec: MultiEngineClient, cell: str) -> None:
        run(shell, "%px first = 1")
        run(shell, "%autopx")
        run(shell, cell)
        [result] = mec.get_result(targets=0)
        assert result["input"]["raw"] in ("first = 1", "y = 1")

    @pytest.mark.parametrize("cell", ["exit", "quit()", "autopx"])
    def test_there_is_a_way_out(self, shell: Any, cell: str) -> None:
        run(shell, "%autopx")
        assert "run_cell_magic" not in shell.transform_cell(cell)

    def test_unfinished_input_is_still_seen_as_such(self, shell: Any) -> None:
        run(shell, "%autopx")
        assert shell.check_complete("for i in range(3):")[0] == "incomplete"
        assert shell.check_complete("x = 1")[0] == "complete"

    def test_local_cells_run_once_here(self, shell: Any, mec: MultiEngineClient) -> None:
        run(shell, "%autopx")
        run(shell, "%%px --local\nx = 3")
        assert shell.user_ns["x"] == 3
        run(shell, "y = 1")
        assert "y" in mec

    def test_the_newest_autopx_gets_the_cells(self, shell: Any, mec: MultiEngineClient) -> None:
        magics.activate(mec[2], "_last", shell)
        run(shell, "%autopx")
        run(shell, "%autopx_last")
        run(shell, "x = 1")
        assert ["x" in view for view in mec] == [False, False, True]
        run(shell, "%autopx_last")
        run(shell, "here = 1")
        assert shell.user_ns["here"] == 1


# -- which client --------------------------------------------------------------------------


def test_no_client(shell: Any) -> None:
    magics.load_ipython_extension(shell)
    for cell in ("%px x = 1", "%%px\nx = 1", "%autopx", "%result", "%pxconfig"):
        with pytest.raises(UsageError) as caught:
            run(shell, cell)
        assert "client.MultiEngineClient()" in str(caught.value)
        assert "\n" not in str(caught.value)
    run(shell, "x = 1")  # autopx is off
    assert shell.user_ns["x"] == 1


def test_a_client_that_is_lost_is_none(shell: Any, mec: MultiEngineClient) -> None:
    magics.load_ipython_extension(shell)
    with MemoryCluster(1) as gone:
        shell.user_ns["lost"] = gone.client()
        lose(gone, shell.user_ns["lost"])
        with pytest.raises(UsageError, match="No client is active"):
            run(shell, "%px x = 1")
        shell.user_ns = {"mec": mec, **shell.user_ns}  # an older one
        run(shell, "%px x = 1")
    assert mec["x"] == [1] * 3


def test_the_extension_finds_the_newest_open_client(shell: Any, cluster: MemoryCluster) -> None:
    magics.load_ipython_extension(shell)
    one, two, three = cluster.client(), cluster.client()[1:], cluster.client()
    shell.user_ns.update(one=one, two=two, three=three)
    three.close()
    run(shell, "%px x = 1")
    assert shell.magics_manager.magics["line"]["px"].__self__.view is None
    assert one["x"] == [1] * 3


def test_activate_goes_before_the_newest(shell: Any, cluster: MemoryCluster) -> None:
    one, two = cluster.client()[0], cluster.client()
    magics.activate(one, shell=shell)
    magics.load_ipython_extension(shell)
    shell.user_ns["two"] = two
    run(shell, "%px x = 1")
    assert ["x" in view for view in two] == [True, False, False]


def test_several_clients(shell: Any, mec: MultiEngineClient) -> None:
    magics.activate(mec[0], "_first", shell)
    magics.activate(mec[1:], "_rest", shell)
    run(shell, "%px_first x = 1")
    run(shell, "%%px_rest\nx = 2")
    assert mec["x"] == [1, 2, 2]


@pytest.mark.parametrize("suffix", ["-a", " ", "a b", "("])
def test_a_suffix_is_part_of_a_name(shell: Any, mec: MultiEngineClient, suffix: str) -> None:
    with pytest.raises(ValueError, match="suffix"):
        magics.activate(mec, suffix, shell)


def test_unloading(shell: Any, mec: MultiEngineClient) -> None:
    magics.activate(mec, shell=shell)
    run(shell, "%autopx")
    magics.unload_ipython_extension(shell)
    run(shell, "x = 1")
    assert shell.user_ns["x"] == 1
    assert "px" not in shell.magics_manager.magics["cell"]


def test_outside_ipython(mec: MultiEngineClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(magics, "get_ipython", lambda: None)
    with pytest.raises(RuntimeError, match="ipython or a notebook"):
        mec.activate()


def test_outputs_grouped_by_type(shell: Any, px: magics.ParallelMagics, capsys: Any) -> None:
    run(shell, "%%px --targets 0,1 --group-outputs=type\nprint(engine_id)\nengine_id * 2")
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("[")] == [
        "[stdout:0] 0",
        "[stdout:1] 1",
        "[0] Out[1]: 0",
        "[1] Out[1]: 2",
    ]


def test_outputs_cannot_be_grouped_by_anything(shell: Any, px: magics.ParallelMagics) -> None:
    with pytest.raises(UsageError, match="invalid choice: 'colour'"):
        shell.run_cell_magic("px", "--group-outputs=colour", "1")


# -- completion -----------------------------------------------------------------------


def completed(shell: Any, text: str) -> list[str]:
    """What `text` may become."""
    with provisionalcompleter():
        found = list(shell.Completer.completions(text, len(text)))
    return [text[: completion.start] + completion.text for completion in found]


def test_names_on_engines_are_completed(
    shell: Any, mec: MultiEngineClient, px: magics.ParallelMagics
) -> None:
    shell.Completer.use_jedi = False
    shell.user_ns["zero_here"] = 1
    mec.push({"zero_there": "text"})
    assert completed(shell, "%px zero") == ["%px zero_there"]
    assert completed(shell, "%%px -t 0\nx = 1\nzero_there.isdig") == ["%%px -t 0\nx = 1\nzero_there.isdigit"]
    assert completed(shell, "zero") == ["zero_here"]
    run(shell, "%autopx")
    assert completed(shell, "zero") == ["zero_there"]
    run(shell, "%autopx")
    run(shell, "%pxconfig --targets 1")
    mec.execute("only_here = 5", targets=1)
    assert completed(shell, "%px only") == ["%px only_here"]


def test_without_a_client_names_here_are_completed(shell: Any) -> None:
    magics.load_ipython_extension(shell)
    matchers = list(shell.Completer.custom_matchers)
    shell.Completer.use_jedi = False
    shell.user_ns["zero_here"] = 1
    assert completed(shell, "%px zero") == ["%px zero_here"]
    magics.unload_ipython_extension(shell)
    assert len(shell.Completer.custom_matchers) == len(matchers) - 1
