"""The controller's side of links: its port, and the doors behind the FURLs."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping
from functools import partial
from typing import Any

from foolscap.api import Referenceable
from foolscap.pb import Tub
from twisted.internet.defer import Deferred, DeferredList, execute
from twisted.internet.error import CannotListenError
from twisted.logger import Logger
from zope.interface import implementer

from ipython1.kernel.error import LaunchError, WireError
from ipython1.kernel.files import ClusterFiles, write_private
from ipython1.kernel.interfaces import IDoor, ILinkSink
from ipython1.kernel.wire.addresses import WILDCARDS, interfaces, is_address, listening, outward, places
from ipython1.kernel.wire.bounds import Complaints, Guests
from ipython1.kernel.wire.lanes import KINDS
from ipython1.kernel.wire.links import FoolscapLink, RIDoor, after
from ipython1.kernel.wire.pulse import DEAD_LINK_AFTER
from ipython1.kernel.wire.sniffing import Sniffing
from ipython1.kernel.wire.tickets import LaneServer
from ipython1.kernel.wire.tubs import (
    load_certificate,
    make_tub,
    open_port,
    publish,
    why_not_listening,
)

#: The Unix socket of the lanes, in the cluster's folder ``run``.
LANE = "lane.sock"
#: Longest path of a Unix socket that every platform takes.
PATH_LIMIT = 100

log = Logger()


@implementer(RIDoor)  # type: ignore[misc]
class _Door(Referenceable):  # type: ignore[misc]
    """An `IDoor`, within reach of those who hold its FURL."""

    def __init__(self, door: IDoor, lanes: LaneServer, dead_after: float) -> None:
        self._door = door
        self._lanes = lanes
        self._dead_after = dead_after

    def remote_knock(self, hello: bytes, peer: Any) -> tuple[bytes, FoolscapLink | None, float]:
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
            return answer, None, self._dead_after
        peer.tracker.broker.belongs_here()
        self._offer_lane(link, sink)
        return answer, link, self._dead_after

    def _offer_lane(self, link: FoolscapLink, sink: ILinkSink) -> None:
        lanes = self._lanes
        if lanes.path is not None or lanes.tls:
            ticket = lanes.ticket(sink)
            link.at_end = partial(lanes.withdraw, ticket)
            link.offer_lane(os.fspath(lanes.path or ""), lanes.tls, ticket)


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
        self,
        tub: Tub,
        host: str,
        port: int,
        furls: dict[str, str],
        lanes: LaneServer,
        sniffing: Sniffing | None,
    ) -> None:
        self.host = host
        self.port = port
        self.furls = furls
        self._tub = tub
        self._lanes = lanes
        self._sniffing = sniffing
        self._stopped: Deferred[None] | None = None

    def stop(self) -> Deferred[None]:
        """Close the port and every link; fires when nothing of them is left."""
        if self._stopped is None:
            stopped: Deferred[None] = Deferred()
            self._stopped = stopped
            # The port first, lest somebody comes in while the others are shown out.
            ports = [self._tub.stopListeningOn(each) for each in self._tub.getListeners()]
            closed: Deferred[Any] = DeferredList(ports)
            if self._sniffing is not None:
                sniffing = self._sniffing
                closed.addCallback(lambda _: sniffing.stop())
            closed.addCallback(lambda _: self._lanes.stop())
            closed.addCallback(lambda _: self._tub.stopService())
            closed.addBoth(lambda _: stopped.callback(None))
        return after(self._stopped)


def serve(
    reactor: Any,
    files: ClusterFiles,
    doors: Mapping[str, IDoor],
    *,
    ip: str = "127.0.0.1",
    port: int = 10105,
    location: str | None = None,
    lanes: Container[str] = KINDS,
    dead_after: float = DEAD_LINK_AFTER,
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
        Address to listen on, or the name of an interface; ``0.0.0.0`` or ``::`` for all.
    port : int
        Port to listen on; 0 for any that is free.
    location : str, optional
        What stands in the FURLs: one or more ``host`` or ``host:port``, with
        commas between. Where not given it is `ip`, or the addresses that other
        hosts may reach this one at (see `addresses`), and the port. Where this
        host finds it itself comes last.
    lanes : container of str
        Which of the `lanes.KINDS` peers are invited to.
    dead_after : float
        Seconds of silence after which a link counts as lost, here and at the other ends.

    Returns
    -------
    Deferred of Listener
        Fails with `LaunchError`.
    """
    return execute(_serve, reactor, files, doors, ip, port, location, lanes, dead_after)


def _serve(
    reactor: Any,
    files: ClusterFiles,
    doors: Mapping[str, IDoor],
    ip: str,
    port: int,
    location: str | None,
    kinds: Container[str],
    dead_after: float,
) -> Listener:
    try:
        table = interfaces() if ip in WILDCARDS or not is_address(ip) else {}
        ip = listening(ip, table)
        named = places(ip, location, table, outward() if table else "")
    except ValueError as error:
        raise _not_started(str(error)) from None
    try:
        files.create()
        certificate = load_certificate(files)
        tub = make_tub(certificate, dead_after)
    except OSError as error:
        raise _not_started(f"{error.filename} cannot be used ({error.strerror})") from None
    except ValueError:
        raise _not_started(
            f"{files.certificate} is damaged. Delete it; the FURL files are then made anew"
        ) from None
    complaints = Complaints(log, reactor)
    guests = tub.guests = Guests()
    lanes = LaneServer(reactor, complaints, guests, dead_after)
    sniffing = None

    def tell_apart(foolscap: Any) -> Any:
        nonlocal sniffing
        if "tls" not in kinds:
            return foolscap
        sniffing = Sniffing(reactor, lanes.tls_factory(certificate), foolscap, complaints, guests)
        return sniffing

    try:
        bound = open_port(reactor, tub, ip, port, tell_apart)
    except CannotListenError as error:
        raise _not_started(why_not_listening(error, ip, port)) from None
    tub.setLocation(*dict.fromkeys(f"tcp:{host}:{given or bound}" for host, given in named))
    tub.startService()
    try:
        write_private(files.certificate, certificate)
        path = files.run / LANE
        if "unix" in kinds and len(os.fsencode(path)) <= PATH_LIMIT and hasattr(reactor, "listenUNIX"):
            lanes.listen(path)
        furls = {
            kind: publish(tub, _Door(door, lanes, dead_after), files.furl(kind))
            for kind, door in doors.items()
        }
    except OSError as error:
        lanes.stop()
        tub.stopService()
        raise _not_started(f"{files.security} cannot be written to ({error.strerror})") from None
    return Listener(tub, named[0][0], bound, furls, lanes, sniffing)


def _not_started(reason: str) -> LaunchError:
    return LaunchError(what="The controller", reason=reason)
