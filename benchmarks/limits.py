"""What the machine itself can do: the numbers no system can beat.

The far end of each pair is a forked process, which ends with its socket.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

#: Bytes of one message of a ping-pong.
PING = 64
#: Seconds after which a quick thing is not measured once more.
LONG_ENOUGH = 3.0
#: Bytes of one call of send.
PIECE = 1 << 20


def seconds(f: Callable[[], object], times: int) -> list[float]:
    """How long each of several calls takes; fewer where it takes long."""
    found: list[float] = []
    while len(found) < times and sum(found) < LONG_ENOUGH:
        begin = time.perf_counter()
        f()
        found.append(time.perf_counter() - begin)
    return found


def touched(n: int) -> np.ndarray:
    """An array of `n` bytes that all have been written."""
    return np.full(n, 1, dtype=np.uint8)


def copy_rate(n: int, times: int) -> list[float]:
    """Bytes a second of copies within the memory of one process, touched before."""
    source = touched(n)
    target = source.copy()
    return [n / elapsed for elapsed in seconds(lambda: np.copyto(target, source), times)]


def fresh_copy_rate(n: int, times: int) -> list[float]:
    """Bytes a second of copies into memory never touched before."""
    source = touched(n)
    return [n / elapsed for elapsed in seconds(source.copy, times)]


def ping_pong(family: socket.AddressFamily, times: int) -> list[float]:
    """Seconds of a small message to another process and back."""
    message = b"x" * PING

    def answer(sock: socket.socket) -> None:
        while data := sock.recv(PING):
            sock.sendall(data)

    with _other_end(family, answer) as sock:

        def ask() -> None:
            sock.sendall(message)
            sock.recv(PING, socket.MSG_WAITALL)

        seconds(ask, 20)
        return seconds(ask, times)


def socket_rate(family: socket.AddressFamily, n: int, times: int) -> list[float]:
    """Bytes a second into another process, which receives them in memory it has touched before."""
    data = memoryview(bytearray(n))

    def receive(sock: socket.socket) -> None:
        target = memoryview(bytearray(b"x") * n)
        while True:
            taken = 0
            while taken < n:
                got = sock.recv_into(target[taken : taken + PIECE])
                if not got:
                    return
                taken += got
            sock.sendall(b"!")

    with _other_end(family, receive) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.recv(1)

        send()
        return [n / elapsed for elapsed in seconds(send, times)]


@contextmanager
def _other_end(
    family: socket.AddressFamily, serve: Callable[[socket.socket], None]
) -> Iterator[socket.socket]:
    """A socket to a process that serves its other end."""
    ours, theirs = _pair(family)
    child = os.fork()
    if not child:
        ours.close()
        try:
            serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        os.waitpid(child, 0)


def _pair(family: socket.AddressFamily) -> tuple[socket.socket, socket.socket]:
    if family == socket.AF_UNIX:
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    for sock in (ours, theirs):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return ours, theirs
