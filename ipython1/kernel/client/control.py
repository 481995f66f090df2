"""What a client does to the engines themselves: queues, signals, restarts, properties."""

from __future__ import annotations

import signal as _signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ipython1.kernel.client.calls import Calls
from ipython1.kernel.client.status import QueueStatus, Status, fetch_status, rows_of
from ipython1.kernel.client.targets import TargetSpec
from ipython1.kernel.wire import objects


class EngineControl(Calls):
    """The calls that do not run user code."""

    # -- queues -----------------------------------------------------------------

    def queue_status(self, targets: TargetSpec | None = None, block: bool | None = None) -> Any:
        """What waits and what runs on each engine.

        Returns
        -------
        QueueStatus
            A list that shows as a table, of tuples: engine id and
            ``{'queue': [...], 'pending': ...}``, the waiting commands and the
            running one or None; and ``'away'``, since when (seconds since the
            epoch) nothing is heard of an engine, where that is so.
        """
        chosen = self._chosen(targets)
        return self._question("queue_status", chosen, block, rows_of(chosen), QueueStatus, targets=chosen)

    def clear_queue(self, targets: TargetSpec | None = None, block: bool | None = None) -> Any:
        """Cancel what has not started; those commands raise `QueueCleared`.

        Returns
        -------
        list of None
        """
        chosen = self._chosen(targets)
        return self._question("clear_queue", chosen, block, _none_each(chosen), targets=chosen)

    # -- processes ----------------------------------------------------------------

    def interrupt(self, targets: TargetSpec | None = None, *, stuck: str | None = None) -> None:
        """`KeyboardInterrupt` in what runs; never waits, keeps the namespaces.

        Parameters
        ----------
        targets
            As in every call.
        stuck : str, optional
            What becomes of an engine where C code does not react for some seconds (those of
            ``ipcluster start --stuck-after``): ``'leave'`` it, as `status` then says, or
            ``'restart'`` it; what runs and waits there fails with `EngineDied`. Where not given,
            what ``ipcluster start --stuck`` says.
        """
        if stuck not in (None, "leave", "restart"):
            raise ValueError(f"stuck must be 'leave', 'restart' or None, not {stuck!r}.")
        self._core.interrupt(self._chosen(targets), stuck=stuck or "")

    def signal(self, sig: int | str, targets: TargetSpec | None = None, block: bool | None = None) -> Any:
        """Send a signal to the engine processes.

        Parameters
        ----------
        sig : int or str
            Its number or name, as in ``'SIGUSR1'`` or ``'USR1'``.

        Returns
        -------
        list of None
        """
        number = _signal_number(sig)
        chosen = self._chosen(targets)
        return self._question("signal", chosen, block, _none_each(chosen), targets=chosen, number=number)

    def restart(
        self, targets: TargetSpec | None = None, block: bool | None = None, *, timeout: float = 60.0
    ) -> Any:
        """Replace the engine processes by fresh ones with the same ids.

        Parameters
        ----------
        targets, block
            As in every call. Blocking, it returns when the fresh engines are
            there.
        timeout : float
            Seconds to wait for them.

        Returns
        -------
        list of None

        Raises
        ------
        TimeoutError
            They are not back in time.
        """
        chosen = self._chosen(targets)
        before = self._uuids(chosen)
        answer = self._question("restart", chosen, block, _none_each(chosen), targets=chosen)
        if self._blocks(block) and not self._until(lambda table: _all_fresh(table, before), timeout):
            missing = [id for id in chosen if not _all_fresh(self._core.engines(), {id: before[id]})]
            raise TimeoutError(
                f"Engines {' '.join(map(str, missing))} are not back after {timeout:g} s. "
                "Look with: ipcluster logs"
            )
        return answer

    def kill(
        self,
        controller: bool = False,
        targets: TargetSpec | None = None,
        block: bool | None = None,
        *,
        timeout: float = 10.0,
    ) -> Any:
        """End the engine processes for good.

        Parameters
        ----------
        controller : bool
            The controller too, with all engines; waits for its answer, and
            closes this client.
        targets, block
            As in every call. Blocking, it returns when they are gone.
        timeout : float
            Seconds to wait for that.

        Returns
        -------
        list of None

        Raises
        ------
        TimeoutError
            They are still there.
        """
        if controller:
            return self._kill_all(timeout)
        chosen = self._chosen(targets)
        before = self._uuids(chosen)
        answer = self._question("kill", chosen, block, _none_each(chosen), targets=chosen, controller=False)
        if self._blocks(block) and not self._until(lambda table: _none_left(table, before), timeout):
            raise TimeoutError(f"Not all engines are gone after {timeout:g} s. Look with: mec.status()")
        return answer

    def _kill_all(self, timeout: float) -> list[None]:
        ids = self._all_ids()
        answer = self._core.ask("kill", targets=tuple(ids), controller=True)
        try:
            self._core.wait(answer, timeout)
        except TimeoutError:
            pass  # it may well be gone before it could answer
        self._owner().close()
        return [None] * len(ids)

    def _uuids(self, chosen: Sequence[int]) -> dict[int, str]:
        return {engine["id"]: engine["uuid"] for engine in self._core.engines() if engine["id"] in chosen}

    # -- properties -----------------------------------------------------------------

    def set_properties(
        self, properties: Mapping[str, Any], targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Add to the engines' properties: a small dict an engine, seen by task dependencies.

        Returns
        -------
        list of None
        """
        if not isinstance(properties, Mapping):
            raise TypeError(f"set_properties takes a dict, not {type(properties).__name__}.")
        _keys(properties)
        parts = objects.dumps(dict(properties), "the properties")
        return self._command("set_properties", "set_properties", {}, parts, targets=targets, block=block)

    def get_properties(
        self,
        keys: str | Iterable[str] | None = None,
        targets: TargetSpec | None = None,
        block: bool | None = None,
    ) -> Any:
        """The engines' properties.

        Parameters
        ----------
        keys : str or sequence of str, optional
            Which ones; nothing: all.

        Returns
        -------
        list of dict
        """
        names = None if keys is None else _keys(keys)
        return self._command(
            "get_properties", "get_properties", {"keys": names}, targets=targets, block=block
        )

    def has_properties(
        self, keys: str | Iterable[str], targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Whether the engines have properties: a list of bool a target, for one key a bool."""
        single = isinstance(keys, str)
        return self._command(
            "has_properties",
            "has_properties",
            {"keys": _keys(keys)},
            targets=targets,
            block=block,
            finish=lambda values: [value[0] for value in values] if single else list(values),
        )

    def del_properties(
        self, keys: str | Iterable[str], targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Delete properties by key; a list of None."""
        return self._command(
            "del_properties", "del_properties", {"keys": _keys(keys)}, targets=targets, block=block
        )

    def clear_properties(self, targets: TargetSpec | None = None, block: bool | None = None) -> Any:
        """Delete all properties; a list of None."""
        return self._command("clear_properties", "clear_properties", {}, targets=targets, block=block)

    # -- a look at it -----------------------------------------------------------------

    def status(self) -> Status:
        """A table of the engines: host, process, load, what runs and waits.

        Returns
        -------
        Status
            A list of dicts that shows as a table.
        """
        return fetch_status(self._core, self._chosen(None))


def _all_fresh(table: Sequence[Mapping[str, Any]], before: Mapping[int, str]) -> bool:
    fresh = {row["id"] for row in table if row["state"] == "ready" and row["uuid"] != before.get(row["id"])}
    return fresh.issuperset(before)


def _none_left(table: Sequence[Mapping[str, Any]], before: Mapping[int, str]) -> bool:
    return not {row["uuid"] for row in table}.intersection(before.values())


def _none_each(chosen: Sequence[int]) -> Callable[[Any], list[Any]]:
    return lambda answer: [None] * len(chosen)


def _keys(keys: str | Iterable[str]) -> list[str]:
    names = [keys] if isinstance(keys, str) else list(keys)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"the key of a property is a str, not {name!r}.")
    return names


def _signal_number(sig: int | str) -> int:
    if isinstance(sig, str):
        name = sig.upper()
        name = name if name.startswith("SIG") else f"SIG{name}"
        if name not in _signal.Signals.__members__:
            raise ValueError(f"There is no signal {sig!r}. Give a number or a name, as in 'SIGUSR1'.")
        return int(_signal.Signals[name])
    if isinstance(sig, bool) or not isinstance(sig, int):
        raise TypeError(f"a signal is a number or a name, not {sig!r}.")
    try:
        return int(_signal.Signals(sig))
    except ValueError:
        raise ValueError(f"There is no signal {sig}. Give a number or a name, as in 'SIGUSR1'.") from None
