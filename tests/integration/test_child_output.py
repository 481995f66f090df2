"""What child processes and C code of a command write is output of that command."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ipython1.kernel import client
from ipython1.kernel.client import CompositeError, MultiEngineClient

from .conftest import ReactorThread


@pytest.fixture(scope="module")
def mec(reactor_thread: ReactorThread) -> Iterator[MultiEngineClient]:
    with client.Cluster(n=1) as mec:
        mec.execute("import ctypes, os, subprocess, sys")
        yield mec


def output(mec: MultiEngineClient, code: str) -> tuple[str, str]:
    [result] = mec.execute(code + "\nNone", timeout=30)
    return result.get("stdout", ""), result.get("stderr", "")


def test_child_processes(mec: MultiEngineClient) -> None:
    assert output(mec, "os.system('echo hi; echo no >&2')") == ("hi\n", "no\n")
    assert output(mec, "subprocess.run(['echo', 'hi'])") == ("hi\n", "")
    assert output(mec, "None") == ("", "")


def test_c_code_and_bare_descriptors(mec: MultiEngineClient) -> None:
    assert output(mec, "ctypes.CDLL(None).printf(b'not a whole line')") == ("not a whole line", "")
    assert output(mec, "os.write(1, b'out'); os.write(2, b'err')") == ("out", "err")


def test_the_order_is_that_of_the_program(mec: MultiEngineClient) -> None:
    assert output(mec, "print('a')\nos.system('sleep 0.01; echo b')\nprint('c')") == ("a\nb\nc\n", "")


def test_processes_that_were_forked(mec: MultiEngineClient) -> None:
    fork = "multiprocessing.get_context('fork')"
    code = f"import multiprocessing\nwith {fork}.Pool(1) as p: p.map(print, [1, 2])"
    assert output(mec, code) == ("1\n2\n", "")


def test_it_comes_while_the_command_runs(mec: MultiEngineClient) -> None:
    pending = mec.execute("subprocess.run('echo one; exec sleep 30', shell=True)", block=False)
    deadline = time.monotonic() + 20
    while not pending.stdout[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert pending.stdout == ["one\n"]
    assert not pending.ready()
    pending.abort(interrupt=True)
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        pending.result(timeout=20)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("os.write(2, b'last words\\n'); os._exit(3)", "exit status 3"),
        ("os.system('echo last words >&2'); os.kill(os.getpid(), 9)", "killed by signal 9 (SIGKILL)"),
    ],
)
def test_the_last_words_of_an_engine_that_died(mec: MultiEngineClient, code: str, cause: str) -> None:
    with pytest.raises(CompositeError) as caught:
        mec.execute("import os\n" + code)
    [failure] = caught.value.elist
    assert failure.facts["cause"] == cause
    assert failure.facts["output"].endswith("last words")
