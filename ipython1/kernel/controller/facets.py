"""What each FURL may do, as a table; and the doors behind the FURLs.

A FURL is a capability. Its door lets in only the kinds of peers named here,
and a peer may send only the records of its kind; of the questions (`Ask`),
only those named.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from zope.interface import implementer

from ipython1 import __version__
from ipython1.kernel.error import ConnectionFailed, WireError
from ipython1.kernel.interfaces import IDoor, ILink, ILinkSink
from ipython1.kernel.wire import codec, records
from ipython1.kernel.wire.codec import decode_as, encode, pack
from ipython1.kernel.wire.records import ENGINES_LIMIT, PROTOCOL, Hello, Refusal, Welcome

#: FURL -> the kinds of peers that may come in through it.
ADMITTED: Mapping[str, frozenset[str]] = {
    "multiengine": frozenset({"multiengine", "task", "view"}),
    "task": frozenset({"task"}),
    "view": frozenset({"view"}),
    "engine": frozenset({"engine", "nanny"}),
}

#: Kinds of peers that have work of their own: their ids name it.
OWNERS = frozenset({"multiengine", "task"})

_LOOK = frozenset({"status", "queue_status", "task_status", "timeline", "links", "load"})

#: Kind of peer -> the records it may send.
RECORDS: Mapping[str, frozenset[type[records.Record]]] = {
    "multiengine": frozenset(
        {
            records.Submit,
            records.Cancel,
            records.Interrupt,
            records.Input,
            records.Fetch,
            records.Forget,
            records.Detach,
            records.Chunk,
            records.Grant,
            records.Ask,
        }
    ),
    "task": frozenset(
        {
            records.Batch,
            records.Work,
            records.Withdraw,
            records.Seek,
            records.Taken,
            records.Detach,
            records.Chunk,
            records.Grant,
            records.Ask,
        }
    ),
    "view": frozenset({records.Ask}),
    "engine": frozenset(
        {
            records.Result,
            records.Outcomes,
            records.Event,
            records.Fetch,
            records.Chunk,
            records.Grant,
            records.Share,
        }
    ),
    "nanny": frozenset({records.Exited, records.Usage, records.Leaving}),
}

#: Kind of peer -> the questions it may ask.
QUESTIONS: Mapping[str, frozenset[str]] = {
    "multiengine": _LOOK | {"clear_queue", "signal", "restart", "kill", "scale", "detach"},
    "task": frozenset({"task_status", "detach"}),
    "view": _LOOK,
    "engine": frozenset(),
    "nanny": frozenset(),
}

_CLIENT = {"client": str}
#: Kind of peer -> the types in the detail map of its hello.
DETAILS: Mapping[str, Mapping[str, Any]] = {
    "multiengine": _CLIENT,
    "task": _CLIENT,
    "view": _CLIENT,
    "engine": {
        "uuid": str,
        "host": str,
        "pid": int,
        "nanny": str,
        "wanted": int,
        "replaces": dict,
        "held": [(str, str, str)],
        "clients": [str],
    },
    "nanny": {"uuid": str, "engines": [str], "exited": [(str, str, str, bool, str)]},
}
_REPLACES = {"uuid": str, "cause": str, "output": str}


def check_detail(kind: str, detail: Mapping[str, Any]) -> None:
    """Look at the map of a hello before anything is done with it.

    Raises
    ------
    WireError
        Something is missing or of the wrong type.
    """
    _check(DETAILS[kind], detail)
    if kind in OWNERS:
        engines = detail.get("engines", ())
        if not _fits(engines, [int]) or not all(0 <= id < ENGINES_LIMIT for id in engines):
            raise WireError(reason="engines must be ids")
    if kind == "engine":
        if detail["replaces"]:
            _check(_REPLACES, detail["replaces"])
        if not -1 <= detail["wanted"] < ENGINES_LIMIT:
            raise WireError(reason=f"{detail['wanted']} is no engine id")


def _check(types: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for name, kind in types.items():
        if not _fits(given.get(name), kind):
            raise WireError(reason=f"{name} is missing or of the wrong type")


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, list):
        return type(value) is tuple and all(_fits(item, kind[0]) for item in value)
    if isinstance(kind, tuple):
        return type(value) is tuple and len(value) == len(kind) and all(map(_fits, value, kind))
    return type(value) is kind


@implementer(IDoor)
class Door:
    """Answers the hellos that come in through one FURL.

    Parameters
    ----------
    furl_kind : str
        Key of `ADMITTED`.
    admit : callable
        Given the kind of the FURL, a checked `Hello`, its detail map and the link, returns the
        sink, whether the session goes on, the last number received, and the welcome map.
    """

    def __init__(
        self,
        furl_kind: str,
        admit: Callable[[str, Hello, dict[str, Any], ILink], tuple[ILinkSink, bool, int, dict[str, Any]]],
    ) -> None:
        self._furl_kind = furl_kind
        self._admit = admit

    def knock(self, hello: bytes, link: ILink) -> tuple[bytes, ILinkSink | None]:
        """Answer a hello: see `IDoor`."""
        try:
            record = decode_as(Hello, hello)
            if record.protocol != PROTOCOL or _series(record.version) != _series(__version__):
                return _refusal("VersionMismatch", theirs=__version__, ours=record.version)
            if record.kind not in ADMITTED[self._furl_kind]:
                what = f"connecting as {record.kind}: it is the {self._furl_kind} FURL"
                return _refusal("NotAllowed", what=what)
            if not 32 <= len(record.fresh) <= 64:
                raise WireError(reason="a session id has 32 to 64 characters")
            detail = codec.unpack_map(record.detail)
            check_detail(record.kind, detail)
            sink, resumed, received, detail = self._admit(self._furl_kind, record, detail, link)
        except WireError as error:
            return _refusal("NotAllowed", what=f"this hello ({error})")
        except ConnectionFailed as error:  # not for good: whoever was here before tries again
            return _refusal("ConnectionFailed", message=str(error))
        return encode(Welcome(__version__, resumed, received, pack(detail))), sink


def _series(version: str) -> list[str]:
    return version.split(".")[:2]


def _refusal(reason: str, **facts: Any) -> tuple[bytes, None]:
    return encode(Refusal(reason, pack(facts))), None
