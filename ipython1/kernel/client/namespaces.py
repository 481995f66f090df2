"""Variables and functions of the engines' namespaces, one at a time or dealt out in parts."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ipython1.kernel.client import partition
from ipython1.kernel.client.calls import Calls
from ipython1.kernel.client.targets import TargetSpec, resolve_targets
from ipython1.kernel.wire import objects


class NamespaceCalls(Calls):
    """The calls that set, get and delete what stands in a namespace."""

    def push(
        self, ns: Mapping[str, Any], targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Set variables.

        Parameters
        ----------
        ns : dict
            Values by name.

        Returns
        -------
        list of None

        Raises
        ------
        SerializationError
            A value cannot be sent.
        ValueError
            A name is no name of a variable, or is ``engine_id``.
        """
        values = _settables(ns, "push")
        chosen = self._chosen(targets)
        parts = objects.dumps_values(values)
        return self._send("push", "push", {}, [(chosen, parts)], block, _nothing, _label("push", values))

    def pull(
        self, keys: str | Iterable[str], targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Get variables.

        Parameters
        ----------
        keys : str or sequence of str
            One name, or several.

        Returns
        -------
        list
            One entry a target: the value for one name, a list of values for
            a sequence of names, whatever its length.
        """
        return self._pull("pull", keys, targets, block)

    def pull_function(
        self, keys: str | Iterable[str], targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Get functions; the same as `pull`, for callables."""
        return self._pull("pull_function", keys, targets, block)

    def _pull(
        self, op: str, keys: str | Iterable[str], targets: TargetSpec | None, block: bool | None
    ) -> Any:
        names = _names(keys)
        finish = _firsts if isinstance(keys, str) else list
        return self._command(
            op, op, {"keys": names}, targets=targets, block=block, finish=finish, label=_label(op, names)
        )

    def zip_pull(
        self, keys: str | Iterable[str], targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Get variables, sorted by name.

        Parameters
        ----------
        keys : str or sequence of str
            One name, or several.

        Returns
        -------
        list of tuple
            One tuple a name, with a value a target; for one name that tuple.
        """
        names = _names(keys)
        single = isinstance(keys, str)

        def finish(values: list[Any]) -> Any:
            columns = list(zip(*values, strict=True))
            return columns[0] if single else columns

        return self._command(
            "zip_pull",
            "pull",
            {"keys": names},
            targets=targets,
            block=block,
            finish=finish,
            label=_label("zip_pull", names),
        )

    def push_function(
        self,
        ns: Mapping[str, Callable[..., Any]],
        targets: TargetSpec | None = None,
        block: bool | None = None,
    ) -> Any:
        """Set functions, which then live in the engines' namespaces.

        Parameters
        ----------
        ns : dict
            Callables by name. Their globals are the engine's; names they use
            that the engine lacks come along.

        Returns
        -------
        list of None
        """
        functions = _settables(ns, "push_function")
        for name, function in functions.items():
            if not callable(function):
                raise TypeError(
                    f"push_function takes callables; {name!r} is a {type(function).__name__}. Use push."
                )
        chosen = self._chosen(targets)
        parts, label = objects.dumps_values(functions), _label("push_function", functions)
        return self._send("push_function", "push_function", {}, [(chosen, parts)], block, _nothing, label)

    def transfer(
        self,
        keys: str | Iterable[str],
        source: int,
        targets: TargetSpec | None = None,
        name: str | Iterable[str] | None = None,
        block: bool | None = None,
    ) -> Any:
        """Send variables from one engine to others; their values do not come here.

        Parameters
        ----------
        keys : str or sequence of str
            One name, or several.
        source : int
            The engine that has them.
        targets : int, slice, sequence of int or 'all', optional
            The engines that get them. Of these `source` is left out where
            `name` is not given.
        name : str or sequence of str, optional
            What they are called there, if not the same.

        Returns
        -------
        list of None

        Raises
        ------
        CompositeError
            Of ``NameError`` where a name is missing on `source`, of
            ``SerializationError`` where a value cannot be sent.
        """
        names = _names(keys)
        new = [_settable(each) for each in (names if name is None else _names(name))]
        if len(new) != len(names):
            raise ValueError(f"{len(names)} variables cannot have {len(new)} names: give a name for each.")
        givers = resolve_targets(source, self._all_ids())
        if len(givers) > 1:
            raise ValueError(f"source is one engine, not {source!r}.")
        giver = givers[0]
        chosen = self._chosen(targets)
        if name is None:
            chosen = tuple(target for target in chosen if target != giver)
        if not chosen:
            raise ValueError(f"engine {giver} has it already. Give other targets, or a name.")
        label = _label("transfer", names)
        args = {"keys": names, "names": new}
        return self._send("transfer", "push", args, [(chosen, ())], block, _nothing, label, giver=giver)

    def keys(self, targets: TargetSpec | None = None, block: bool | None = None) -> Any:
        """The user's names: a list of str a target."""
        return self._command("keys", "keys", {}, targets=targets, block=block)

    def reset(self, targets: TargetSpec | None = None, block: bool | None = None) -> Any:
        """Fresh namespaces and numbering."""
        return self._command("reset", "reset", {}, targets=targets, block=block, finish=_nothing)

    def _delete(self, key: str) -> None:
        self._command("del", "delete", {"keys": [_name(key)]}, targets=None, block=True, label=f"del {key}")

    def _has(self, key: str) -> bool:
        found: list[bool] = self._command(
            "has", "has", {"keys": [_name(key)]}, targets=None, block=True, finish=_firsts, label=f"has {key}"
        )
        return all(found)

    # -- sequences ------------------------------------------------------------------

    def scatter(
        self,
        key: str,
        seq: Any,
        dist: str = "b",
        flatten: bool = False,
        targets: TargetSpec | None = None,
        block: bool | None = None,
    ) -> Any:
        """Deal a sequence out over the engines, each its part under the name `key`.

        Parameters
        ----------
        key : str
            Name of the parts.
        seq : sequence, array or frame
            Anything that can be sliced; arrays along axis 0, frames by rows.
        dist : {'b', 'r'}
            ``'b'``: contiguous blocks, the first ``len % n`` one longer.
            ``'r'``: dealt out in turn.
        flatten : bool
            Parts of length 1 become bare elements.

        Returns
        -------
        list of None
        """
        name = _settable(key)
        chosen = self._chosen(targets)
        parts = partition.split(seq, len(chosen), dist)
        if flatten:
            parts = [partition.flatten(part) for part in parts]
        dumped = [objects.dumps_values({name: part}) for part in parts]
        submits = [((target,), part) for target, part in zip(chosen, dumped, strict=True)]
        return self._send("scatter", "push", {}, submits, block, _nothing, f"scatter {name}")

    def gather(
        self, key: str, dist: str = "b", targets: TargetSpec | None = None, block: bool | None = None
    ) -> Any:
        """Put the parts of a scattered sequence together again.

        Parameters
        ----------
        key : str
            Name of the parts.
        dist : {'b', 'r'}
            How they were scattered.

        Returns
        -------
        list, array or frame
            By the kind of the parts.
        """
        name = _name(key)
        return self._command(
            "gather",
            "pull",
            {"keys": [name]},
            targets=targets,
            block=block,
            finish=lambda values: partition.join(_firsts(values), dist),
            label=f"gather {name}",
        )


def _nothing(values: list[Any]) -> list[None]:
    return [None] * len(values)


def _firsts(values: list[Any]) -> list[Any]:
    return [value[0] for value in values]


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the name of a variable is a str, not {key!r}.")
    return objects.variable_name(key)


def _names(keys: str | Iterable[str]) -> list[str]:
    if not isinstance(keys, Iterable):
        raise TypeError(f"a name is a str, several are a sequence of them, not {keys!r}.")
    return [_name(key) for key in ([keys] if isinstance(keys, str) else keys)]


def _settable(key: Any) -> str:
    name = _name(key)
    if not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(f"{name!r} cannot be the name of a variable.")
    if name == "engine_id":
        raise ValueError("engine_id is each engine's own id and cannot be set. Take another name.")
    return name


def _settables(ns: Mapping[str, Any], method: str) -> dict[str, Any]:
    if not isinstance(ns, Mapping):
        raise TypeError(f"{method} takes a dict of values by name, not {type(ns).__name__}.")
    return {_settable(key): value for key, value in ns.items()}


def _label(op: str, names: Iterable[str]) -> str:
    return f"{op} {', '.join(names)}"
