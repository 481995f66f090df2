"""``ipengine``: the engines of one host."""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ipython1.kernel.files import ClusterFiles

#: Exit status where no FURL could be had; for others see `ipython1.kernel.engine.nanny`.
NO_FURL = 4

EPILOG = """\b
Examples:
  ipengine -n 4                        four engines for the cluster of this host
  ssh host ipengine -n 8 --furl-stdin < ~/.ipython1/default/security/ipcontroller-engine.furl
\b
Exit status:
  0  stopped on request          3  the controller refused, or was away for too long
  1  no engine could start       4  no FURL to connect to
  2  wrong options
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
    "--log-dir", type=click.Path(path_type=Path), metavar="DIR", help="Folder for the engines' output."
)
def main(
    n: int,
    cluster: str,
    furl_file: Path | None,
    furl_stdin: bool,
    no_restart: bool,
    stuck: str,
    stuck_after: float,
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
    furl = "" if furl_stdin else _read_furl(files, furl_file)
    options = {"restart": not no_restart, "stuck": stuck, "stuck_after": stuck_after}
    sys.exit(_run(n, furl, log_dir or files.log, options))


def _run(n: int, furl: str, log_dir: Path, options: dict[str, Any]) -> int:
    # All that an engine will need: imported once here, shared by all of them. While we wait for a
    # FURL on stdin, that is time the controller takes to start.
    from ipython1.kernel.engine.nanny import Nanny
    from ipython1.kernel.engine.process import agent_main, engine_main, preload
    from ipython1.kernel.engine.zygote import Zygote
    from ipython1.kernel.error import BadFURL
    from ipython1.kernel.processes import remove_unused_logs
    from ipython1.kernel.wire.tubs import split_furl

    shell = preload()
    gc.collect()
    gc.freeze()  # pages the collector does not write to stay shared between the engines
    if not furl:
        furl = sys.stdin.readline().strip()
        if not furl:
            return _fail("no FURL came on stdin. Send the line of the cluster's ipcontroller-engine.furl.")
    try:
        split_furl(furl)
    except BadFURL:  # its text shows what it got, which may be most of a secret
        return _fail("what was given is not a FURL. Give the line of the cluster's ipcontroller-engine.furl.")
    try:
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        return _fail(f"cannot make the folder {log_dir} ({error.strerror}). Name another with --log-dir.", 1)
    remove_unused_logs(log_dir)
    _log_to_stderr()
    zygote = Zygote(interrupted=lambda _number: nanny.quit())
    nanny = Nanny(
        zygote,
        engine_main(furl, shell),
        agent_main(furl),
        folder=log_dir,
        host=socket.gethostname(),
        pid=os.getpid(),
        **options,
    )
    nanny.start_agent()
    nanny.start(n)
    zygote.run(lambda: nanny.status is not None)
    zygote.close()
    return nanny.status or 0


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
