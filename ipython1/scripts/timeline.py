"""``ipcluster timeline`` and ``ipcluster dashboard``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ipython1.kernel.files import ClusterFiles
from ipython1.launch import state as states
from ipython1.launch.state import NotRunning
from ipython1.scripts.options import Failure, cluster_option
from ipython1.web.guard import RIGHTS, Right, token_of


@click.command(epilog="\b\nExample:  ipcluster timeline -o evening.json")
@cluster_option()
@click.option(
    "-o",
    "path",
    default="timeline.svg",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to; .svg, .png or .json (Chrome trace) says as what.  [timeline.svg]",
)
def timeline(files: ClusterFiles, path: Path) -> None:
    """Save what ran where on a running cluster, as a picture or as a trace."""
    if not states.is_running(files) and not states.controller_lock(files).is_held():
        raise NotRunning(files.cluster)
    from ipython1.kernel.client import MultiEngineClient

    with MultiEngineClient(files.furl("multiengine")) as mec:
        found = mec.timeline()
    try:
        found.save(path)
    except (ValueError, ImportError) as error:
        raise Failure(str(error)) from None
    click.echo(f"saved        {os.fspath(path)}  {found!r}")


@click.command(epilog="\b\nExample:  ipcluster dashboard --look")
@cluster_option()
@click.option("--look", is_flag=True, help="The address for those who may look, not act.")
def dashboard(files: ClusterFiles, look: bool) -> None:
    """Print the address of a running cluster's dashboard. Treat it like a password."""
    address, _, _ = states.running(files).dashboard.partition("?token=")
    if not address:
        raise Failure(f"cluster {files.cluster} has no dashboard: it was started with --no-dashboard.")
    right: Right = "look" if look else "act"
    click.echo(f"{address}?token={token_of(files.furl(RIGHTS[right]).read_text())}")


#: What ``ipcluster`` takes in.
COMMANDS = (timeline, dashboard)
