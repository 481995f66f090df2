"""``ipcluster``: starts, stops and looks after clusters. Light: what it imports at once is small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ipython1 import __version__
from ipython1.kernel.files import FURL_FILES, ClusterFiles
from ipython1.kernel.processes import die_with_parent
from ipython1.launch import state as states
from ipython1.launch.background import stop_cluster
from ipython1.launch.daemon import daemonize
from ipython1.launch.launcher import Launcher, make_launcher
from ipython1.launch.local import (
    LocalController,
    LocalLauncher,
    RunningController,
    environment,
    module_command,
)
from ipython1.launch.logs import follow, log_lines
from ipython1.launch.report import Banner, Report, engines_line
from ipython1.launch.state import AlreadyRunning, NotRunning, State
from ipython1.launch.supervisor import Supervisor
from ipython1.scripts import status, timeline, top
from ipython1.scripts.options import (
    NOT_RUNNING,
    Commands,
    Failure,
    cluster_option,
    daemonize_option,
    engines_options,
    launcher_options,
    times_options,
)
from ipython1.scripts.status import connected

EPILOG = """\b
Examples:
  ipcluster -n 4                   a cluster of four engines on this machine, until Ctrl-C
  ipcluster -n 4 --daemonize       the same, in the background
  ipcluster run -n 4 script.py     a cluster for one script
\b
Exit status:
  0  done      2  wrong options                      4  the cluster runs already
  1  failed    3  there is no such running cluster   5  not all of its engines are there and well
"""


@click.group(cls=Commands, epilog=EPILOG)
@click.version_option(__version__, message="%(version)s")
def main() -> None:
    """Start, stop and look after clusters: a controller and its engines."""


# -- starting --------------------------------------------------------------------


@main.command(
    epilog="\b\nExample:  ipcluster start -n 4 --cluster mine --ip 0.0.0.0 --location head.example.org"
)
@engines_options
@cluster_option()
@launcher_options
@click.option("--ip", metavar="ADDRESS", help="Address to listen on.  [127.0.0.1; remote engines: all]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on.  [as last time, or 10105]")
@click.option("--location", metavar="HOST[:PORT]", help="Where others find the controller.  [--ip]")
@click.option("--dashboard/--no-dashboard", default=True, help="Serve a web page on this machine.  [yes]")
@times_options
@click.option(
    "--detach-limit",
    type=click.IntRange(0),
    metavar="MB",
    help="How much detached work is kept on disk.  [10000]",
)
@click.option(
    "--scheduler",
    default="leastload",
    metavar="NAME",
    help="Which tasks go first, and where: leastload, fifo, lifo, random, weighted.  [leastload]",
)
@click.option(
    "--queue-limit",
    type=click.IntRange(1),
    default=1024,
    metavar="MIB",
    help="How much work that has not ended the controller holds.  [1024]",
)
@daemonize_option
@click.option("--temporary", is_flag=True, hidden=True)
@click.option("--die-with-parent", "owner", type=int, hidden=True)
@click.option("--ready-fd", type=int, hidden=True)
def start(
    files: ClusterFiles,
    n: int | None,
    where: str,
    dry_run: bool,
    asked: dict[str, Any],
    ip: str | None,
    port: int | None,
    location: str | None,
    dashboard: bool,
    times: Sequence[str],
    detach_limit: int | None,
    scheduler: str,
    queue_limit: int,
    daemonize: bool,
    restart: bool,
    stuck: str,
    stuck_after: float,
    timeout: float | None,
    temporary: bool,
    owner: int | None,
    ready_fd: int | None,
) -> None:
    """Start a cluster, and keep it running until Ctrl-C or `ipcluster stop`."""
    launcher = _launcher(where, files, {**asked, **_unusual(stuck=stuck, stuck_after=stuck_after)}, restart)
    if dry_run:
        click.echo(launcher.plan(n or launcher.count))
        return
    ip = ip or ("0.0.0.0" if launcher.is_remote else "127.0.0.1")
    options = ["--ip", ip, "--dashboard" if dashboard else "--no-dashboard"]
    options += ["--location", location] if location else []
    options += [] if detach_limit is None else ["--detach-limit", str(detach_limit)]
    options += [*times, "--scheduler", scheduler, "--queue-limit", str(queue_limit)]
    options += ["--launcher-grows"] if launcher.grows else []
    on_ready = _background(files) if daemonize else partial(_tell, ready_fd)
    with states.held(files):
        supervisor = Supervisor(
            files,
            n or launcher.count,
            LocalController(files, options, port=port),
            launcher,
            Banner(files.cluster, states.option(files.cluster), daemonize),
            restart=restart,
            temporary=temporary,
            timeout=launcher.timeout if timeout is None else timeout,
            owner=owner,
            on_ready=on_ready,
        )
        supervisor.state.launcher = where
        status = supervisor.run()
    sys.exit(status)


@main.command(
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="\b\nExample:  ipcluster run -n 4 analyse.py --input data.csv",
)
@engines_options
@cluster_option(None, "Name of the cluster.  [a new one, removed afterwards]")
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(
    files: ClusterFiles | None,
    n: int | None,
    restart: bool,
    stuck: str,
    stuck_after: float,
    timeout: float | None,
    script: str,
    arguments: Sequence[str],
) -> None:
    """Start a cluster, run a Python script with it, and stop it.

    The script finds clients of the cluster as `mec` and `tc`, or makes one with client.MultiEngineClient().
    The exit status is that of the script.
    """
    temporary = files is None
    files = files or ClusterFiles(states.private_name("run"))
    furl = os.fspath(files.furl("multiengine"))

    def start_script() -> subprocess.Popen[bytes]:
        command = [*module_command("ipython1.launch.runner"), script, *arguments]
        ends = partial(die_with_parent, os.getpid())
        return subprocess.Popen(command, env=environment(IPYTHON1_FURL=furl), preexec_fn=ends)

    launcher = LocalLauncher(files, restart=restart, stuck=stuck, stuck_after=stuck_after)
    with states.held(files):
        supervisor = Supervisor(
            files,
            n or launcher.count,
            LocalController(files, ["--no-dashboard"], port=0 if temporary else None),
            launcher,
            Report(),
            restart=restart,
            temporary=temporary,
            timeout=launcher.timeout if timeout is None else timeout,
            script=start_script,
        )
        status = supervisor.run()
    sys.exit(status)


@main.command(epilog="\b\nExample:  ipcluster engines -n 8 --engines ssh --hosts node7")
@engines_options
@cluster_option()
@launcher_options
@daemonize_option
@click.option("--ready-fd", type=int, hidden=True)
def engines(
    files: ClusterFiles,
    n: int | None,
    where: str,
    dry_run: bool,
    asked: dict[str, Any],
    restart: bool,
    stuck: str,
    stuck_after: float,
    timeout: float | None,
    daemonize: bool,
    ready_fd: int | None,
) -> None:
    """Start more engines for a running cluster, until Ctrl-C or its end."""
    asked = {**asked, "name": f"ipengine-{os.getpid()}", **_unusual(stuck=stuck, stuck_after=stuck_after)}
    launcher = _launcher(where, files, asked, restart)
    if dry_run:
        click.echo(launcher.plan(n or launcher.count))
        return
    states.running(files)
    on_ready = _background(files) if daemonize else partial(_tell, ready_fd)
    supervisor = Supervisor(
        files,
        n or launcher.count,
        RunningController(files),
        launcher,
        EnginesReport(),
        restart=restart,
        timeout=launcher.timeout if timeout is None else timeout,
        on_ready=on_ready,
        keeps_state=False,
    )
    sys.exit(supervisor.run())


class EnginesReport(Report):
    """Says which engines have come."""

    def ready(self, state: State, ids: Sequence[int], seconds: float) -> None:
        """See `Report`."""
        click.echo(f"engines      {engines_line(ids, state.n, seconds)}")


def _launcher(where: str, files: ClusterFiles, asked: dict[str, Any], restart: bool) -> Launcher:
    try:
        return make_launcher(where, files, {"restart": restart, **asked})
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _unusual(**given: Any) -> dict[str, Any]:
    """The options of this command line that are not as ever: launchers of others may not know them."""
    context = click.get_current_context()
    commandline = ParameterSource.COMMANDLINE
    return {name: value for name, value in given.items() if context.get_parameter_source(name) is commandline}


def _background(files: ClusterFiles) -> Callable[[], None]:
    return daemonize(lambda: files.log / "ipcluster.log")


def _tell(fd: int | None) -> None:
    if fd is not None:
        os.write(fd, b"ready\n")
        os.close(fd)


# -- stopping, cleaning ------------------------------------------------------------


@main.command(epilog="\b\nExample:  ipcluster stop --cluster mine")
@cluster_option()
def stop(files: ClusterFiles) -> None:
    """Stop a running cluster, and wait until it is gone."""
    states.running(files)
    stop_cluster(files)
    click.echo(f"stopped      cluster {files.cluster}")


@main.command(epilog="\b\nExample:  ipcluster clean --cluster mine --all")
@cluster_option(None, "Name of the cluster.  [all that do not run]")
@click.option("--all", "everything", is_flag=True, help="Also certificate, FURL files and logs.")
def clean(files: ClusterFiles | None, everything: bool) -> None:
    """Remove what clusters that do not run any more have left behind."""
    if files is not None and not files.folder.is_dir():
        raise Failure(f"there is no cluster {files.cluster}. See: ipcluster list", NOT_RUNNING)
    for each in states.all_clusters() if files is None else [files]:
        if states.clean(each, everything):
            click.echo(f"cleaned      cluster {each.cluster}")
        elif files is not None:
            raise AlreadyRunning(each.cluster, State.read(each).pid)


# -- looking, and the rest ----------------------------------------------------------


@main.command(epilog="\b\nExample:  ipcluster scale 8")
@cluster_option()
@click.argument("n", type=click.IntRange(0))
@click.option("--timeout", default=60.0, metavar="SECONDS", help="How long to wait for them.  [60]")
def scale(files: ClusterFiles, n: int, timeout: float) -> None:
    """Start or stop engines of a running cluster, until it has N."""
    with connected(files) as mec:
        try:
            mec.scale(n, wait=True, timeout=timeout)
        except TimeoutError as error:
            raise Failure(str(error)) from None
        ids = mec.get_ids()
    click.echo(f"engines      {len(ids)}" + (": " + " ".join(map(str, ids)) if ids else ""))


@main.command(epilog="\b\nExample:  ssh other ipengine -n 8 --furl-stdin < $(ipcluster furl engine --path)")
@cluster_option()
@click.argument("kind", type=click.Choice(list(FURL_FILES)), default="multiengine")
@click.option("--path", is_flag=True, help="Print the path of the file that holds it.")
def furl(files: ClusterFiles, kind: str, path: bool) -> None:
    """Print a FURL of a cluster: the address and the right to use it. Treat it like a password.

    KIND says what it allows: multiengine (all), task, engine (to be an engine), view (to look).
    """
    file = files.furl(kind)
    if not file.exists():
        raise NotRunning(files.cluster)
    click.echo(os.fspath(file) if path else file.read_text().strip())


@main.command(epilog="\b\nExample:  ipcluster logs -f")
@cluster_option()
@click.option("-f", "--follow", "keep_on", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option("-n", "--lines", default=50, metavar="N", help="Lines of each file at first.  [50]")
def logs(files: ClusterFiles, keep_on: bool, lines: int) -> None:
    """Print what the controller and the engines of a cluster wrote."""
    if not files.log.is_dir():
        raise NotRunning(files.cluster)
    ends: dict[Path, int] = {}
    for line in log_lines(files.log, lines, ends):
        click.echo(line)
    if keep_on:
        try:
            for line in follow(files.log, ends, time.sleep):
                click.echo(line)
        except KeyboardInterrupt:
            pass


for _command in (*status.COMMANDS, *top.COMMANDS, *timeline.COMMANDS):
    main.add_command(_command)

if __name__ == "__main__":
    main(prog_name="ipcluster")
