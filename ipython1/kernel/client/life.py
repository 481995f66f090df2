"""What every kind of client is: one connection, which it opens and closes."""

from __future__ import annotations

import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ipython1.kernel.error import ClientClosed, IPython1Error, SerializationError

if TYPE_CHECKING:
    from typing_extensions import Self

    from ipython1.kernel.client.core import ClientCore


class ClientLife:
    """A client as the owner of its connection; a context manager."""

    _core: ClientCore

    @classmethod
    def _from_core(cls, core: ClientCore) -> Self:
        """A client over a connection that is there already."""
        client = cls.__new__(cls)
        client._attach(core)
        return client

    def _attach(self, core: ClientCore) -> None:
        self._core = core
        # Views and pending results keep the client alive; without any of them it closes by itself.
        self._close = weakref.finalize(self, core.close)

    @property
    def ids(self) -> list[int]:
        """The engine ids, sorted."""
        self._core.check_usable()
        return [engine["id"] for engine in self._core.engines()]

    def close(self) -> None:
        """End the connection; the engines and their namespaces stay. What is outstanding fails."""
        self._close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return not self._close.alive

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        try:
            self._core.check_usable()
        except ClientClosed:
            state = "closed"
        except IPython1Error as error:  # there was no controller for too long
            state = f"lost: {error}"
        else:
            state = self._state()
        return f"<{type(self).__name__} {self._core.address}: {state}>"

    def _state(self) -> str:
        n = len(self._core.engines())
        return "1 engine" if n == 1 else f"{n} engines"

    def __reduce__(self) -> Any:
        name = type(self).__name__
        raise SerializationError(
            what=f"a {name}",
            reason="its connection belongs to this process. Create a client where it is needed, "
            f"with client.{name}()",
        )
