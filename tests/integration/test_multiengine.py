"""A real cluster, driven as its users drive it, well and badly."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ipython1.kernel import client
from ipython1.kernel.client import CompositeError, MultiEngineClient
from ipython1.kernel.error import (
    BadFURL,
    ClientClosed,
    InvalidEngineID,
    NobodyListening,
    NoFURLFile,
    NotAllowed,
    SerializationError,
    VersionMismatch,
    WrongController,
)
from ipython1.kernel.files import ClusterFiles
from ipython1.kernel.wire.segments import user_folder

from .conftest import ReactorThread


@pytest.fixture(scope="module")
def cluster() -> client.Cluster:
    return client.Cluster(n=4)


@pytest.fixture(scope="module")
def mec(reactor_thread: ReactorThread, cluster: client.Cluster) -> Iterator[MultiEngineClient]:
    with cluster as mec:
        yield mec


@pytest.fixture(autouse=True)
def _all_well_afterwards(mec: MultiEngineClient) -> Iterator[None]:
    """Whatever a test did, the same connection and the same engines go on working."""
    yield
    assert mec.execute("1 + 1", timeout=10)[3]["result"]["text/plain"] == "2"
    assert mec.get_ids() == [0, 1, 2, 3]


def failures(mec: MultiEngineClient, code: str, **keywords: Any) -> CompositeError:
    with pytest.raises(CompositeError) as caught:
        mec.execute(code, **keywords)
    return caught.value


# -- what it is for -----------------------------------------------------------------------


def test_the_specs_first_transcript(mec: MultiEngineClient) -> None:
    mec.reset()
    assert mec.get_ids() == [0, 1, 2, 3]
    assert repr(mec.execute("a=5")) == (
        "<Results List>\n[0] In [1]: a=5\n[1] In [1]: a=5\n[2] In [1]: a=5\n[3] In [1]: a=5"
    )
    assert repr(mec.execute("c=a+10", targets=[0, 2])) == (
        "<Results List>\n[0] In [2]: c=a+10\n[2] In [2]: c=a+10"
    )
    assert repr(mec.execute("print(c)", targets=[0, 2])) == (
        "<Results List>\n[0] In [3]: print(c)\n[0] Out[3]: 15\n\n[2] In [3]: print(c)\n[2] Out[3]: 15\n"
    )
    mec.reset()
    for _ in range(3):
        mec.execute("pass")
    assert str(mec.execute("d=10; print(d)")[0]) == (
        "{'input': {'translated': 'd=10; print(d)', 'raw': 'd=10; print(d)'}, "
        "'number': 4, 'id': 0, 'stdout': '10\\n'}"
    )


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_arrays_and_frames_arrive_equal_and_writable(mec: MultiEngineClient, size: int) -> None:
    array = np.arange(size, dtype=float)
    frame = pd.DataFrame({"x": array, "name": [f"n{i % 7}" for i in range(size)]}) if size < 1e6 else None
    mec.push({"array": array, "frame": frame})
    mec.execute("array += 1; array[0] = engine_id")
    for engine, back in enumerate(mec["array"]):
        assert back[0] == engine
        assert np.array_equal(back[1:], array[1:] + 1)
        back[:] = 0
    if frame is not None:
        pd.testing.assert_frame_equal(mec.pull("frame", targets=2)[0], frame)
    mec.scatter("part", array)
    assert np.array_equal(mec.gather("part"), array)


def test_mutation_after_the_call_changes_nothing(mec: MultiEngineClient) -> None:
    array = np.zeros(1_000_000)
    pending = [mec.push({f"a{i}": array}, block=False) for i in range(3)]
    array[:] = 7
    mec.barrier(pending)
    assert mec.execute("float(abs(a0).max() + a2.max())")[0]["result"]["text/plain"] == "0.0"


def test_many_pipelined_commands_keep_their_order(mec: MultiEngineClient) -> None:
    mec.execute("log = []")
    pending = [mec.execute(f"log.append({i})", block=False) for i in range(1000)]
    concurrent.futures.wait(pending, timeout=60)
    assert mec["log"] == [list(range(1000))] * 4


def test_output_streams_while_the_code_runs(mec: MultiEngineClient) -> None:
    pending = mec.execute(
        "print('early')\nimport time; time.sleep(0.5); print('late')", block=False, targets=1
    )
    deadline = time.monotonic() + 10
    while pending.stdout != ["early\n"]:
        assert time.monotonic() < deadline
        assert "late" not in "".join(pending.stdout)
        time.sleep(0.01)
    assert not pending.ready()
    assert pending.get_result()[0]["stdout"] == "early\nlate\n"


def test_rich_results_and_displays(mec: MultiEngineClient) -> None:
    code = textwrap.dedent(
        """
        from IPython.display import HTML, display
        display(HTML('<b>hi</b>'))
        class Picture:
            def _repr_png_(self): return b'\\x89PNG...'
        Picture()
        """
    )
    (result,) = mec.execute(code, targets=0)
    assert result["outputs"][0]["data"]["text/html"] == "<b>hi</b>"
    assert result["result"]["image/png"] in (b"\x89PNG...", "iVBORy4uLg==\n", "iVBORy4uLg==")


def test_shell_commands_and_top_level_await(mec: MultiEngineClient) -> None:
    assert mec.execute("!echo from the shell", targets=0)[0]["stdout"].strip() == "from the shell"
    code = "import asyncio\nawait asyncio.sleep(0, 'waited')"
    assert mec.execute(code, targets=0)[0]["result"]["text/plain"] == "'waited'"


def test_interrupt_keeps_the_namespace(mec: MultiEngineClient) -> None:
    mec.execute("kept = 42")
    pending = mec.execute("import time\nprint('on')\ntime.sleep(60)", block=False)
    deadline = time.monotonic() + 10
    while pending.stdout != ["on\n"] * 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    mec.interrupt()
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        pending.get_result(timeout=10)
    assert mec["kept"] == [42] * 4


def test_a_timeout_interrupts(mec: MultiEngineClient) -> None:
    error = failures(mec, "while True: pass", timeout=0.3, targets=[1])
    assert error.elist[0].ename == "CommandTimeout"
    with pytest.raises(TimeoutError):
        error.raise_exception()


def test_results_are_found_by_id_from_another_client(mec: MultiEngineClient, cluster: client.Cluster) -> None:
    pending = mec.execute("import time; time.sleep(0.5); 'slow'", block=False)
    done = mec.execute("'done'", block=False)
    path = os.fspath(ClusterFiles(cluster.cluster).furl("multiengine"))
    with MultiEngineClient(path) as other:
        found = other.get_pending(pending.id).get_result(timeout=20)
        assert [r["result"]["text/plain"] for r in found] == ["'slow'"] * 4
        assert [r["id"] for r in other.get_pending(done.id).get_result(timeout=20)] == [0, 1, 2, 3]
    assert pending.get_result(timeout=20)[0]["result"]["text/plain"] == "'slow'"


def test_stop_on_error_cancels_only_what_this_client_queued(
    mec: MultiEngineClient, cluster: client.Cluster
) -> None:
    path = os.fspath(ClusterFiles(cluster.cluster).furl("multiengine"))
    with MultiEngineClient(path) as other:
        mec.execute("ran = []")
        mec.stop_on_error = True
        try:
            first = mec.execute("import time; time.sleep(0.3); 1/0", block=False)
            mine = mec.execute("ran.append('mine')", block=False)
            others = other.execute("ran.append('other')", block=False)
            for pending, expected in ((first, "ZeroDivisionError"), (mine, "QueueCleared")):
                with pytest.raises(CompositeError, match=expected):
                    pending.get_result(timeout=20)
            others.get_result(timeout=20)
            mec.execute("ran.append('afterwards')")
        finally:
            mec.stop_on_error = False
    assert mec["ran"] == [["other", "afterwards"]] * 4


def test_cancel_tells_the_truth(mec: MultiEngineClient, tmp_path: Path) -> None:
    mec.execute("import time; ran = set()")
    said = {}
    for round in range(20):
        pending = [mec.execute(f"ran.add(({round}, {n}))", targets=0, block=False) for n in range(10)]
        said |= {(round, n): pending[n].cancel() for n in (9, 5, 2)}
        mec.barrier(pending)
    [ran] = mec.pull("ran", targets=0)
    assert {key for key, cancelled in said.items() if not cancelled} == said.keys() & ran
    started = f"open(r'{tmp_path}/%d' % engine_id, 'w').close()"
    running = mec.execute(f"{started}; time.sleep(30)", block=False)
    while len(list(tmp_path.iterdir())) < 4:
        time.sleep(0.01)
    assert not running.running()  # nobody has said so yet
    behind = mec.execute("ran.add('behind')", block=False)
    assert not running.cancel()  # at once, not after 30 s
    assert behind.cancel()
    running.abort(interrupt=True)
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        running.result(timeout=20)
    assert "behind" not in set().union(*mec["ran"])


def test_the_arguments_of_an_engine_are_its_own(mec: MultiEngineClient) -> None:
    assert mec.apply(lambda: __import__("sys").argv) == [["ipengine"]] * 4


# -- surroundings ----------------------------------------------------------------------------


def test_await_in_asyncio(mec: MultiEngineClient) -> None:
    async def main() -> list[Any]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticker = asyncio.ensure_future(tick())
        pending = [
            mec.apply(lambda i=i: (__import__("time").sleep(0.2), i)[1], block=False) for i in range(3)
        ]
        results = await asyncio.gather(*pending)
        ticker.cancel()
        assert ticks > 5
        mec.execute("1")  # blocking calls work where a loop runs, too
        return list(results)

    assert asyncio.run(main()) == [[0] * 4, [1] * 4, [2] * 4]


def test_await_in_a_twisted_coroutine(mec: MultiEngineClient, reactor_thread: ReactorThread) -> None:
    from twisted.internet.defer import ensureDeferred

    async def main() -> Any:
        with pytest.raises(RuntimeError, match="reactor"):
            mec.execute("1")
        return await mec.execute("40 + 2", targets=[3], block=False)

    (result,) = reactor_thread.call(lambda: ensureDeferred(main()))
    assert result["result"]["text/plain"] == "42"


def test_threads_share_a_client(mec: MultiEngineClient) -> None:
    errors: list[Exception] = []

    def work(k: int) -> None:
        try:
            for i in range(20):
                mec.push({f"t{k}": i}, targets=[k % 4])
                assert mec.pull(f"t{k}", targets=[k % 4]) == [i]
        except Exception as error:  # noqa: BLE001 -- the main thread looks at it
            errors.append(error)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors


def run_script(code: str, furl: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "IPYTHON1_FURL": furl},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture
def furl_file(cluster: client.Cluster) -> str:
    return os.fspath(ClusterFiles(cluster.cluster).furl("multiengine"))


def test_a_forked_child_gets_an_error_and_never_hangs(mec: MultiEngineClient, furl_file: str) -> None:
    code = """
        import os, sys, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from ipython1.kernel import client
        mec = client.MultiEngineClient()
        pending = mec.execute("1", block=False)
        pid = os.fork()
        if pid == 0:
            uses = lambda: mec.execute("2"), lambda: pending.get_result(), lambda: client.MultiEngineClient()
            for use in uses:
                try:
                    use()
                except client.ClientClosed as error:
                    assert "fork" in str(error), error
                else:
                    if use is not None and not pending.ready():
                        os._exit(3)
            sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        print(mec.execute("print('parent')", targets=0)[0]["stdout"])
    """
    done = run_script(code, furl_file)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "parent", "")


def test_a_running_twisted_program_keeps_its_reactor(mec: MultiEngineClient, furl_file: str) -> None:
    code = """
        from twisted.internet import reactor, threads
        from ipython1.kernel import client
        def work():
            with client.MultiEngineClient() as mec:
                return mec.map(lambda x: x ** 2, range(8))
        def show(result):
            print(result)
            reactor.callLater(0.1, reactor.stop)
        reactor.callWhenRunning(lambda: threads.deferToThread(work).addBoth(show))
        reactor.run()
        print("reactor stopped by its owner")
    """
    done = run_script(code, furl_file)
    assert done.stdout.split("\n")[:2] == ["[0, 1, 4, 9, 16, 25, 36, 49]", "reactor stopped by its owner"]
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_interrupts_the_engines_and_raises_here(mec: MultiEngineClient, furl_file: str) -> None:
    code = """
        import os, signal, threading, time
        from ipython1.kernel import client
        mec = client.MultiEngineClient()
        mec.execute("x = 1")
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        started = time.monotonic()
        try:
            mec.execute("import time; time.sleep(60)")
        except KeyboardInterrupt:
            print("interrupted", time.monotonic() - started < 5)
        print(mec["x"])
    """
    done = run_script(code, furl_file)
    assert (done.returncode, done.stdout.split("\n")[:2]) == (0, ["interrupted True", "[1, 1, 1, 1]"]), (
        done.stderr
    )


def test_a_script_that_leaves_work_behind_exits_at_once(mec: MultiEngineClient, furl_file: str) -> None:
    code = """
        from ipython1.kernel import client
        mec = client.MultiEngineClient()
        mec.execute("left_behind = 1", block=False)
    """
    done = run_script(code, furl_file, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    deadline = time.monotonic() + 10
    while not all(
        mec.execute("'left_behind' in globals()")[i]["result"]["text/plain"] == "True" for i in range(4)
    ):
        assert time.monotonic() < deadline
    mec.reset()


# -- bad input ------------------------------------------------------------------------------------


def test_unknown_targets(mec: MultiEngineClient) -> None:
    with pytest.raises(InvalidEngineID, match=r"no engine 9\. The engines are: 0 1 2 3"):
        mec.execute("1", targets=[0, 9])


def test_no_furl_file(mec: MultiEngineClient) -> None:
    with pytest.raises(NoFURLFile, match="ipcluster"):
        MultiEngineClient(cluster="nothing-here")
    with pytest.raises(NoFURLFile):
        MultiEngineClient("/nowhere/ipcontroller-mec.furl")
    with pytest.raises(BadFURL):
        MultiEngineClient("pb://garbage")


def test_wrong_furls(mec: MultiEngineClient, cluster: client.Cluster) -> None:
    files = ClusterFiles(cluster.cluster)
    furl = files.furl("multiengine").read_text().strip()
    with pytest.raises(NotAllowed, match="FURL"):
        MultiEngineClient(files.furl("engine").read_text().strip())
    with pytest.raises(NotAllowed):
        MultiEngineClient(furl.rpartition("/")[0] + "/abcdefghijklmnopqrstuvwxyz234567")
    with pytest.raises(WrongController, match="certificate"):
        MultiEngineClient("pb://" + "a" * 32 + furl[furl.index("@") :])


def test_the_furl_to_look_with(mec: MultiEngineClient, cluster: client.Cluster) -> None:
    files = ClusterFiles(cluster.cluster)
    with client.ViewClient(files.furl("view")) as view, client.ViewClient(cluster=cluster.cluster) as same:
        assert view.ids == same.ids == mec.get_ids()
        assert [row["pid"] for row in view.status()] == [row["pid"] for row in mec.status()]
    with pytest.raises(NotAllowed):
        MultiEngineClient(files.furl("view"))
    with pytest.raises(NotAllowed):
        client.ViewClient(files.furl("task"))


def test_nobody_listens(mec: MultiEngineClient, cluster: client.Cluster) -> None:
    furl = ClusterFiles(cluster.cluster).furl("multiengine").read_text().strip()
    tub, _, rest = furl.partition("@")
    name = rest.partition("/")[2]
    with pytest.raises(NobodyListening, match=r"127\.0\.0\.1:1 "):
        MultiEngineClient(f"{tub}@tcp:127.0.0.1:1/{name}")


def test_another_version(mec: MultiEngineClient, furl_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipython1.kernel.wire.connection.__version__", "0.1.0")
    with pytest.raises(VersionMismatch, match=r"0\.1\.0"):
        MultiEngineClient(furl_file)


def test_what_cannot_be_pickled(mec: MultiEngineClient) -> None:
    with pytest.raises(SerializationError, match="lock"):
        mec.push({"x": threading.Lock()})
    mec.execute("import threading; lock = threading.Lock()")
    with pytest.raises(CompositeError, match="lock"):
        mec.pull("lock")
    error = failures(
        mec, "class Odd(Exception):\n    def __reduce__(self): raise TypeError('never')\nraise Odd('x')"
    )
    assert error.elist[0].ename == "Odd"
    with pytest.raises(client.RemoteError, match="Odd"):
        error.raise_exception()


@pytest.mark.parametrize(
    ("code", "ename"),
    [
        ("a = 1\x00", "SyntaxError|ValueError"),
        ("a = (", "SyntaxError"),
        ("'\ud800'.encode()", "Unicode|Syntax"),
        ("raise ValueError('\\ud800 ' * 1000)", "ValueError"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("import sys; sys.exit()", "SystemExit"),
        ("import sys; sys.exit('a reason')", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class E(BaseException):\n    def __str__(self): raise TypeError\nraise E()", "E"),
        ("raise Exception('x' * 10_000_000)", "Exception"),
    ],
)
def test_code_that_fails_is_an_error_of_that_command(mec: MultiEngineClient, code: str, ename: str) -> None:
    error = failures(mec, code)
    assert error.engines == [0, 1, 2, 3]
    import re

    assert re.search(ename, error.elist[0].ename)
    assert len(str(error)) < 100_000
    str(error).encode()


def test_lone_surrogates_travel_in_objects_and_are_shown_in_output(mec: MultiEngineClient) -> None:
    mec["s"] = "a\ud800b"
    assert mec["s"] == ["a\ud800b"] * 4
    assert mec.execute("print(s)", targets=0)[0]["stdout"] == "a\\ud800b\n"


def test_deeply_nested_objects(mec: MultiEngineClient) -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(SerializationError):
        mec.push({"nested": nested})
    mec.execute("nested = []\nfor _ in range(100_000): nested = [nested]")
    with pytest.raises(CompositeError):
        mec.pull("nested")
    mec.execute("del nested")


def test_100_mb_of_stdout_are_cut_with_a_word(mec: MultiEngineClient) -> None:
    (result,) = mec.execute("for _ in range(100): print('x' * 1_000_000)", targets=0)
    assert 30_000_000 < len(result["stdout"]) < 40_000_000
    assert "MiB" in result["stderr"]


def test_a_closed_client_says_so(mec: MultiEngineClient, furl_file: str) -> None:
    other = MultiEngineClient(furl_file)
    other.close()
    with pytest.raises(ClientClosed):
        other.execute("1")


def test_an_engine_that_exits_comes_back_under_its_id(mec: MultiEngineClient) -> None:
    mec.execute("x = 1")
    started = time.monotonic()
    error = failures(
        mec,
        "import os, sys\nif engine_id == 2:\n    print('last words', file=sys.stderr)\n    os._exit(3)",
    )
    assert time.monotonic() - started < 5
    assert error.engines == [2]
    assert error.elist[0].ename == "EngineDied"
    assert "exit status 3" in str(error)
    died = error.elist[0].exception()
    assert died.engine == 2  # type: ignore[attr-defined]
    assert mec.execute("engine_id", timeout=20)[2]["result"]["text/plain"] == "2"
    assert mec.pull("x", targets=[0, 1, 3]) == [1, 1, 1]


def test_warnings_and_logging_of_user_code_are_its_output(mec: MultiEngineClient) -> None:
    code = "import logging, warnings; warnings.warn('mind'); logging.warning('said')"
    [result] = mec.execute(code, targets=0)
    assert "UserWarning: mind" in result["stderr"]
    assert "WARNING:root:said" in result["stderr"]


def test_a_pool_of_processes_on_an_engine_ends(mec: MultiEngineClient) -> None:
    def absolutes() -> list[int]:
        import multiprocessing

        with multiprocessing.get_context("fork").Pool(2) as pool:
            return pool.map(abs, [-1, 2])

    assert mec.apply(absolutes, targets=0, block=False).result(timeout=30) == [[1, 2]]


# -- shared memory ----------------------------------------------------------------------------


def segments() -> list[str]:
    """What is in our folder of shared memory, but for the host's token."""
    folder = user_folder()
    assert folder is not None
    return [f"{path.parent.name}/{path.name}" for path in folder.glob("*/*") if path.name != "owner"]


@pytest.mark.skipif(user_folder() is None, reason="there is no shared memory here")
def test_bulk_bytes_cross_once_through_shared_memory(mec: MultiEngineClient) -> None:
    array = np.arange(2_000_000)
    mec.push({"shared": array})
    assert len(segments()) >= 1
    mec.execute("shared += engine_id")
    pulled = mec["shared"]
    for engine, back in enumerate(pulled):
        assert np.array_equal(back, array + engine)
        back += 1
    assert [int(back[0]) for back in mec["shared"]] == [0, 1, 2, 3]


@pytest.mark.skipif(user_folder() is None, reason="there is no shared memory here")
def test_views_of_shared_memory_keep_their_bytes(mec: MultiEngineClient) -> None:
    """Later transfers reuse segments, but never one that somebody still sees."""
    kept = {}
    for i in range(20):
        mec.push({f"v{i}": np.full(500_000, i), "other": np.full(500_000, -1)})
        mec.execute(f"w{i} = v{i}[1000:1010]; del v{i}")
        kept[i] = mec.pull("other", targets=i % 4)[0][:7]
    for i in range(20):
        assert (kept[i] == -1).all()
        assert all((part == i).all() for part in mec[f"w{i}"])
    mec.reset()


@pytest.mark.skipif(user_folder() is None, reason="there is no shared memory here")
def test_what_killed_processes_leave_in_shared_memory_is_swept(
    mec: MultiEngineClient, furl_file: str
) -> None:
    code = """
        import os, signal
        import numpy as np
        from ipython1.kernel import client
        mec = client.MultiEngineClient()
        mec.push({"left": np.zeros(1_000_000)}, targets=0)
        pending = mec.push({"left": np.ones(1_000_000)}, targets=0, block=False)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    before = {name.split("/")[0] for name in segments()}
    assert run_script(code, furl_file).returncode == -9
    deadline = time.monotonic() + 15
    while {name.split("/")[0] for name in segments()} - before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
