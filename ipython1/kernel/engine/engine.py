"""An engine put together: shell, main loop and the service that connects them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ipython1.kernel.engine.asking import Asking
from ipython1.kernel.engine.calls import TaskOperations
from ipython1.kernel.engine.jobs import AnyJob, Task
from ipython1.kernel.engine.mainloop import IBoard, MainLoop
from ipython1.kernel.engine.operations import Operations
from ipython1.kernel.engine.output import Buffer, OutputBuffer, Source
from ipython1.kernel.engine.service import EngineService
from ipython1.kernel.engine.shell import EngineShell
from ipython1.kernel.engine.this_engine import ThisEngine
from ipython1.kernel.interfaces import IDialer
from ipython1.kernel.wire.codec import unpack_map
from ipython1.kernel.wire.shared import SharedMemory


class Engine:
    """One engine, wherever its reactor and its main thread are.

    Parameters
    ----------
    clock : IReactorTime
        As for `EngineService`.
    dialer : IDialer
        Ways to the controller.
    shell : EngineShell
        Runs the code.
    identity : dict
        As for `EngineService`.
    on_registered : callable
        Called with the engine id.
    on_end : callable
        Called with the reason when the controller is gone for good.
    wait, sources
        As for `OutputBuffer`.
    shared : SharedMemory, optional
        As for `EngineService`.
    board : IBoard, optional
        As for `MainLoop`.
    """

    def __init__(
        self,
        clock: Any,
        dialer: IDialer,
        shell: EngineShell,
        identity: dict[str, Any],
        on_registered: Callable[[int], None],
        on_end: Callable[[str], None],
        *,
        wait: bool = True,
        sources: Sequence[Source] = (),
        shared: SharedMemory | None = None,
        board: IBoard | None = None,
    ) -> None:
        self.shell = shell
        self.output = OutputBuffer(lambda: self.service.output_waits(), wait, sources)
        shell.set_output(self.output)
        self.operations = Operations(shell, ThisEngine(self.output))
        self._tasks = TaskOperations(self.operations)
        self.loop: MainLoop[AnyJob] = MainLoop(
            self._perform, lambda *job: self.service.job_done(*job), board=board
        )
        self._asking = Asking(self.output, lambda: self.loop.running, wait)
        shell.set_asking(self._asking.ask)
        self._on_registered = on_registered
        self.service: EngineService = EngineService(
            clock, dialer, self.loop, self.output, self._asking, identity, self._registered, on_end, shared
        )

    def _registered(self, id: int) -> None:
        self.shell.engine_id = self.operations.engine.id = id
        self._on_registered(id)

    def _perform(self, job: AnyJob) -> Sequence[Buffer]:
        self.service.job_started(job)
        self.output.begin(job)
        parts = job.parts or ()
        try:
            if isinstance(job, Task):
                return self._tasks.answer(job.common, parts)
            return self.operations.answer(job.submit.op, unpack_map(job.submit.args), parts)
        except BaseException as error:
            self.operations.last_failure.keep(error)
            raise
        finally:
            self._asking.ended(job)
            self.output.end()
