"""An engine as a worker of a Dask cluster: what `become_dask` of a client calls here, by name.

The worker runs its event loop in a thread of its own, and tasks in others; the main thread goes on
with commands. One of the engines also starts the scheduler, as a child process: tasks that hold the
interpreter lock of the engine do not hold it up.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FuturesTimeoutError
from pathlib import Path
from typing import Any

try:
    import dask

    if "distributed" not in sys.modules and not dask.config.get("logging", None):
        dask.config.set({"logging": {"distributed": "warning"}})  # its log would be output of commands
    import distributed
    from distributed.http.routing import RoutingApplication
    from tornado.httpserver import HTTPServer
except ImportError as error:
    raise ImportError(f"become_dask needs distributed: pip install 'ipython1[dask]' ({error})") from None

from ipython1.kernel.engine.this_engine import current
from ipython1.kernel.error import LaunchError
from ipython1.kernel.wire.addresses import outward

#: Seconds that a worker or a scheduler has to start, and to end.
START_TIME, END_TIME = 30.0, 5.0
#: How the names of folders begin for what workers spill; the pid follows.
_FOLDER = "ipython1-dask-"

Security = dict[str, Any]


class _Silent:
    """Part of a Dask node: it serves no HTTP."""

    services: dict[str, Any]

    def start_http_server(self, routes: list[Any], *args: Any, **kwargs: Any) -> None:
        """Make what others hold on to, without a port."""
        self.http_application = RoutingApplication(routes)
        self.http_server = HTTPServer(self.http_application)


class _Worker(_Silent, distributed.Worker):
    pass


class _Scheduler(_Silent, distributed.Scheduler):
    pass


class _Running:
    """A worker that runs in this process.

    Parameters
    ----------
    address : str
        Of the scheduler.
    security : dict
        What `distributed.Security` takes.
    """

    def __init__(self, address: str, security: Security) -> None:
        self.address = address
        self.security = security
        self._began: Future[tuple[Any, asyncio.AbstractEventLoop]] = Future()
        self._thread: threading.Thread | None = None

    def start(self, host: str, options: dict[str, Any]) -> None:
        """Start it; returns when the scheduler knows it."""
        main = self._main(host, {"nthreads": 1, "death_timeout": START_TIME / 2, **options})
        self._thread = threading.Thread(target=asyncio.run, args=(main,), name="dask worker", daemon=True)
        self._thread.start()
        self._began.result(START_TIME)

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End it; tasks that run now are left to end by themselves."""
        if not self._began.cancel() and self._began.exception() is None and self.is_alive:
            worker, loop = self._began.result()
            close = worker.close(executor_wait=False, nanny=False, timeout=END_TIME)
            with contextlib.suppress(RuntimeError, TimeoutError, FuturesTimeoutError):  # it ends already
                asyncio.run_coroutine_threadsafe(close, loop).result(END_TIME)
        if self._thread is not None:
            self._thread.join(END_TIME)

    async def _main(self, host: str, options: dict[str, Any]) -> None:
        with _scratch() as folder:
            try:
                worker = await _Worker(
                    self.address,
                    name=current().id,
                    host=host,
                    security=distributed.Security(**self.security),
                    **{"local_directory": folder, **options},
                )
            except BaseException as error:  # noqa: BLE001 -- it is for the one who waits in `start`
                if self._began.set_running_or_notify_cancel():
                    self._began.set_exception(error)
                return
            if self._began.set_running_or_notify_cancel():
                self._began.set_result((worker, asyncio.get_running_loop()))
            else:  # nobody waits for it any more
                await worker.close(executor_wait=False, nanny=False)
            await worker.finished()


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    """A folder for this process, locked as long as it lives; those that killed ones have left are removed."""
    place = Path(tempfile.gettempdir())
    for old in place.glob(f"{_FOLDER}*"):
        with contextlib.suppress(OSError):  # in use, another user's, or gone just now
            os.close(_locked(old, fcntl.LOCK_EX | fcntl.LOCK_NB))
            shutil.rmtree(old)
    # Under another name until it is locked, or others would take it for an old one.
    new = tempfile.mkdtemp(prefix=f".{_FOLDER}{os.getpid()}-")
    fd = _locked(new, fcntl.LOCK_SH)
    folder = place / Path(new).name[1:]
    os.rename(new, folder)
    try:
        yield os.fspath(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _locked(folder: str | Path, how: int) -> int:
    fd = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(fd, how)
    except OSError:
        os.close(fd)
        raise
    return fd


class _Here:
    """What of Dask this engine runs."""

    worker: _Running | None = None
    scheduler: subprocess.Popen[bytes] | None = None
    scheduler_address = ""


def look(controller: str) -> tuple[str, str, Security]:
    """Own address towards the controller's host; address and security of the cluster this is a worker of."""
    address = outward((controller, 9)) or outward()
    worker = _Here.worker
    if worker is None or not worker.is_alive:
        return address, "", {}
    return address, worker.address, worker.security


def start_scheduler(host: str, security: Security, dashboard: bool) -> str:
    """Start a scheduler that listens on `host`; returns its address."""
    stop_scheduler()
    command = f"from {__name__} import scheduler_main; scheduler_main()"
    process = _Here.scheduler = subprocess.Popen(
        [sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    settings = {"path": sys.path, "host": host, "security": security, "dashboard": dashboard}
    process.stdin.write(json.dumps(settings).encode() + b"\n")
    process.stdin.flush()
    _Here.scheduler_address = process.stdout.readline().decode().strip()
    if not _Here.scheduler_address:
        stop_scheduler()
        raise LaunchError(what="The Dask scheduler", reason="see what it wrote to stderr")
    return _Here.scheduler_address


def stop_scheduler() -> None:
    """End the scheduler that was started here, if any."""
    process, _Here.scheduler = _Here.scheduler, None
    _Here.scheduler_address = ""
    if process is None:
        return
    process.terminate()
    try:
        process.communicate(timeout=END_TIME)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def start_worker(address: str, security: Security, host: str, options: dict[str, Any]) -> None:
    """Be a worker of the cluster of the scheduler at `address`, and listen on `host`."""
    worker = _Running(address, security)
    try:
        worker.start(host, options)
    except BaseException:
        worker.stop()
        raise
    _Here.worker = worker


def stop_worker() -> str:
    """Be no worker any more; the address of the scheduler that was started here, empty where none was."""
    worker, _Here.worker = _Here.worker, None
    if worker is not None:
        worker.stop()
    return _Here.scheduler_address


@atexit.register
def _stop() -> None:
    stop_worker()
    stop_scheduler()


# -- in the scheduler's process -------------------------------------------------------


def scheduler_main() -> None:
    """Run a scheduler as stdin says, print its address, and end with stdin or by SIGTERM."""
    settings = json.loads(sys.stdin.readline())
    sys.path[:] = settings["path"]
    asyncio.run(_serve(settings["host"], settings["security"], settings["dashboard"]))


async def _serve(host: str, security: Security, dashboard: bool) -> None:
    kind = distributed.Scheduler if dashboard else _Scheduler
    with _scratch() as folder:
        scheduler = await kind(
            host=host,
            port=0,
            protocol="tls",
            security=distributed.Security(**security),
            dashboard=dashboard,
            dashboard_address="127.0.0.1:0",
            local_directory=folder,
        )
        print(scheduler.address, flush=True)
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(0, over.set)
        loop.add_signal_handler(signal.SIGTERM, over.set)
        loop.add_signal_handler(signal.SIGINT, lambda: None)  # that is for the engine
        await over.wait()
        loop.remove_reader(0)
        await scheduler.close()
