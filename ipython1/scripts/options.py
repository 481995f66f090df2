"""What the commands of `ipcluster` have in common: options, errors, exit statuses."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

import click

from ipython1.kernel.error import IPython1Error
from ipython1.kernel.files import ClusterFiles
from ipython1.launch.launcher import OPTIONS
from ipython1.launch.state import DEFAULT, AlreadyRunning, NotRunning

#: Exit statuses, beside 0 and click's 2 for wrong options.
FAILED, NOT_RUNNING, ALREADY_RUNNING, INCOMPLETE = 1, 3, 4, 5


class Failure(click.ClickException):
    """Ends `ipcluster` with a message and an exit status of its own."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: Any = None) -> None:
        """Print the message."""
        click.echo(f"ipcluster: {self.message}", file=file, err=True)


class Commands(click.Group):
    """Options without a command mean `start`; our own errors become exit statuses."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See `click.Group`."""
        if args and args[0].startswith("-") and args[0] not in ("--help", "--version"):
            args = ["start", *args]
        rest: list[str] = super().parse_args(ctx, args)
        return rest

    def invoke(self, ctx: click.Context) -> Any:
        """See `click.Group`."""
        try:
            return super().invoke(ctx)
        except NotRunning as error:
            raise Failure(str(error), NOT_RUNNING) from None
        except AlreadyRunning as error:
            raise Failure(str(error), ALREADY_RUNNING) from None
        except IPython1Error as error:
            raise Failure(str(error)) from None
        except OSError as error:
            raise Failure(f"{error.filename or 'the system'}: {error.strerror or error}.") from None
        except KeyboardInterrupt:
            ctx.exit(128 + signal.SIGINT)


def _files(_ctx: click.Context, _option: click.Parameter, name: str | None) -> ClusterFiles | None:
    try:
        return None if name is None else ClusterFiles(name)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def cluster_option(default: str | None = DEFAULT, what: str = "Name of the cluster.") -> Callable[..., Any]:
    """The option ``--cluster``, which gives the command its `files`."""
    option: Callable[..., Any] = click.option(
        "--cluster", "files", default=default, show_default=True, metavar="NAME", callback=_files, help=what
    )
    return option


def engines_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options on engines that several commands have."""
    for option in (
        click.option(
            "--timeout", type=float, metavar="SECONDS", help="Time to start in.  [60; batch systems: any]"
        ),
        click.option("--restart/--no-restart", default=True, help="Start again what dies.  [yes]"),
        click.option(
            "--stuck-after",
            type=click.FloatRange(0, min_open=True),
            default=5.0,
            metavar="SECONDS",
            help="Time that an engine has to react to an interrupt.  [5]",
        ),
        click.option(
            "--stuck",
            type=click.Choice(["leave", "restart"]),
            default="leave",
            help="What becomes of one that does not.  [leave]",
        ),
        click.option(
            "-n",
            "n",
            type=click.IntRange(1),
            metavar="N",
            help="Number of engines.  [1 a CPU]",
        ),
    ):
        command = option(command)
    return command


def launcher_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The option ``--engines`` and those of launchers; the command gets what was asked for as `asked`."""

    @functools.wraps(command)
    def with_launcher(**arguments: Any) -> Any:
        given = {option.name: arguments.pop(option.name) for option in OPTIONS}
        # A 0 was given: it is the launcher that says what is wrong with it.
        asked = {name: value for name, value in given.items() if value or type(value) is int}
        return command(asked=asked, **arguments)

    wrapped: Callable[..., Any] = with_launcher
    for option in reversed(OPTIONS):
        wrapped = click.option(
            option.flag,
            option.name,
            type=option.kind if option.metavar else None,
            is_flag=None if option.metavar else True,  # False: the value need not be given
            metavar=option.metavar or None,
            multiple=option.multiple,
            help=option.help,
        )(wrapped)
    dry_run = click.option("--dry-run", is_flag=True, help="Print what would start the engines, and end.")
    where = click.option("--engines", "where", default="local", metavar="LAUNCHER", help=_LAUNCHERS)
    wrapped = where(dry_run(wrapped))
    return wrapped


_LAUNCHERS = "What starts them: local, ssh, mpi, slurm, pbs, sge, lsf, htcondor.  [local]"


def times_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `ipcontroller` on times; the command gets them as its argument `times`."""
    options = (
        ("client-grace", 0, "How long the queue keeps the work of a client that is gone.  [30]"),
        ("engine-grace", 0, "How long an engine may be away together with its nanny.  [10]"),
        ("controller-grace", 0, "How long engines and clients look for the controller.  [120, clients 60]"),
        ("dead-link-after", 1, "How long another host may be silent.  [60]"),
    )

    @functools.wraps(command)
    def with_times(**arguments: Any) -> Any:
        times: list[str] = []
        for name, _, _ in options:
            value = arguments.pop(name.replace("-", "_"))
            times += [f"--{name}", f"{value:g}"] if value is not None else []
        return command(times=times, **arguments)

    wrapped: Callable[..., Any] = with_times
    for name, low, text in reversed(options):
        kind = click.FloatRange(low, 86400)
        wrapped = click.option(f"--{name}", type=kind, metavar="SECONDS", help=text)(wrapped)
    return wrapped


format_option = click.option(
    "-o", "form", type=click.Choice(["text", "json"]), default="text", help="How to print it.  [text]"
)
daemonize_option = click.option("--daemonize", is_flag=True, help="Return when the engines are ready.")
