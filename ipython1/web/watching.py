"""Looks at a cluster from another process, through its dashboard. Light: the standard library only.

Whoever looks does so with the token of those who may look, not act.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ipython1.kernel.error import IPython1Error
from ipython1.kernel.files import ClusterFiles
from ipython1.launch import state as states
from ipython1.web.guard import RIGHTS, token_of

if TYPE_CHECKING:
    from http.client import HTTPResponse

#: Seconds in which the dashboard has to say something; it does so twice a second.
PATIENCE = 10.0
#: Seconds of rates, and incidents, that are remembered.
RATES_KEPT, INCIDENTS_KEPT = 60, 20

State = dict[str, Any]


class NoDashboard(IPython1Error):
    """Cluster {cluster} has no dashboard, which tells what is shown here: it was started with
    --no-dashboard. Use: ipcluster status{option}"""

    def __init__(self, cluster: str) -> None:
        super().__init__(cluster=cluster, option=states.option(cluster))


class Silent(IPython1Error):
    """The controller of cluster {cluster} does not tell what it does: {reason}.
    Look with: ipcluster logs{option}"""

    def __init__(self, cluster: str, reason: str) -> None:
        super().__init__(cluster=cluster, reason=reason, option=states.option(cluster))


def look(files: ClusterFiles) -> State:
    """What the dashboard of a running cluster shows now; docs/dashboard.rst says what is in it.

    Raises
    ------
    NotRunning, NoDashboard, Silent
    """
    with _asked(files, "/state.json") as answer:
        return _shortened(json.load(answer))


def follow(files: ClusterFiles) -> Iterator[State]:
    """What it shows now, and again after each change, until it ends.

    Raises
    ------
    NotRunning, NoDashboard, Silent
    """
    state: State = {}
    with _asked(files, "/events") as answer:
        event = b""
        for line in answer:
            field, _, value = line.partition(b": ")
            if field == b"event":
                event = value.strip()
            elif field == b"data":
                found = json.loads(value)
                state = _shortened(found) if event == b"state" else merged(state, found)
                yield state


def merged(state: State, change: State) -> State:
    """A new state: `state` after a change of it."""
    gone = set(change.get("gone", ()))
    engines = {row["id"]: row for row in (*state["engines"], *change.get("engines", ()))}
    rates = {bucket[0]: bucket for bucket in (*state["rates"], *change.get("rates", ()))}
    return _shortened(
        {
            **state,
            **change,
            "engines": [engines[id] for id in sorted(engines) if id not in gone],
            "rates": list(rates.values()),
            "incidents": [*state["incidents"], *change.get("incidents", ())],
        }
    )


def _shortened(state: State) -> State:
    """What is kept of it: not what ran, of which there is much."""
    kept = {name: value for name, value in state.items() if name not in ("spans", "gone")}
    kept["rates"] = kept["rates"][-RATES_KEPT:]
    kept["incidents"] = kept["incidents"][-INCIDENTS_KEPT:]
    return kept


@contextmanager
def _asked(files: ClusterFiles, page: str) -> Iterator[HTTPResponse]:
    """The answer of the dashboard when a page of it is asked for."""
    from http.client import HTTPConnection, HTTPException  # takes 20 ms, which other commands need not

    found = states.running(files)
    if not found.port:
        raise Silent(files.cluster, "it does not listen yet")
    if not found.dashboard:
        raise NoDashboard(files.cluster)
    place = urlsplit(found.dashboard)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=PATIENCE)
    try:
        token = token_of(files.furl(RIGHTS["look"]).read_text())
        connection.request("GET", page, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise Silent(files.cluster, f"its dashboard answers {answer.status} {answer.reason}")
        yield answer
    except (OSError, HTTPException, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise Silent(files.cluster, reason or str(error) or type(error).__name__) from error
    finally:
        connection.close()
