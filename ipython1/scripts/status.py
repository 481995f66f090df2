"""``ipcluster list`` and ``ipcluster status``."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ipython1.kernel.files import ClusterFiles
from ipython1.launch import state as states
from ipython1.launch.state import NotRunning, State
from ipython1.scripts.options import INCOMPLETE, cluster_option, format_option

if TYPE_CHECKING:
    from ipython1.kernel.client import MultiEngineClient


@click.command("list", epilog="\b\nExample:  ipcluster list -o json")
@format_option
def list_(form: str) -> None:
    """List the clusters of this user that run on this machine, and the stopped ones that left something."""
    known = [(files, facts(files)) for files in states.all_clusters()]
    found = [each for files, each in known if each["state"] != "stopped" or states.has_left_something(files)]
    if form == "json":
        click.echo(json.dumps(found, indent=1))
    elif not found:
        click.echo("no clusters")
    else:
        rows = [("CLUSTER", "STATE", "PID", "ADDRESS", "ENGINES", "STARTED"), *map(_row, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            click.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    count, began = "", ""
    if found["state"] != "stopped":
        count = str(len(found["engines"]))
        began = time.strftime("%Y-%m-%d %H:%M", time.localtime(found["started"]))
    return found["cluster"], found["state"], str(found["pid"] or ""), found["address"], count, began


def facts(files: ClusterFiles) -> dict[str, Any]:
    """What the state file says of a cluster; all zero where it is stopped."""
    alive = states.is_running(files)
    found = State.read(files) if alive else State()
    return {
        "cluster": files.cluster,
        "state": ("running" if found.port else "starting") if alive else "stopped",
        "pid": found.pid,
        "controller": found.controller,
        "address": found.address,
        "wanted": found.wanted,
        "engines": found.engines,
        "started": found.started,
        "dashboard": found.dashboard,
    }


def completeness(files: ClusterFiles, engines: Sequence[Mapping[str, Any]]) -> int:
    """The exit status that says whether a running cluster has all its engines, and they are well."""
    well = sum(row["state"] == "ready" and not row["stuck"] for row in engines)
    return INCOMPLETE if well < max(len(engines), facts(files)["wanted"]) else 0


@contextmanager
def connected(files: ClusterFiles) -> Iterator[MultiEngineClient]:
    """A client of a running cluster."""
    if not states.is_running(files) and not states.controller_lock(files).is_held():
        raise NotRunning(files.cluster)
    from ipython1.kernel.client import MultiEngineClient

    with MultiEngineClient(files.furl("multiengine")) as mec:
        yield mec


@click.command(epilog="\b\nExample:  ipcluster status -o json")
@cluster_option()
@format_option
def status(files: ClusterFiles, form: str) -> None:
    """Show a running cluster: its engines, and what they do.

    The exit status is 0 where all engines are there and well, 5 where some are not, 3 where it does not run.
    """
    found = facts(files)
    as_json = form == "json"
    if found["state"] == "starting":
        click.echo(json.dumps({**found, "engines": [], "links": []}, indent=1) if as_json else "starting")
        sys.exit(INCOMPLETE)
    try:
        with connected(files) as mec:
            table = mec.status()
    except NotRunning:
        if as_json:
            click.echo(json.dumps({**found, "links": []}, indent=1))
        raise
    found = {**facts(files), "state": "running"}
    if as_json:
        click.echo(json.dumps({**found, "engines": list(table), "links": table.links}, indent=1))
    else:
        if found["address"]:
            click.echo(f"controller   {found['address']}  (pid {found['controller']})")
        if found["dashboard"]:
            click.echo(f"dashboard    {found['dashboard']}")
        click.echo(str(table))
    sys.exit(completeness(files, table))


#: What ``ipcluster`` takes in.
COMMANDS = (list_, status)
