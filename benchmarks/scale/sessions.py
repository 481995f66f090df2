"""Sessions of engines that only answer, over real links: engines as a controller sees them.

``python -m benchmarks.scale.sessions FURL-FILE COUNT LANES``. They echo what they are sent. A line of
JSON says when all are registered; the end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from twisted.internet import reactor as _reactor
from twisted.internet.protocol import Protocol
from twisted.internet.stdio import StandardIO

from ipython1.kernel.wire.connection import Connection
from ipython1.kernel.wire.lanes import KINDS
from ipython1.kernel.wire.links import FoolscapDialer
from ipython1.kernel.wire.records import Outcomes, Record, Result, Submit, Work

#: As engines have it; that module would import IPython.
ANSWER_TIME = 30.0

reactor: Any = _reactor


class Answering:
    """One engine's session.

    Parameters
    ----------
    furl : str
    lanes : container of str
        As for `FoolscapDialer`.
    registered : callable
        Called each time the controller gave it an id.
    """

    def __init__(self, furl: str, lanes: Any, registered: Any) -> None:
        self._registered = registered
        self.id = -1
        self.uuid = uuid.uuid4().hex
        self.connection = Connection(
            reactor,
            FoolscapDialer(furl, connect_timeout=ANSWER_TIME, lanes=lanes),
            "engine",
            detail=self._detail,
            receive=self._receive,
            welcomed=self._welcomed,
            lost=lambda reason: print(json.dumps({"lost": str(reason)}), flush=True),
            grace=120.0,
        )

    def _detail(self) -> dict[str, Any]:
        return {
            "uuid": self.uuid,
            "host": "here",
            "pid": os.getpid(),
            "nanny": "",
            "wanted": self.id,
            "replaces": {},
            "held": [],
            "clients": [],
        }

    def _welcomed(self, detail: dict[str, Any], resumed: bool) -> None:
        self.id = detail["id"]
        self._registered()

    def _receive(self, record: Record, raw: bytes) -> None:
        now = time.time()
        if type(record) is Submit:
            self.connection.send(Result(record.id, self.id, record.op, "ok", now, now, 0, record.parts))
        elif type(record) is Work:
            ends = tuple((index, attempt, "ok", now, now, 0, parts) for index, attempt, parts in record.items)
            self.connection.send(Outcomes(record.batch, self.id, ends))


class _UntilEnd(Protocol):  # type: ignore[misc]
    def connectionLost(self, reason: object = None) -> None:
        reactor.callFromThread(os._exit, 0)


def main() -> None:
    """Register, then answer until stdin ends."""
    path, count, lanes = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
    furl = path.read_text()
    begin = time.perf_counter()
    left = [count]

    def registered() -> None:
        left[0] -= 1
        if left[0] == 0:
            facts = {"registered": count, "seconds": time.perf_counter() - begin, "cpu": time.process_time()}
            print(json.dumps(facts), flush=True)

    sessions = [Answering(furl, lanes, registered) for _ in range(count)]
    StandardIO(_UntilEnd())
    for session in sessions:
        reactor.callWhenRunning(session.connection.start, 60.0)
    reactor.run()


if __name__ == "__main__":
    assert set(sys.argv[3].split(",")) <= {*KINDS, ""}
    main()
