"""Clients that are killed, connections that are cut or slow, strangers at the port."""

from __future__ import annotations

import random
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from ipython1.kernel.client import MultiEngineClient

from .conftest import PATIENCE, Proxy, Rig, environment, until
from .tally import TALLY
from .test_engine_deaths import pid_of

CLIENT = """
    import os, sys, time
    from ipython1.kernel import client
    mec = client.MultiEngineClient(cluster=sys.argv[1])
    mec.execute("import time; ran = ['first']; time.sleep(100)", targets=[0], block=False)
    for i in range(200):
        mec.execute(f"ran.append({i})", targets=[0], block=False)
    while len(dict(mec.queue_status())[0]["queue"]) < 200:
        time.sleep(0.01)
    print("sent", flush=True)
    time.sleep(100)
"""


LEAVER = """
    import sys, time
    from ipython1.kernel import client
    mec = client.MultiEngineClient(cluster=sys.argv[1])
    mec.push({"a": bytes(30_000_000)}, block=False)
    print("go", flush=True)
    time.sleep(100)
"""


def program(text: str, cluster: str, stdin: int | None = None) -> subprocess.Popen[str]:
    """A program that uses a cluster."""
    command = [sys.executable, "-c", textwrap.dedent(text), cluster]
    return subprocess.Popen(command, env=environment(), stdin=stdin, stdout=subprocess.PIPE, text=True)


def killed_client(cluster: str) -> None:
    """A client with much in the queue of engine 0, killed."""
    with program(CLIENT, cluster) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "sent\n"
        finally:
            process.kill()


def only_mine_is_queued(mec: MultiEngineClient) -> None:
    """All that a killed client had queued on engine 0 is dropped, what comes behind it is run."""
    mine = mec.execute("ran", targets=[0], block=False)
    first = next(line.strip() for line in CLIENT.splitlines() if "first" in line).split('"')[1]
    only = {"queue": ["ran"], "pending": first}
    until(lambda: dict(mec.queue_status())[0] == only, "its commands are dropped")
    mec.interrupt(targets=[0])  # what runs already is not queued work: it would go on
    assert mine.get_result(timeout=PATIENCE)[0]["result"]["text/plain"] == "['first']"


def test_what_a_killed_client_has_queued_is_dropped(start: Callable[..., Rig]) -> None:
    rig = start(2, "--client-grace", "0.3")
    mec = rig.client()
    killed_client(rig.files.cluster)
    only_mine_is_queued(mec)
    assert mec.apply(lambda: 7) == [7, 7]


def test_a_new_controller_drops_what_a_killed_client_had_queued(start: Callable[..., Rig]) -> None:
    rig = start(1, "--client-grace", "0.3")
    mec = rig.client()
    killed_client(rig.files.cluster)
    controller = rig.state.controller
    rig.kill(controller)
    rig.next_controller(controller)
    only_mine_is_queued(mec)


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
    TALLY.fault("strangers at the port", 200)
    guests = [socket.create_connection(("127.0.0.1", port), 5) for _ in range(200)]
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100)  # TLS, half of a ClientHello
    tub = rig.files.furl("multiengine").read_text()[5:37].encode()
    right = b"GET /id/" + tub + b" HTTP/1.1\r\nHost: x\r\nUpgrade: TLS/1.0\r\nConnection: Upgrade\r\n\r\n"
    noise = random.Random(7).randbytes(100_000)
    get = b"GET / HTTP/1.1\r\n\r\n"
    sayings = [noise, get, hello, right + hello, right + noise[:1000], b"\r\n" * 9]
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
    controller = psutil.Process(rig.state.controller)
    until(lambda: controller.num_fds() < 60, "the guests are forgotten")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_that_goes_leaves_the_engines_usable(start: Callable[..., Rig], number: int) -> None:
    """Half of what it was sending stands in the queue, for it might come back within its grace time."""
    rig = start(1, "--client-grace", "0.3")
    with program(LEAVER, rig.files.cluster) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "go\n"
            process.send_signal(number)
            process.wait(PATIENCE)
        finally:
            process.kill()
    assert rig.client().apply(lambda: 7, block=False).get_result(timeout=20) == [7]
