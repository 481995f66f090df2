"""Links over Foolscap: the controller's doors, and how the others dial them.

Behind each FURL stands a door. Whoever holds the FURL knocks, with a `Hello`
and a link of its own; the door answers with a `Welcome` and its own link, or
with a `Refusal`. From then on each side hands batches to the other's link.
All that crosses Foolscap is bytes, and the references to the two links.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Mapping
from typing import Any

from foolscap.api import (
    ChoiceOf,
    DeadReferenceError,
    Referenceable,
    RemoteException,
    RemoteInterface,
    TupleOf,
)
from foolscap.constraint import ByteStringConstraint
from foolscap.pb import Tub
from foolscap.tokens import BananaError, NegotiationError, RemoteNegotiationError, Violation
from OpenSSL import SSL
from twisted.internet.defer import (
    CancelledError,
    Deferred,
    DeferredList,
    execute,
    fail,
    inlineCallbacks,
)
from twisted.internet.error import CannotListenError, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from ipython1.kernel.error import (
    BadFURL,
    ConnectionFailed,
    LaunchError,
    NobodyListening,
    NotAllowed,
    WireError,
    WrongController,
)
from ipython1.kernel.files import ClusterFiles, write_private
from ipython1.kernel.interfaces import IDialer, IDoor, ILink, ILinkSink
from ipython1.kernel.wire.lanes import PATH_LIMIT, LaneServer, open_lane
from ipython1.kernel.wire.session import BATCH_LIMIT
from ipython1.kernel.wire.tubs import (
    load_certificate,
    make_certificate,
    make_tub,
    open_port,
    publish,
    reactor,
    split_furl,
    split_location,
    why_not_listening,
)

#: Bytes of one argument at most: a batch, and the numbers around its records.
ARGUMENT_LIMIT = BATCH_LIMIT + 64 * 1024
BYTES = ByteStringConstraint(ARGUMENT_LIMIT)

#: The Unix socket of the lanes, in the cluster's folder ``run``.
LANE = "lane.sock"

log = Logger()


class RILink(RemoteInterface):
    """One end of a link, as the other end sees it."""

    __remote_name__ = "ipython1.RILink"

    def deliver(batch=BYTES):  # type: ignore[no-untyped-def]  # noqa: N805
        """Take a batch; called with ``callRemoteOnly``, there is no answer."""
        return None

    def offer_lane(path=BYTES, ticket=BYTES):  # type: ignore[no-untyped-def]  # noqa: N805
        """A faster way, see `lanes`; from the controller, with ``callRemoteOnly``."""
        return None


class RIDoor(RemoteInterface):
    """What a FURL names."""

    __remote_name__ = "ipython1.RIDoor"

    def knock(hello=BYTES, peer=RILink):  # type: ignore[no-untyped-def]  # noqa: N805
        """An encoded `Welcome` and a link, or a `Refusal` and None."""
        return TupleOf(BYTES, ChoiceOf(RILink, None))


# -- both sides ------------------------------------------------------------------


@implementer(RILink, ILink)  # type: ignore[misc]
class FoolscapLink(Referenceable):  # type: ignore[misc]
    """Both ends of a link are one of these.

    Its sink hears ``link_lost`` exactly once after it was connected, whoever ended it.
    """

    def __init__(self, sink: ILinkSink | None = None, on_lost: Callable[[], None] | None = None) -> None:
        self._dialled = sink is not None
        self._withdraw: Callable[[], None] = lambda: None
        #: Who hears what comes in; batches that come before there is one are dropped.
        self.sink = sink
        self._on_lost = on_lost
        self._remote: Any = None

    def connect(self, remote: Any) -> None:
        """Send to `remote`, the other end of the link, from now on."""
        self._remote = remote
        remote.notifyOnDisconnect(self._lost)

    def send(self, batch: bytes) -> None:
        """See `ILink`."""
        if len(batch) > ARGUMENT_LIMIT:
            log.error("a batch of {size} bytes is too large for a link", size=len(batch))
            self.close()
        elif self._remote is not None:
            # Foolscap takes plain bytes only, no subclass of it.
            self._remote.callRemoteOnly("deliver", bytes(batch))

    def close(self) -> None:
        """See `ILink`. What was sent before still goes out, if the peer takes it soon."""
        if self._remote is not None and self._remote.isConnected():
            self._remote.tracker.broker.shutdown(Failure(ConnectionDone("the link was closed")))

    def remote_deliver(self, batch: bytes) -> None:
        """A batch from the peer."""
        if self.sink is None:
            return
        try:
            self.sink.batch_received(batch)
        except WireError as error:
            log.warn("a link is closed: {error}", error=error)
            self.close()
        except Exception:  # noqa: BLE001 -- Foolscap would drop it silently
            log.failure("a batch was not handled, its link is closed")
            self.close()

    def offer_lane(self, lanes: LaneServer, sink: ILinkSink) -> None:
        """Invite the peer to move to a lane."""
        ticket = lanes.ticket(sink)
        self._withdraw = lambda: lanes.withdraw(ticket)
        self._remote.callRemoteOnly("offer_lane", os.fsencode(lanes.path), ticket)

    def remote_offer_lane(self, path: bytes, ticket: bytes) -> None:
        """Move there, if we are the ones who dialled, and on the controller's host."""
        if self.sink is not None and self._dialled:
            open_lane(reactor, os.fsdecode(path), ticket, self.sink)

    def _lost(self) -> None:
        sink, self.sink = self.sink, None
        self._remote = None
        self._withdraw()
        if self._on_lost is not None:
            self._on_lost()
        if sink is not None:
            sink.link_lost(self)


# -- the side that dials -----------------------------------------------------------


@implementer(IDialer)
class FoolscapDialer:
    """Opens links to whoever the FURL names, each over a connection of its own.

    Dialling again replaces the link there was; the controller sees the same certificate.

    Parameters
    ----------
    furl : str
        Text of a FURL. Where it is not one, `dial` says so.
    connect_timeout : float
        Seconds from dialling to the answer.
    """

    def __init__(self, furl: str, *, connect_timeout: float = 10.0) -> None:
        self._furl = furl.strip()
        self._timeout = connect_timeout
        self._certificate = make_certificate()
        self._dialling: dict[Tub, Deferred[Any]] = {}
        self._running: set[Tub] = set()
        self._stopping: dict[Tub, Deferred[None]] = {}
        self._closed = False
        self._bad: BadFURL | None = None
        #: Who is dialled, as 'host:port'.
        self.address = "nowhere"
        try:
            _, locations, _ = split_furl(furl)
        except BadFURL as error:
            self._bad = error
        else:
            self.address = locations[0]

    def dial(self, hello: bytes, sink: ILinkSink) -> Deferred[tuple[bytes, ILink | None]]:
        """See `IDialer`."""
        if self._bad is not None:
            return fail(self._bad)
        if self._closed:
            return fail(ConnectionFailed(address=self.address, reason="the connection was closed here"))
        # A Tub for each connection: a new one to the controller is never mistaken
        # for a duplicate of one that it does not know to be lost.
        tub = make_tub(self._certificate)
        tub.startService()
        self._running.add(tub)
        link = FoolscapLink(sink, lambda: self._drop(tub))
        deferred: Deferred[tuple[bytes, ILink | None]] = self._knock(tub, bytes(hello), link)
        if not deferred.called:
            self._dialling[tub] = deferred

        def ended(result: Any) -> Any:
            self._dialling.pop(tub, None)
            if not isinstance(result, Failure):
                return result
            self._drop(tub)
            return Failure(self._explain(result.value))

        # Cancelled by us for any reason: `_explain` tells which.
        return deferred.addTimeout(self._timeout, reactor, lambda result, _: result).addBoth(ended)

    @inlineCallbacks
    def _knock(
        self, tub: Tub, hello: bytes, link: FoolscapLink
    ) -> Generator[Deferred[Any], Any, tuple[bytes, ILink | None]]:
        try:
            door = yield tub.getReference(self._furl)
        except RemoteException:
            raise self._not_allowed() from None  # the name is unknown there
        try:
            answer, remote = yield door.callRemote("knock", hello, link)
        except Violation:
            raise self._not_allowed() from None  # it names something, but no door
        except RemoteException:
            raise self._failed("it could not answer; its log says why") from None
        if remote is None:
            self._drop(tub)
            return answer, None
        link.connect(remote)
        return answer, link

    def close(self) -> Deferred[None]:
        """See `IDialer`."""
        self._closed = True
        for deferred in list(self._dialling.values()):
            deferred.cancel()
        for tub in list(self._running):
            self._drop(tub)
        return DeferredList([_after(end) for end in self._stopping.values()]).addCallback(lambda _: None)

    def _drop(self, tub: Tub) -> None:
        if tub not in self._running:
            return
        self._running.remove(tub)
        end: Deferred[None] = Deferred()
        self._stopping[tub] = end

        def stopped(result: Any) -> None:
            if isinstance(result, Failure):
                log.failure("a Tub did not stop", result)
            del self._stopping[tub]
            end.callback(None)

        tub.stopService().addBoth(stopped)

    def _failed(self, reason: str) -> ConnectionFailed:
        return ConnectionFailed(address=self.address, reason=reason)

    def _not_allowed(self) -> NotAllowed:
        return NotAllowed(what="connecting to this controller", address=self.address)

    def _explain(self, error: BaseException | None) -> ConnectionFailed:
        """What went wrong in our words; which exception says what was read in Foolscap's source."""
        if isinstance(error, ConnectionFailed):
            return error
        if isinstance(error, ConnectionRefusedError):
            return NobodyListening(address=self.address, reason="connection refused")
        if self._closed:
            return self._failed("the connection was closed here")
        if isinstance(error, CancelledError):
            return self._failed(f"no answer within {self._timeout:g} s")
        if isinstance(error, (NegotiationError, RemoteNegotiationError)):
            return self._failed(str(error))
        if isinstance(error, (ConnectionDone, ConnectionLost, DeadReferenceError)):
            return self._failed("it hung up during the handshake")
        # Foolscap takes the bytes of a stranger apart without further ado.
        if isinstance(error, (BananaError, SSL.Error, ValueError, LookupError, AssertionError)):
            return WrongController(address=self.address)
        return self._failed(str(error).rstrip(".") or type(error).__name__)


# -- the controller's side -----------------------------------------------------------


@implementer(RIDoor)  # type: ignore[misc]
class _Door(Referenceable):  # type: ignore[misc]
    """An `IDoor`, within reach of those who hold its FURL."""

    def __init__(self, door: IDoor, lanes: LaneServer | None) -> None:
        self._door = door
        self._lanes = lanes

    def remote_knock(self, hello: bytes, peer: Any) -> tuple[bytes, FoolscapLink | None]:
        """Let the door decide."""
        link = FoolscapLink()
        link.connect(peer)
        try:
            answer, sink = self._door.knock(hello, link)
        except WireError as error:
            log.warn("somebody knocked with something else than a hello: {error}", error=error)
            raise WireError(reason="not a hello") from None
        except Exception:  # noqa: BLE001 -- its text is not for the peer
            log.failure("a hello was not handled")
            raise WireError(reason="the hello was not handled") from None
        link.sink = sink
        if sink is None:
            return answer, None
        if self._lanes is not None:
            link.offer_lane(self._lanes, sink)
        return answer, link


class Listener:
    """The controller's port, open until `stop`.

    Attributes
    ----------
    host : str
        Where others find it; the first location in the FURLs.
    port : int
        The port that is listened on.
    furls : dict
        The FURL of each kind.
    """

    def __init__(
        self, tub: Tub, host: str, port: int, furls: dict[str, str], lanes: LaneServer | None
    ) -> None:
        self.host = host
        self.port = port
        self.furls = furls
        self._tub = tub
        self._lanes = lanes
        self._stopped: Deferred[None] | None = None

    def stop(self) -> Deferred[None]:
        """Close the port and every link; fires when nothing of them is left."""
        if self._stopped is None:
            stopped: Deferred[None] = Deferred()
            self._stopped = stopped
            # The port first, lest somebody comes in while the others are shown out.
            ports = [self._tub.stopListeningOn(each) for each in self._tub.getListeners()]
            closed = DeferredList([*ports, *([self._lanes.stop()] if self._lanes is not None else [])])
            closed.addCallback(lambda _: self._tub.stopService())
            closed.addBoth(lambda _: stopped.callback(None))
        return _after(self._stopped)


def _after(event: Deferred[None]) -> Deferred[None]:
    """A Deferred of its own for each who waits for `event`."""
    waiter: Deferred[None] = Deferred()
    event.addCallback(lambda _: waiter.callback(None))
    return waiter


def serve(
    reactor: Any,
    files: ClusterFiles,
    doors: Mapping[str, IDoor],
    *,
    ip: str = "127.0.0.1",
    port: int = 10105,
    location: str | None = None,
    lanes: bool = True,
) -> Deferred[Listener]:
    """Open the controller's port, and write the FURL files of its doors.

    The certificate and the secrets of the FURLs are those of the last time, so
    that FURLs stay good when the controller is restarted.

    Parameters
    ----------
    reactor : IReactorTCP
    files : ClusterFiles
        Where the files are kept; the folders are made.
    doors : dict
        One `IDoor` for each kind of FURL.
    ip : str
        Address to listen on; ``0.0.0.0`` or ``::`` for all.
    port : int
        Port to listen on; 0 for any that is free.
    location : str, optional
        What stands in the FURLs: one or more ``host`` or ``host:port``, with
        commas between; `ip` and the port where not given.
    lanes : bool
        Whether peers on this host are invited to a Unix socket.

    Returns
    -------
    Deferred of Listener
        Fails with `LaunchError`.
    """
    return execute(_serve, reactor, files, doors, ip, port, location, lanes)


def _serve(
    reactor: Any,
    files: ClusterFiles,
    doors: Mapping[str, IDoor],
    ip: str,
    port: int,
    location: str | None,
    with_lanes: bool,
) -> Listener:
    try:
        places = split_location(location or ip)
    except ValueError as error:
        raise _not_started(str(error)) from None
    try:
        files.create()
        certificate = load_certificate(files)
        tub = make_tub(certificate)
    except OSError as error:
        raise _not_started(f"{error.filename} cannot be used ({error.strerror})") from None
    except ValueError:
        raise _not_started(
            f"{files.certificate} is damaged. Delete it; the FURL files are then made anew"
        ) from None
    try:
        bound = open_port(reactor, tub, ip, port)
    except CannotListenError as error:
        raise _not_started(why_not_listening(error, ip, port)) from None
    tub.setLocation(*(f"tcp:{host}:{given or bound}" for host, given in places))
    tub.startService()
    lanes = None
    try:
        write_private(files.certificate, certificate)
        path = files.run / LANE
        if with_lanes and len(os.fsencode(path)) <= PATH_LIMIT and hasattr(reactor, "listenUNIX"):
            lanes = LaneServer(reactor, path)
        furls = {kind: publish(tub, _Door(door, lanes), files.furl(kind)) for kind, door in doors.items()}
    except OSError as error:
        tub.stopService()
        raise _not_started(f"{files.security} cannot be written to ({error.strerror})") from None
    return Listener(tub, places[0][0], bound, furls, lanes)


def _not_started(reason: str) -> LaunchError:
    return LaunchError(what="The controller", reason=reason)
