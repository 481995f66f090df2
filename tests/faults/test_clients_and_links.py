"""Clients that are killed, connections that are cut or slow, strangers at the port."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from .conftest import PATIENCE, Proxy, Rig, environment, until
from .test_engine_deaths import pid_of

CLIENT = """
    import os, sys, time
    from ipython1.kernel import client
    mec = client.MultiEngineClient(cluster=sys.argv[1])
    mec.execute("import time; ran = ['first']; time.sleep(1.5)", targets=[0], block=False)
    for i in range(200):
        mec.execute(f"ran.append({i})", targets=[0], block=False)
    while len(dict(mec.queue_status())[0]["queue"]) < 200:
        time.sleep(0.01)
    print("sent", flush=True)
    time.sleep(100)
"""


def killed_client(cluster: str) -> None:
    """A client with much in the queue of engine 0, killed."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CLIENT), cluster],
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "sent\n"
        finally:
            process.send_signal(signal.SIGKILL)


def test_what_a_killed_client_has_queued_is_dropped(start: Callable[..., Rig]) -> None:
    rig = start(2, "--client-grace", "0.3")
    mec = rig.client()
    killed_client(rig.files.cluster)
    mine = mec.execute("ran", targets=[0], block=False)
    until(lambda: mine.ready() or len(dict(mec.queue_status())[0]["queue"]) <= 1, "its commands are dropped")
    assert mine.get_result(timeout=10)[0]["result"]["text/plain"] == "['first']"
    assert mec.apply(lambda: 7) == [7, 7]


def test_a_controller_in_between_does_not_save_what_a_killed_client_left(start: Callable[..., Rig]) -> None:
    rig = start(1, "--client-grace", "0.3")
    mec = rig.client()
    killed_client(rig.files.cluster)
    controller = rig.state.controller
    rig.kill(controller)
    until(lambda: rig.state.controller != controller, "a new controller")
    assert mec.execute("1", timeout=30)[0]["input"]["raw"] == "1"
    until(lambda: not dict(mec.queue_status())[0]["queue"], "nothing is left")
    # It had the first 64 in hand; those that had their turn before the grace time was over have run.
    ran = mec.pull("ran")[0]
    assert ran[0] == "first"
    assert ran[1:] == list(range(len(ran) - 1))
    assert len(ran) < 200


def test_a_client_whose_connection_is_cut_again_and_again(start: Callable[..., Rig], proxy: Proxy) -> None:
    rig = start(2)
    mec = rig.connect(proxy.furl(rig.files.furl("multiengine").read_text()))
    mec.execute("log = []")
    chance = random.Random(5)
    array = np.arange(200_000.0)
    pending = []
    for i in range(120):
        code = f"log.append({i}); print({i})"
        pending.append(mec.execute(code, block=False))
        if i % 30 == 10:
            mec.push({"big": array + i}, block=False)
            pending.append(mec.pull("big", block=False))
        if i % 20 == 15:
            until(lambda: any(each.ready() for each in pending[-10:]), "some have run")
            proxy.delay = chance.choice([0.0, 0.002])
            time.sleep(chance.random() * 0.05)
            proxy.cut()
    results = [each.get_result(timeout=PATIENCE) for each in pending]
    printed = [result for result in results if isinstance(result[0], dict)]
    assert [[r["stdout"] for r in result] for result in printed] == [[f"{i}\n"] * 2 for i in range(120)]
    pulled = [result for result in results if not isinstance(result[0], dict)]
    assert [[r[3] for r in result] for result in pulled] == [[i + 3.0] * 2 for i in (10, 40, 70, 100)]
    assert mec["log"] == [list(range(120))] * 2
    assert proxy.accepted > 5
    assert not mec.pending


def test_everybody_is_cut_off_at_once(start: Callable[..., Rig], proxy: Proxy) -> None:
    """Engines and nanny too: their ids and namespaces stay."""
    rig = start(2, "--location", f"127.0.0.1:{proxy.port}")
    mec = rig.client()
    engines = [pid_of(mec, id) for id in (0, 1)]
    mec.execute("log = []")
    pending = []
    for i in range(60):
        pending.append(
            mec.execute(f"print({i}); log.append({i}); import time; time.sleep(0.003)", block=False)
        )
        if i % 20 == 10:
            until(pending[-5].ready, "some have run")
            assert proxy.cut() >= 4
    for i, each in enumerate(pending):
        assert [r["stdout"] for r in each.get_result(timeout=PATIENCE)] == [f"{i}\n"] * 2
    assert mec["log"] == [list(range(60))] * 2
    assert [pid_of(mec, id) for id in (0, 1)] == engines
    assert mec.get_ids() == [0, 1]
    proxy.cut()
    victim = engines[1]  # an engine dies while nobody reaches anybody
    rig.kill(victim)
    until(lambda: pid_of(mec, 1) not in (0, victim), "it is back under its id")
    assert mec.apply(lambda: 7) == [7, 7]


def test_strangers_at_the_port(start: Callable[..., Rig]) -> None:
    rig = start(1)
    mec = rig.client()
    port = rig.state.port
    guests = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(200)]
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)  # TLS, half of a ClientHello
    tub = rig.files.furl("multiengine").read_text()[5:37].encode()
    right = b"GET /id/" + tub + b" HTTP/1.1\r\nHost: x\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
    sayings = [
        os.urandom(100_000),
        b"GET / HTTP/1.1\r\n\r\n",
        hello,
        right + hello,
        right + os.urandom(1000),
        b"\r\n" * 9,
    ]
    try:
        for guest, words in zip(guests, sayings, strict=False):
            try:
                guest.sendall(words)
            except OSError:  # shown out in the middle of it
                pass
        for guest in guests[10:20]:
            guest.close()
        for _ in range(20):
            assert mec.execute("1 + 1", timeout=10)[0]["result"]["text/plain"] == "2"
        with rig.connect() as other:
            assert other.get_ids() == [0]
    finally:
        for guest in guests:
            guest.close()
    log = (rig.files.log / "ipcontroller.log").read_text()
    assert "Traceback" not in log
    assert psutil_of(rig).num_fds() < 300


def psutil_of(rig: Rig) -> object:
    """The controller."""
    import psutil

    return psutil.Process(rig.state.controller)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_goes_leaves_the_engines_usable(
    start: Callable[..., Rig], number: int, tmp_path: Path
) -> None:
    rig = start(1)
    text = "import sys, time; from ipython1.kernel import client; mec = client.MultiEngineClient(cluster=sys.argv[1]);"
    text += "mec.push({'a': bytes(30_000_000)}, block=False); print('go', flush=True); time.sleep(100)"
    process = subprocess.Popen(
        [sys.executable, "-c", text, rig.files.cluster], env=environment(), stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        process.send_signal(number)
    assert rig.client().apply(lambda: 7, block=False).get_result(timeout=20) == [7]
