"""``ipcontroller``: the controller of a cluster, one process with one port."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ipython1.kernel.error import LaunchError
from ipython1.kernel.files import FURL_FILES, ClusterFiles

#: The port of a cluster that had none before.
PORT = 10105
#: Seconds in which everything is closed at the end.
GRACE = 5.0
#: The longest time that may be set, in seconds.
DAY = 86400.0
#: New objects at which Python looks for garbage. A broadcast to a thousand engines makes ten thousand for a
#: moment: to look at them again and again would take a tenth of its time.
GARBAGE = 20_000
#: Bytes of a log file, and number of old ones kept.
LOG_SIZE = 5_000_000
LOGS_KEPT = 4
#: Open files that are asked of the system: each peer takes one.
FILES = 65536
#: Bytes of events that wait at most, and seconds until they are tried again.
STATUS_LIMIT = 1_000_000
STATUS_RETRY = 0.2

EPILOG = """\
example:
  ipcontroller --cluster mine --ip 0.0.0.0 --location head.example.org

It prints where it listens; engines join with `ipengine -n 4 --cluster mine`.
`ipcluster -n 4` starts a controller and engines in one go.

exit status:
  0  stopped on request (SIGTERM, SIGINT, or by a client)
  1  failed, the message says why
  2  wrong options
"""


def parser() -> argparse.ArgumentParser:
    """The command line. (Not click, which would cost a tenth of the time to start.)"""
    parse = argparse.ArgumentParser(
        prog="ipcontroller",
        description="Run the controller of a cluster.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parse.add_argument
    add("--cluster", default="default", metavar="NAME", help="the name of the cluster [default]")
    add(
        "--ip",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address or interface to listen on, 0.0.0.0 for all [127.0.0.1]",
    )
    add("--port", type=int, help=f"the port, 0 for any free one [that of the last time, {PORT}, or any]")
    add("--location", metavar="HOST[:PORT]", help="where others find it, if that is not the address [--ip]")
    add("--dashboard", action=argparse.BooleanOptionalAction, default=True, help="serve a web page too [yes]")
    add(
        "--client-grace",
        type=seconds,
        default=30.0,
        metavar="SECONDS",
        help="how long the queue keeps the work of a client that is gone [30]",
    )
    add(
        "--engine-grace",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="how long an engine may be away, if its nanny is too, before it counts as dead [10]",
    )
    add(
        "--controller-grace",
        type=seconds,
        metavar="SECONDS",
        help="how long engines and clients look for a controller that is away [120, clients 60]",
    )
    add(
        "--dead-link-after",
        type=partial(seconds, low=1.0),
        default=60.0,
        metavar="SECONDS",
        help="how long nothing may be heard from another host before its links count as lost [60]",
    )
    add(
        "--detach-limit",
        type=megabytes,
        default=10_000,
        metavar="MB",
        help="how much detached work is kept on disk, at most [10000]",
    )
    add(
        "--scheduler", default="leastload", metavar="NAME", help="which tasks go first, and where [leastload]"
    )
    add(
        "--queue-limit",
        type=mebibytes,
        default=1024,
        metavar="MIB",
        help="how much work that has not ended the controller holds [1024]",
    )
    add("--launcher-grows", action="store_true", help=argparse.SUPPRESS)
    add("--status-fd", type=int, metavar="FD", help="a file descriptor that takes JSON lines on what happens")
    return parse


def megabytes(text: str) -> int:
    """A size on the command line."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def seconds(text: str, low: float = 0.0) -> float:
    """A time on the command line."""
    value = float(text)
    if not low <= value <= DAY:
        raise argparse.ArgumentTypeError(f"must be from {low:g} to {DAY:g} seconds, not {text}")
    return value


def mebibytes(text: str) -> int:
    """A size on the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {text}")
    return value


class Status:
    """Tells the parent what happens, one JSON line an event, as long as it listens.

    Parameters
    ----------
    clock : IReactorTime
        For what does not fit into the pipe at once: a stopped parent does not stop the controller.
    fd : int, optional
        Where to write; nobody is told where it is None.
    """

    def __init__(self, clock: Any, fd: int | None) -> None:
        self._clock = clock
        self._fd = fd
        self._unsent = b""
        self._call: Any = None
        if fd is not None:
            os.set_blocking(fd, False)

    def tell(self, event: dict[str, Any]) -> None:
        """Write one event."""
        if len(self._unsent) < STATUS_LIMIT:
            self._unsent += json.dumps(event).encode() + b"\n"
        if self._call is None:
            self._write()

    def _write(self) -> None:
        self._call = None
        if self._fd is None:
            return
        try:
            self._unsent = self._unsent[os.write(self._fd, self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more
            self._fd = None
            return
        if self._unsent:
            self._call = self._clock.callLater(STATUS_RETRY, self._write)


def complain(text: str, fd: int | None) -> None:
    """Say why there is no controller: on stderr, and to the parent, for stderr may be on a full disk."""
    try:
        if fd is not None:
            os.write(fd, json.dumps({"event": "error", "text": text}).encode() + b"\n")
        print(f"ipcontroller: {text}", file=sys.stderr, flush=True)
    except OSError:
        pass


def ports(files: ClusterFiles, asked: int | None) -> list[int]:
    """The ports to try, in order."""
    if asked is not None:
        return [asked]
    last = last_port(files)
    return [*([last] if last else []), *([PORT] if last != PORT else []), 0]


def last_port(files: ClusterFiles) -> int | None:
    """The port that the cluster's FURLs name, so that they stay good."""
    from ipython1.kernel.error import BadFURL
    from ipython1.kernel.wire.tubs import split_furl

    try:
        _, locations, _ = split_furl(files.furl("engine").read_text())
    except (OSError, BadFURL, UnicodeDecodeError):
        return None
    return int(locations[-1].rpartition(":")[2])  # where this host finds it: others may come by another


class ControllerProcess:
    """Starts the parts of a controller in a reactor, and stops them in order.

    Parameters
    ----------
    reactor : IReactorCore, IReactorTime, IReactorTCP
    files : ClusterFiles
        The cluster.
    options : Namespace
        What `parser` made of the command line.
    status : Status
        Hears of the events.
    say : callable
        Shows a line to whoever started this by hand.
    """

    def __init__(
        self,
        reactor: Any,
        files: ClusterFiles,
        options: argparse.Namespace,
        status: Status,
        say: Callable[[str], object],
    ) -> None:
        self.exit_status = 0
        self._reactor = reactor
        self._files = files
        self._options = options
        self._status = status
        self._say = say
        self._closers: list[Callable[[], Any]] = []

    async def start(self) -> None:
        """Build everything, and listen. Where that fails, the reactor is stopped."""
        from twisted.internet.threads import deferToThread
        from twisted.logger import Logger

        from ipython1.kernel.controller.ledger import Folder
        from ipython1.kernel.controller.scheduler import make_scheduler
        from ipython1.kernel.controller.service import Controller

        log = Logger()
        try:
            controller = Controller(
                self._reactor,
                self._notify,
                client_grace=self._options.client_grace,
                engine_grace=self._options.engine_grace,
                controller_grace=self._options.controller_grace,
                scheduler=make_scheduler(self._options.scheduler),
                queue_limit=self._options.queue_limit << 20,
                detached=Folder(self._files.detached, self._options.detach_limit * 1_000_000),
                in_thread=deferToThread,
                launcher_grows=self._options.launcher_grows,
            )
            self._closers.append(controller.stop)
            listener = await self._listen(controller)
        except LaunchError as error:
            log.error("{error}", error=error)
            self._fail(str(error))
            return
        self._closers.append(listener.stop)
        event: dict[str, Any] = {"host": listener.host, "port": listener.port, "pid": os.getpid()}
        if self._options.dashboard:
            event["dashboard"] = await self._dashboard(controller, listener)
        log.info("listens at {host}:{port}, pid {pid}", **event)
        self._status.tell({"event": "listening", **event})
        self._say(f"controller   {listener.host}:{listener.port}  (pid {event['pid']})")
        if event.get("dashboard"):
            self._say(f"dashboard    {event['dashboard']}")

    async def _listen(self, controller: Any) -> Any:
        from ipython1.kernel.wire.serving import serve

        doors = {kind: controller.door(kind) for kind in FURL_FILES}
        options = self._options
        at = partial(
            serve,
            self._reactor,
            self._files,
            doors,
            ip=options.ip,
            location=options.location,
            dead_after=options.dead_link_after,
        )
        *tries, last = ports(self._files, options.port)
        for port in tries:
            try:
                return await at(port=port)
            except LaunchError:
                continue  # that port is taken; anything else fails with the last one too
        return await at(port=last)

    async def _dashboard(self, controller: Any, listener: Any) -> str | None:
        """The URL; a cluster is of use without a dashboard too."""
        from twisted.logger import Logger

        from ipython1.web.dashboard import serve_dashboard

        try:
            served = await serve_dashboard(
                self._reactor,
                controller,
                (listener.port + 1) % 65536,
                listener.furls,
                self._files.cluster,
            )
        except Exception:  # noqa: BLE001 -- whatever it is, it is in the log
            Logger().failure("no dashboard")
            return None
        self._closers.append(served.stop)
        return served.url

    def _notify(self, event: dict[str, Any]) -> None:
        self._status.tell(event)
        if event["event"] == "shutdown":
            self._stop(0)

    def failed(self, failure: Any) -> None:
        """`start` failed with what nobody foresaw."""
        self._fail(failure.getTraceback())

    def _fail(self, text: str) -> None:
        complain(text, self._options.status_fd)
        self._stop(1)

    def _stop(self, status: int) -> None:
        from twisted.internet.error import ReactorNotRunning

        self.exit_status = status
        try:
            self._reactor.stop()
        except ReactorNotRunning:  # it stops already
            pass

    def close(self) -> Any:
        """Close everything; a Deferred that fires when that is done, or took too long."""
        from twisted.internet.defer import DeferredList, maybeDeferred

        closing = [maybeDeferred(close) for close in self._closers]
        return DeferredList(closing).addTimeout(GRACE, self._reactor, onTimeoutCancel=lambda *_: None)


def start_log(files: ClusterFiles) -> None:
    """Send what is logged from level info on to ``log/ipcontroller.log``."""
    from twisted.logger import (
        FilteringLogObserver,
        LogLevel,
        LogLevelFilterPredicate,
        globalLogBeginner,
        textFileLogObserver,
    )
    from twisted.python.logfile import LogFile

    file: Any = LogFile("ipcontroller.log", os.fspath(files.log), LOG_SIZE, 0o600, LOGS_KEPT)
    observer = FilteringLogObserver(textFileLogObserver(file), [LogLevelFilterPredicate(LogLevel.info)])
    globalLogBeginner.beginLoggingTo([observer], redirectStandardIO=False)


def open_many_files() -> None:
    """Have the system allow `FILES`, or as many as it does."""
    try:
        import resource
    except ImportError:  # not on this platform
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def watch_parent(reactor: Any) -> None:
    """End with the parent, where the kernel does not see to that."""
    from twisted.internet.task import LoopingCall

    parent = os.getppid()
    LoopingCall(lambda: os.getppid() == parent or reactor.stop()).start(1.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a controller until it is told to stop."""
    parse = parser()
    options = parse.parse_args(arguments)
    try:
        files = ClusterFiles(options.cluster)
    except ValueError as error:
        parse.error(str(error))
    if options.port is not None and not 0 <= options.port < 65536:
        parse.error("--port must be from 0 to 65535")
    os.umask(0o077)
    open_many_files()
    sys.exit(run(files, options))


def run(files: ClusterFiles, options: argparse.Namespace) -> int:
    """Run a controller in the global reactor; returns the exit status."""
    from ipython1.launch.state import controller_lock

    try:
        files.create()
    except OSError as error:
        complain(f"cannot make the folder {files.folder} ({error.strerror}).", options.status_fd)
        return 1
    lock = controller_lock(files)
    if not lock.acquire():
        text = f"cluster {files.cluster} has a controller already. Stop it, or use --cluster NAME."
        complain(text, options.status_fd)
        return 1
    from twisted.internet import reactor as global_reactor
    from twisted.internet.defer import ensureDeferred

    reactor: Any = global_reactor
    try:
        start_log(files)
    except OSError as error:
        complain(f"cannot write the log file {error.filename} ({error.strerror}).", options.status_fd)
        return 1
    say = (lambda text: None) if options.status_fd is not None else (lambda text: print(text, flush=True))
    process = ControllerProcess(reactor, files, options, Status(reactor, options.status_fd), say)
    reactor.addSystemEventTrigger("before", "shutdown", process.close)
    reactor.callWhenRunning(lambda: ensureDeferred(process.start()).addErrback(process.failed))
    if options.status_fd is not None and sys.platform != "linux":
        watch_parent(reactor)
    gc.freeze()  # what was imported stays
    gc.set_threshold(GARBAGE)
    reactor.run()
    lock.release()
    return process.exit_status


if __name__ == "__main__":
    main()
