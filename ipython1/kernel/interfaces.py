"""The places where ipython1 can be extended, and the seams tests use."""

from __future__ import annotations

from zope.interface import Attribute, Interface


class ILink(Interface):
    """One connection that carries batches for a `Session`, as long as it lasts."""

    def send(batch: bytes) -> None:
        """Hand over a batch. Never raises; a lost link says so through its sink."""

    def close() -> None:
        """End the connection. The sink hears ``link_lost`` at most once, maybe not at all."""


class ILinkSink(Interface):
    """What a link talks to: a `Session`, or who stands before it."""

    received = Attribute("Number of the last record taken from the peer.")

    def attach(link: ILink, peer_received: int) -> None:
        """Go on over another link; the peer has all records up to a number."""

    def batch_received(batch: bytes) -> None:
        """A batch from the peer. Raises `WireError` where it is malformed; the link then closes."""

    def link_lost(link: ILink | None) -> None:
        """The connection ended."""


class IDialer(Interface):
    """Opens links to the controller; used by clients, engines and nannies."""

    address = Attribute("Who is dialled, for messages: 'host:port'.")

    def dial(hello: bytes, sink: ILinkSink):  # type: ignore[no-untyped-def]
        """A Deferred of ``(answer: bytes, link: ILink)``; fails with `ConnectionFailed`.

        `answer` is an encoded `Welcome` or `Refusal`; with a refusal the link is None.
        """

    def trouble() -> list[tuple[str, str]]:
        """Of the last dial, also while it goes on: each place, and why it was in vain so far."""

    def close():  # type: ignore[no-untyped-def]
        """Give up all resources; a Deferred that fires when that is done."""


class IDoor(Interface):
    """The controller's side of dialling, one a FURL."""

    def knock(hello: bytes, link: ILink) -> tuple[bytes, ILinkSink | None]:
        """Answer a hello with an encoded `Welcome` and a sink, or a `Refusal` and None."""


class IShell(Interface):
    """Runs user code on an engine, on the thread that calls it."""

    user_ns = Attribute("The persistent namespace, a dict.")
    execution_count = Attribute("Number of the last numbered command.")

    def run_code(code: str, silent: bool):  # type: ignore[no-untyped-def]
        """Run source text; returns a dict with keys input, number, result; raises what the code raises."""

    def reset() -> None:
        """A fresh namespace and numbering."""


class IBlobStore(Interface):
    """Carries the bytes of large parts for one `Session`."""

    def offer(blob: str, data: memoryview) -> None:
        """Send `data` under the name `blob`, again where asked, until it is released."""

    def expect(blob: str, size: int):  # type: ignore[no-untyped-def]
        """A Deferred of the bytes of `blob`, as a writable buffer."""

    def release(blob: str) -> None:
        """Nobody will want the offered `blob` any more."""

    def drop(blob: str) -> None:
        """Expect `blob` no longer."""


class IScheduler(Interface):
    """Says which tasks go first, and to which engines. Holds the batches that have tasks ready.

    A batch has ``id``, ``number`` (in order of arrival), ``client``,
    ``priority`` (higher first), ``waiting`` (tasks ready) and
    ``admits(engine)``: whether one of them may go to that engine.
    """

    def add(batch) -> None:  # type: ignore[no-untyped-def]
        """A batch has tasks ready; it may be here already."""

    def remove(batch) -> None:  # type: ignore[no-untyped-def]
        """A batch has no tasks ready any more; it may have been gone before."""

    def next(engine: int):  # type: ignore[no-untyped-def]
        """The batch whose tasks go to `engine` next, or None. It must admit the engine."""

    def served(batch) -> None:  # type: ignore[no-untyped-def]
        """Tasks of this batch, which `next` named, went to an engine; it is still here."""

    def engines(loads: dict[int, int]):  # type: ignore[no-untyped-def]
        """The engines in `loads`, in the order in which they get tasks.

        `loads`: engine id -> tasks it has; all of them have room for more.
        """


class ILauncher(Interface):
    """Starts the engines of a cluster somewhere; `ipython1.launch.launcher.Launcher` is the base for it."""

    def start(n: int, furl: str):  # type: ignore[no-untyped-def]
        """Start `n` engines that register at `furl`; again, after they ended."""

    def stop() -> None:
        """End what `start` started; returns when it is gone. At once, where called a second time."""

    def poll() -> str | None:
        """None as long as there are engines or some can still come, else in words how they ended."""
