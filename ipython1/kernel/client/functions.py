"""Functions that run on engines: apply, map, and the objects that hold one for later."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from ipython1.kernel.client import partition
from ipython1.kernel.client.calls import Calls
from ipython1.kernel.client.targets import TargetSpec
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.runners import map_part


class FunctionCalls(Calls):
    """The calls that run a function, which leave nothing behind in a namespace."""

    def apply(
        self,
        f: Callable[..., Any],
        /,
        *args: Any,
        targets: TargetSpec | None = None,
        block: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call a function on each target.

        Parameters
        ----------
        f : callable
            Brings its own world: names as they were here first, the engine's
            namespace for the rest.
        *args, **kwargs
            Its arguments. A `Reference` stands for an object of the engine.

        Returns
        -------
        list
            What it returned, one entry a target.

        Raises
        ------
        SerializationError
            The function or an argument cannot be sent.
        """
        label = f"apply {_callable_name(f)}"
        chosen = self._chosen(targets)
        return self._send(
            "apply", "apply", {}, [(chosen, objects.dumps_call(f, args, kwargs))], block, label=label
        )

    def map(
        self,
        f: Callable[..., Any],
        *sequences: Iterable[Any],
        dist: str = "b",
        targets: TargetSpec | None = None,
        block: bool | None = None,
    ) -> Any:
        """Like builtin `map`, on the engines; eager, in order.

        Parameters
        ----------
        f : callable
        *sequences : iterable
            All of the same length.
        dist : {'b', 'r'}
            Contiguous blocks, or dealt out in turn.

        Returns
        -------
        list
            ``f`` of every item.

        Raises
        ------
        ValueError
            The sequences differ in length.
        """
        return self.raw_map(f, sequences, dist, targets, block)

    def raw_map(
        self,
        f: Callable[..., Any],
        sequences: Sequence[Iterable[Any]],
        dist: str = "b",
        targets: TargetSpec | None = None,
        block: bool | None = None,
    ) -> Any:
        """`map` with its sequences in one list."""
        label = f"map {_callable_name(f)}"
        if not sequences:
            raise TypeError("map needs at least one sequence.")
        chosen = self._chosen(targets)
        columns = [partition.split(column, len(chosen), dist) for column in partition.same_length(sequences)]
        # An engine without items is left alone, but for the first, which answers for an empty map.
        submits = [
            ((target,), objects.dumps_call(map_part, (f, *parts)))
            for target, *parts in zip(chosen, *columns, strict=True)
            if len(parts[0]) or target == chosen[0]
        ]
        return self._send(
            "map", "apply", {}, submits, block, lambda lists: partition.join(lists, dist), label
        )

    def mapper(self, dist: str = "b", targets: TargetSpec | None = None, block: bool | None = None) -> Mapper:
        """An object whose `map` has these defaults."""
        return Mapper(self, dist, targets, block)

    def parallel(
        self, dist: str = "b", targets: TargetSpec | None = None, block: bool | None = None
    ) -> Callable[[Callable[..., Any]], ParallelFunction]:
        """Decorate a function of items: called with sequences, it maps over them on the engines.

        Examples
        --------
        >>> @mec.parallel()
        ... def square(x):
        ...     return x * x
        >>> square(range(4))
        [0, 1, 4, 9]
        """
        mapper = self.mapper(dist, targets, block)
        return lambda function: ParallelFunction(mapper, function)

    def remote(
        self, targets: TargetSpec | None = None, block: bool | None = None
    ) -> Callable[[Callable[..., Any]], RemoteFunction]:
        """Decorate a function: called, it runs on every target, and gives a list.

        Examples
        --------
        >>> @mec.remote()
        ... def where():
        ...     return os.getpid()
        >>> where()
        [4243, 4244]
        """
        if callable(targets):
            raise TypeError("a decorator is written with parentheses: @mec.remote()")
        return lambda function: RemoteFunction(self, function, targets, block)


def _callable_name(f: Any) -> str:
    if not callable(f):
        raise TypeError(f"a function is needed, not {type(f).__name__}.")
    return str(getattr(f, "__name__", None) or type(f).__name__)


class Mapper:
    """Something with a `map`, over fixed targets.

    Parameters
    ----------
    view : FunctionCalls
        Where the work is done.
    dist : {'b', 'r'}
        How the items are dealt out.
    targets, block
        As in every call of the client; None takes the client's.
    """

    def __init__(
        self,
        view: FunctionCalls,
        dist: str = "b",
        targets: TargetSpec | None = None,
        block: bool | None = None,
    ) -> None:
        if not isinstance(dist, str):  # @mec.parallel without the parentheses
            raise TypeError(
                "dist must be 'b' or 'r'; a decorator is written with parentheses: @mec.parallel()"
            )
        self.view = view
        self.dist = dist
        self.targets = targets
        self.block = block

    def __repr__(self) -> str:
        targets = self.view.targets if self.targets is None else self.targets
        return f"<{type(self).__name__} dist={self.dist!r} targets={targets!r}>"

    def map(self, f: Callable[..., Any], *sequences: Iterable[Any]) -> Any:
        """Like builtin `map`, on the engines."""
        return self.view.map(f, *sequences, dist=self.dist, targets=self.targets, block=self.block)


class IMapper(Protocol):
    """Something with a `map` like the builtin one."""

    def map(self, f: Callable[..., Any], *sequences: Iterable[Any]) -> Any:
        """`f` of each item."""


class ParallelFunction:
    """A function of items, called with sequences of them. What ``@mec.parallel()`` makes."""

    def __init__(self, mapper: IMapper, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.mapper = mapper
        self.function = function

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_callable_name(self.function)}>"

    def __call__(self, *sequences: Iterable[Any]) -> Any:
        """The function of each item, on the engines."""
        return self.mapper.map(self.function, *sequences)


class RemoteFunction:
    """A function that runs on all its targets. What ``@mec.remote()`` makes."""

    def __init__(
        self,
        view: FunctionCalls,
        function: Callable[..., Any],
        targets: TargetSpec | None = None,
        block: bool | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        self.view = view
        self.function = function
        self.targets = targets
        self.block = block

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_callable_name(self.function)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function on every target; a list of what it returns."""
        call = functools.partial(self.function, **kwargs) if kwargs else self.function
        return self.view.apply(call, *args, targets=self.targets, block=self.block)
