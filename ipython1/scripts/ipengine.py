"""``ipengine``: the engines of one host."""

from __future__ import annotations

import gc
import logging
import os
import resource
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ipython1.kernel.engine.leash import Leash
    from ipython1.kernel.engine.nanny import Nanny
    from ipython1.kernel.engine.zygote import Zygote
    from ipython1.kernel.files import ClusterFiles

#: Exit status where no FURL could be had, or there is no way through `--ssh`; for others see
#: `ipython1.kernel.engine.nanny`.
NO_FURL, NO_TUNNEL = 4, 3
#: Seconds between looks of a rank at whether what started it is still there.
WATCH_INTERVAL = 1.0

EPILOG = """\b
Examples:
  ipengine -n 4                        four engines for the cluster of this host
  ssh host ipengine -n 8 --furl-stdin < ~/.ipython1/default/security/ipcontroller-engine.furl
  mpiexec -n 8 ipengine --mpi          the ranks of an MPI job as engines
\b
Exit status:
  0  stopped on request          3  the controller refused, or cannot be reached
  1  no engine could start       4  no FURL to connect to
  2  wrong options               5  --mpi: the engine ended (or as that did)
"""


@click.command(epilog=EPILOG)
@click.option("-n", type=click.IntRange(1), default=1, show_default=True, help="How many engines.")
@click.option("--cluster", default="default", show_default=True, metavar="NAME", help="The cluster to join.")
@click.option(
    "--furl-file",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="File with the engine FURL.  [default: the cluster's]",
)
@click.option("--furl-stdin", is_flag=True, help="Read the engine FURL from stdin, one line.")
@click.option("--ssh", metavar="[USER@]HOST[:PORT]", help="Go through that host, by ssh, to the controller.")
@click.option("--channel", default="", metavar="KEY", hidden=True)  # for `ipython1.launch.ssh`
@click.option("--rejoin", is_flag=True, hidden=True)
@click.option("--mpi", is_flag=True, help="One engine, whose id is the rank of this process in its MPI job.")
@click.option("--no-restart", is_flag=True, help="Leave engines that died dead.")
@click.option(
    "--stuck",
    type=click.Choice(["leave", "restart"]),
    default="leave",
    show_default=True,
    help="What becomes of an engine that does not react to an interrupt.",
)
@click.option(
    "--stuck-after",
    type=click.FloatRange(0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long it has to react.",
)
@click.option(
    "--leave-after",
    type=float,
    metavar="SECONDS",
    help="When to end, so that what started us, such as a batch system, need not.",
)
@click.option(
    "--leave-within",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    metavar="SECONDS",
    help="How long from then on what runs may go on.",
)
@click.option("--leave-when-empty", is_flag=True, help="End when the last engine has ended for good.")
@click.option(
    "--log-dir", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the engines' output."
)
def main(
    n: int,
    cluster: str,
    furl_file: Path | None,
    furl_stdin: bool,
    channel: str,
    rejoin: bool,
    ssh: str | None,
    mpi: bool,
    no_restart: bool,
    stuck: str,
    stuck_after: float,
    leave_after: float | None,
    leave_within: float,
    leave_when_empty: bool,
    log_dir: Path | None,
) -> None:
    """Start engines that register with a running controller, and watch over them."""
    if furl_stdin and furl_file is not None:
        raise click.UsageError("Give either --furl-file or --furl-stdin, not both.")
    from ipython1.kernel.files import ClusterFiles

    try:
        files = ClusterFiles(cluster)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    leash = None
    if furl_stdin or rejoin:
        from ipython1.kernel.engine import leash as leashes

        if rejoin:
            sys.exit(leashes.rejoin(files.run, channel))
        if channel:
            broke = partial(_link_broke, log_dir or files.log)
            leash = leashes.Leash(files.run, channel, broke)
            click.echo(f"{leashes.STARTED} {leashes.DEAF if leash.is_deaf else ''}")
        else:
            leash = leashes.Leash()
    furl = "" if furl_stdin else _read_furl(files, furl_file)
    options = {"restart": not no_restart, "stuck": stuck, "stuck_after": stuck_after, "rank": _rank(n, mpi)}
    options["leave_when_empty"] = leave_when_empty
    leave = None if leave_after is None else (leave_after, leave_within)
    status = _run(n, furl, ssh, leash, log_dir or files.log, leave, options)
    if leash is not None:
        leash.close(status)
    sys.exit(status)


def _run(
    n: int,
    furl: str,
    ssh: str | None,
    leash: Leash | None,
    log_dir: Path,
    leave: tuple[float, float] | None,
    options: dict[str, Any],
) -> int:
    began, parent = time.monotonic(), os.getppid()
    # All that an engine will need: imported once here, shared by all of them. While we wait for a
    # FURL on stdin, that is time the controller takes to start.
    from ipython1.kernel.engine.leaving import Leaving
    from ipython1.kernel.engine.nanny import Nanny
    from ipython1.kernel.engine.process import agent_main, engine_main, preload
    from ipython1.kernel.engine.rank import remove_leftovers
    from ipython1.kernel.engine.zygote import Zygote
    from ipython1.kernel.error import BadFURL, TunnelFailed
    from ipython1.kernel.processes import remove_unused_logs
    from ipython1.kernel.wire.tubs import split_furl
    from ipython1.kernel.wire.tunnels import open_tunnel

    shell = preload()
    gc.collect()
    gc.freeze()  # pages the collector does not write to stay shared between the engines
    if leash is not None:
        furl = leash.read_line()
        if not furl:
            return _fail("no FURL came on stdin. Send the line of the cluster's ipcontroller-engine.furl.")
    try:
        places = split_furl(furl)[1]
    except BadFURL:  # its text shows what it got, which may be most of a secret
        return _fail("what was given is not a FURL. Give the line of the cluster's ipcontroller-engine.furl.")
    try:
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return _fail(f"cannot make the folder {log_dir} ({error.strerror}). Name another with --log-dir.", 1)
    remove_unused_logs(log_dir)
    _log_to_stderr()
    try:
        tunnel = open_tunnel(ssh, places)  # before any fork: all of us share it
    except (BadFURL, TunnelFailed) as error:
        return _fail(str(error), NO_TUNNEL)
    zygote = Zygote(interrupted=lambda _number: nanny.signalled())
    nanny = Nanny(
        zygote,
        engine_main(furl, shell, tunnel),
        agent_main(furl, tunnel),
        folder=log_dir,
        host=socket.gethostname(),
        pid=os.getpid(),
        **options,
    )
    nanny.start_agent()
    nanny.start(n)
    if leave is not None:
        after, within = leave
        Leaving(zygote, nanny, after - (time.monotonic() - began), within).start()
    if options["rank"] is not None:
        _end_with_parent(zygote, nanny, parent)
    if leash is not None:
        leash.watch(zygote, nanny.quit)
    zygote.run(lambda: nanny.status is not None)
    status = nanny.status or 0
    if leash is not None:
        leash.close(status)  # while it can still be told
    zygote.close()
    if tunnel is not None:
        tunnel.close()
    if options["rank"] is not None and os.getppid() != parent:
        remove_leftovers(os.environ)
    if status < 0:  # so mpiexec can say by which signal
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), -status)
    return status if status >= 0 else 128 - status


def _rank(n: int, mpi: bool) -> int | None:
    if not mpi:
        return None
    from ipython1.kernel.engine.rank import mpi_rank

    rank = mpi_rank(os.environ)
    if rank is None:
        raise click.UsageError("--mpi is for mpiexec or srun to start: this process has no rank.")
    if n != 1:
        raise click.UsageError("A rank of an MPI job is one engine: give mpiexec the number, and no -n here.")
    return rank


def _end_with_parent(zygote: Zygote, nanny: Nanny, parent: int) -> None:
    # A job whose mpiexec was killed is no job any more. Not by a signal that the kernel sends at the death
    # of the parent: it does so at that of its *thread*, and who knows from which one we were started.
    def look() -> None:
        if os.getppid() != parent:
            nanny.signalled()
        zygote.callLater(WATCH_INTERVAL, look)

    look()


def _link_broke(log_dir: Path) -> None:
    from ipython1.kernel.processes import redirect

    redirect(log_dir / f"ipengine-{socket.gethostname()}.out")
    text = "the link to who started this broke; engines go on as long as they find the controller"
    logging.getLogger("ipython1").warning(text)


def _log_to_stderr() -> None:
    # Not through the root logger: that belongs to the user code of the engines forked from here.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s ipengine: %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("ipython1")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _read_furl(files: ClusterFiles, furl_file: Path | None) -> str:
    path = furl_file or files.furl("engine")
    try:
        furl = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        sys.exit(_fail(f"cannot read the FURL file {path} ({reason}). Start a cluster with: ipcluster -n 4"))
    if not furl:
        sys.exit(_fail(f"the FURL file {path} is empty. Start the cluster anew with: ipcluster -n 4"))
    return furl


def _fail(message: str, status: int = NO_FURL) -> int:
    click.echo(f"ipengine: {message}", err=True)
    return status


if __name__ == "__main__":
    main()
