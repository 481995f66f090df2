"""What the controller stores: of clients that do not read, that send too much, that come by thousands."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil
import pytest

from ipython1.kernel.client import CompositeError, MultiEngineClient, room
from ipython1.kernel.client.pending import PendingResult
from ipython1.kernel.controller.arrears import BEHIND

from .conftest import PATIENCE, Rig, until
from .test_clients_and_links import program

MIB = 1024 * 1024
#: What one client that does not read may cost: what waits for it, twice, and what the allocator keeps.
STOPPED_COST = 3 * BEHIND
#: Seconds in which others are answered, whatever one client does; on a busy machine.
SOON = 5.0

FLOOD = """
    import sys
    from ipython1.kernel import client
    mec = client.MultiEngineClient(cluster=sys.argv[1])
    code = "import time; time.sleep(0.5)\\nfor i in range(250): print(i, 'x' * 99_990)"
    printed = [mec.execute(code, block=False) for _ in range(2)]
    results = [mec.apply(lambda n, i: bytes([i]) * n, 60_000, i, block=False) for i in range(250)]
    print("sent", flush=True)
    assert sys.stdin.readline() == "read\\n"
    for pending in printed:
        for result in pending.get_result(timeout=60):
            lines = result["stdout"].splitlines()
            assert [int(line.split()[0]) for line in lines] == list(range(250)), len(lines)
            assert {len(line.split()[1]) for line in lines} == {99_990}
    for i, pending in enumerate(results):
        assert pending.get_result(timeout=60) == [bytes([i]) * 60_000] * len(mec)
    print("whole", flush=True)
"""

#: Without shared memory all goes through the controller.
CHUNKS = """
    import sys
    from ipython1.kernel import client
    from ipython1.kernel.wire import shared
    shared.SharedMemory = lambda arena: None
    mec = client.MultiEngineClient(cluster=sys.argv[1])
"""

BULK = (
    CHUNKS
    + """
    results = [mec.apply(lambda n, i: bytes([i]) * n, 1_000_000, i, block=False) for i in range(80)]
    print("sent", flush=True)
    assert sys.stdin.readline() == "read\\n"
    for i, pending in enumerate(results):
        assert pending.get_result(timeout=60) == [bytes([i]) * 1_000_000] * len(mec)
    print("whole", flush=True)
"""
)

HALF_SENT = (
    CHUNKS
    + """
    pushed = mec.push({"a": bytes(300_000_000)}, block=False)
    mec.execute("b = 1", block=False)
    while mec._core.sent(pushed.command_id)[0] < 10_000_000:
        pass
    print("sent", flush=True)
    sys.stdin.readline()
"""
)


@contextmanager
def stopped(text: str, cluster: str) -> Iterator[subprocess.Popen[str]]:
    """A program that uses a cluster, stopped when it says ``sent``."""
    with program(text, cluster, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "sent\n"
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def go_on(process: subprocess.Popen[str]) -> None:
    """Continue a stopped program, and have it read all that it asked for."""
    process.send_signal(signal.SIGCONT)
    said, _ = process.communicate("read\n", timeout=3 * PATIENCE)
    assert said == "whole\n"
    assert process.returncode == 0


def answered_soon(mec: MultiEngineClient) -> None:
    """Somebody else notices nothing."""
    start = time.monotonic()
    assert mec.apply(abs, -7, block=False).get_result(timeout=PATIENCE) == [7] * len(mec)
    assert time.monotonic() - start < SOON


def idle(mec: MultiEngineClient) -> bool:
    """Whether no engine has anything to do."""
    return not any(queue["pending"] or queue["queue"] for _, queue in mec.queue_status())


@pytest.mark.parametrize("text", [FLOOD, BULK], ids=["flood", "bulk"])
def test_a_client_that_does_not_read(start: Callable[..., Rig], text: str) -> None:
    rig = start(2)
    mec = rig.client()
    answered_soon(mec)
    controller = psutil.Process(rig.state.controller)
    before, most = controller.memory_info().rss, 0
    with stopped(text, rig.files.cluster) as process:

        def all_done() -> bool:
            nonlocal most
            most = max(most, controller.memory_info().rss)
            return idle(mec)

        until(all_done, "the engines have done everything", 3 * PATIENCE)
        answered_soon(mec)
        assert most - before < STOPPED_COST
        go_on(process)
    assert controller.memory_info().rss - before < 2 * STOPPED_COST
    answered_soon(mec)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_half_of_a_push_holds_up_nobody_else(start: Callable[..., Rig], number: int) -> None:
    """Who sends it is stopped, or dead for less than its grace time."""
    rig = start(1)
    mec = rig.client()
    with stopped(HALF_SENT, rig.files.cluster) as process:
        process.send_signal(number)
        until(lambda: dict(mec.queue_status())[0]["pending"], "the push is with the engine")
        for _ in range(20):
            answered_soon(mec)


def test_who_sends_too_much_waits(start: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "ROOM", 32 * MIB)
    monkeypatch.setattr(room, "ROOM_AGAIN", 24 * MIB)
    rig = start(1)
    mec = rig.client()
    controller = psutil.Process(rig.state.controller)
    before = controller.memory_info().rss
    first = mec.execute("import time; time.sleep(100)", block=False)
    sent: list[PendingResult] = []

    def send() -> None:
        for i in range(10_000):
            sent.append(mec.apply(len, bytes([i % 256]) * 10_000, block=False))

    thread = threading.Thread(target=send)
    thread.start()
    until(lambda: mec._core._room.full, "it has sent too much")
    assert 2_500 < len(sent) < 3_500
    assert thread.is_alive()
    assert rig.connect().queue_status()[0][1]["pending"]  # the controller answers
    assert controller.memory_info().rss - before < 3 * 32 * MIB
    mec.interrupt()
    thread.join(3 * PATIENCE)
    assert not thread.is_alive()
    assert [pending.get_result(timeout=PATIENCE) for pending in sent] == [[10_000]] * 10_000
    assert controller.memory_info().rss - before < 3 * 32 * MIB
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        first.get_result(timeout=PATIENCE)


def test_past_the_limit_of_the_controller_there_is_an_error(start: Callable[..., Rig]) -> None:
    rig = start(1, "--queue-limit", "16")
    mec = rig.client()
    first = mec.execute("import time; time.sleep(100)", block=False)
    sent = [mec.apply(len, bytes(10_000), block=False) for _ in range(3000)]
    with pytest.raises(CompositeError, match=r"QueueFull.*16 MiB.*--queue-limit"):
        sent[-1].get_result(timeout=PATIENCE)
    mec.interrupt()
    with pytest.raises(CompositeError, match="KeyboardInterrupt"):
        first.get_result(timeout=PATIENCE)
    assert sent[0].get_result(timeout=PATIENCE) == [10_000]
    until(lambda: all(pending.done() for pending in sent), "all have ended")
    assert mec.apply(len, bytes(10_000)) == [10_000]


def test_ten_thousand_connections_come_and_go(start: Callable[..., Rig]) -> None:
    rig = start(1, "--client-grace", "1")
    mec = rig.client()
    answered_soon(mec)
    controller = psutil.Process(rig.state.controller)
    fds, port = controller.num_fds(), rig.state.port

    def crowd(count: int) -> None:
        for _ in range(count // 100):
            guests = [socket.create_connection(("127.0.0.1", port), PATIENCE) for _ in range(100)]
            for number, guest in enumerate(guests):
                with suppress(OSError):  # it may have been shown out
                    guest.sendall(b"GET /id/nobody HTTP/1.1\r\n" * (number % 2))
                guest.close()

    def clients(count: int) -> None:
        for _ in range(count):
            with MultiEngineClient(str(rig.files.furl("multiengine"))) as other:
                assert other.get_ids() == [0]

    def all_have_left() -> None:
        until(lambda: controller.num_fds() <= fds + 3, "all files are closed")

    crowd(1000)
    clients(20)
    all_have_left()
    before = controller.memory_info().rss
    crowd(9000)
    clients(150)
    all_have_left()
    until(lambda: controller.memory_info().rss - before < 8 * MIB, "nothing is left of their sessions")
    answered_soon(mec)
    log = (rig.files.log / "ipcontroller.log").read_text().splitlines()
    assert len(log) < 200
