"""Hosts of their own, made of namespaces, and cables between them that delay, drop and reorder packets.

Each host has a network namespace with a TUN device, whose other end this process holds: what a host
sends is a packet here, and goes on to its destination, late or not at all. That takes root and
``/dev/net/tun``, but no traffic control of the kernel's.
"""

from __future__ import annotations

import contextlib
import fcntl
import heapq
import itertools
import json
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from .conftest import PATIENCE, environment

TOOLS = ("ip", "unshare", "mount")
REQUIRED = os.environ.get("IPYTHON1_REQUIRE_SERVICES") == "1"
NETWORK, BITS = "10.254.98", 24
#: Bytes of a packet at most. With the common 1500, TCP is slow beyond measure where packets are lost.
MTU = 60_000
#: Bytes that wait at a cable that is slow; what comes then is dropped.
BUFFER = 200_000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
#: In ``/proc/net/tcp``.
_ESTABLISHED = "01"


@dataclass
class Cable:
    """One direction between a host and all others."""

    delay: float = 0.0  # seconds
    jitter: float = 0.0  # seconds more or less
    reorder: float = 0.0  # part of the packets that overtake the others
    loss: float = 0.0  # part of the packets that are lost
    rate: float = 0.0  # bytes a second; 0: any
    free: float = 0.0  # when the last packet has left
    carried: int = 0  # bytes, with all headers


class Host:
    """One of them.

    Parameters
    ----------
    number : int
        Last part of its address.
    """

    def __init__(self, number: int) -> None:
        self.name = f"ip1-{os.getpid()}-{number}"
        self.address = f"{NETWORK}.{number}"
        self.out, self.back = Cable(), Cable()
        self.processes: list[subprocess.Popen[Any]] = []
        self.fd = -1

    def plug(self) -> None:
        """Make it."""
        _run("ip", "netns", "add", self.name)
        device = f"t{os.getpid() % 10**8}-{self.address.rpartition('.')[2]}"
        self.fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(self.fd, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
        _run("ip", "link", "set", device, "netns", self.name)
        _run("ip", "-n", self.name, "address", "add", f"{self.address}/{BITS}", "dev", device)
        _run("ip", "-n", self.name, "link", "set", device, "mtu", str(MTU), "up")
        _run("ip", "-n", self.name, "link", "set", "lo", "up")

    def unplug(self) -> None:
        """End all that runs there, and the host."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.communicate(timeout=PATIENCE)
        if self.fd >= 0:
            os.close(self.fd)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True, check=False)

    def set(self, **values: float) -> None:
        """Change both directions of its cable."""
        for cable in (self.out, self.back):
            for name, value in values.items():
                setattr(cable, name, value)

    def start(
        self, command: Sequence[str], hide: Sequence[Path] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """A process there, which sees neither ``/dev/shm`` nor what is in the folders `hide`."""
        mounts = [f"mount -t tmpfs none {path}" for path in ("/dev/shm", *hide)]
        script = f'echo {self.name} > /proc/sys/kernel/hostname && {" && ".join(mounts)} && exec "$@"'
        apart = ["ip", "netns", "exec", self.name, "unshare", "--mount", "--uts", "sh", "-c", script, "-"]
        process = subprocess.Popen([*apart, *command], env=environment(), text=True, **options)
        self.processes.append(process)
        return process

    def connections(self, other: Host) -> int:
        """How many TCP connections to another host it believes in."""
        net = Path(f"/proc/{self.processes[0].pid}/net/tcp").read_text().splitlines()[1:]
        there = "".join(f"{int(part):02X}" for part in reversed(other.address.split(".")))
        lines = [line.split() for line in net]
        return sum(line[2].startswith(there) and line[3] == _ESTABLISHED for line in lines)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def refused() -> str:
    """Why this machine lets nobody make hosts, whatever is installed; empty where it does."""
    if os.geteuid() != 0:
        return "that takes root"
    try:
        _run("unshare", "--net", "--mount", "true")
    except FileNotFoundError:
        return ""  # which is something to install
    except subprocess.CalledProcessError:
        return "the kernel permits no network namespaces here"
    if not Path("/dev/net/tun").is_char_device():
        return "there is no /dev/net/tun"
    return ""


class Network:
    """The hosts, and the thread that carries their packets.

    Parameters
    ----------
    hosts : sequence of Host
        Plugged in.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self._hosts = {bytes(map(int, host.address.split("."))): host for host in hosts}
        self._chance = random.Random(3)
        self._late: list[tuple[float, int, Host, bytes]] = []
        self._numbers = itertools.count()
        self._wake, self._woken = os.pipe()
        self._thread = threading.Thread(target=self._carry, name="cables")
        self._thread.start()

    def close(self) -> None:
        """Carry no more."""
        os.close(self._woken)
        self._thread.join(PATIENCE)
        os.close(self._wake)

    def _carry(self) -> None:
        by_fd = {host.fd: host for host in self._hosts.values()}
        while True:
            wait = max(0.0, self._late[0][0] - time.monotonic()) if self._late else None
            ready, _, _ = select.select([self._wake, *by_fd], [], [], wait)
            if self._wake in ready:
                return
            for fd in ready:
                with contextlib.suppress(BlockingIOError):
                    for _ in range(64):
                        self._send(by_fd[fd], os.read(fd, 65536))
            while self._late and self._late[0][0] <= time.monotonic():
                _, _, host, packet = heapq.heappop(self._late)
                with contextlib.suppress(BlockingIOError):  # as a full buffer does, anywhere
                    os.write(host.fd, packet)

    def _send(self, source: Host, packet: bytes) -> None:
        target = self._hosts.get(packet[16:20])
        if packet[0] >> 4 != 4 or target is None:
            return
        when = time.monotonic()
        for cable in (source.out, target.back):
            if self._chance.random() < cable.loss or (
                cable.rate and (cable.free - when) * cable.rate > BUFFER
            ):
                return
            cable.carried += len(packet)
            if cable.rate:
                when = cable.free = max(when, cable.free) + len(packet) / cable.rate
            if self._chance.random() >= cable.reorder:
                when += max(0.0, cable.delay + self._chance.uniform(-cable.jitter, cable.jitter))
        heapq.heappush(self._late, (when, next(self._numbers), target, packet))


REMOTE = """
    import json, os, sys, time, traceback
    import numpy as np
    from ipython1.kernel import client
    for line in sys.stdin:
        try:
            told = eval(line) if line.startswith("(") else exec(json.loads(line))
            answer = {"value": told}
        except BaseException:
            answer = {"error": traceback.format_exc()}
        print("answer", json.dumps(answer), flush=True)
"""


class Remote:
    """A Python program on a host, which does what it is told.

    Parameters
    ----------
    host : Host
    hide : sequence of Path
        What it must not see.
    """

    def __init__(self, host: Host, hide: Sequence[Path]) -> None:
        command = [sys.executable, "-c", textwrap.dedent(REMOTE)]
        self.process = host.start(command, hide, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def tell(self, code: str) -> None:
        """Run code there; `wait` says what came of it."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(textwrap.dedent(code)) + "\n")
        self.process.stdin.flush()

    def wait(self) -> Any:
        """What came of the last thing it was told."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            word, _, answer = line.partition(" ")
            if word == "answer":
                found = json.loads(answer)
                assert "error" not in found, found["error"]
                return found["value"]
        pytest.fail("the program has ended")

    def run(self, code: str) -> None:
        """Run code there."""
        self.tell(code)
        self.wait()

    def get(self, expression: str) -> Any:
        """The value of an expression there, as JSON has it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"({expression})\n")
        self.process.stdin.flush()
        return self.wait()


@contextlib.contextmanager
def some_hosts(count: int) -> Iterator[list[Host]]:
    """Hosts with a network between them; skipped where they cannot be had."""
    if reason := refused():
        pytest.skip(f"no other hosts: {reason}")
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    hosts = [Host(number + 1) for number in range(count)]
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.callback(host.unplug)
        try:
            if missing:
                raise OSError(f"needs {', '.join(missing)}")
            for host in hosts:
                host.plug()
        except (OSError, subprocess.CalledProcessError) as error:
            if REQUIRED:
                raise
            pytest.skip(f"no other hosts: {error}")
        stack.callback(Network(hosts).close)
        yield hosts
