"""Keywords of Python as options of ``ipcluster start`` and ``ipcluster engines``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ipython1.kernel.files import ClusterFiles
from ipython1.launch.launcher import OPTIONS, Option, find_launcher, make_launcher, takes

#: Of both commands, beside those of launchers.
OF_ENGINES = ("restart", "stuck", "stuck_after", "timeout")
#: Of ``ipcluster start`` alone.
OF_START = (
    "client_grace",
    "controller_grace",
    "dashboard",
    "dead_link_after",
    "detach_limit",
    "engine_grace",
    "ip",
    "location",
    "port",
    "queue_limit",
    "scheduler",
)
_LAUNCHERS = {option.name: option for option in OPTIONS}
#: They have a ``--no-…`` too.
_SWITCHES = ("dashboard", "restart")


def command_options(
    launcher: str, files: ClusterFiles, given: Mapping[str, Any], known: tuple[str, ...]
) -> list[str]:
    """The options of a command line that say the same as keywords of Python.

    Parameters
    ----------
    launcher : str
        What starts the engines; its own options are checked by making one.
    files : ClusterFiles
        The cluster.
    given : mapping
        The keywords; None is as if not given.
    known : tuple of str
        The names that the command has itself.

    Raises
    ------
    TypeError, ValueError
        There is no such option, not with this launcher, or it has no such value.
    """
    options, asked = ["--engines", launcher], {}
    factory = find_launcher(launcher)
    own = [name for name in _LAUNCHERS if takes(factory, name)]
    for name, value in given.items():
        if name in known:
            options += [] if value is None else [_flag(name, value)]
        elif name not in _LAUNCHERS:
            names = ", ".join(sorted({*known, *own}))
            raise TypeError(f"There is no option {name!r}. With engines={launcher!r} there are: {names}.")
        elif value is None:
            continue
        elif name not in own:
            raise ValueError(
                f"{name}= is of no use with engines={launcher!r}, which takes: {', '.join(own)}."
            )
        else:
            asked[name] = _asked(_LAUNCHERS[name], value)
    make_launcher(launcher, files, asked)
    for name, value in asked.items():
        flag = _LAUNCHERS[name].flag
        values = value if _LAUNCHERS[name].multiple else [value]
        options += [flag if each is True else f"{flag}={each}" for each in values if each is not False]
    return options


def _flag(name: str, value: Any) -> str:
    flag = Option(name, "").flag
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}.")
        return flag if value else flag.replace("--", "--no-", 1)
    return f"{flag}={_text(name, value)}"


def _asked(option: Option, value: Any) -> Any:
    """What a launcher is given for an option, as from a command line."""
    if not option.metavar:
        if not isinstance(value, bool):
            raise TypeError(f"{option.name} must be True or False, not {value!r}.")
        return value
    if option.kind is int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{option.name} must be a number, not {value!r}.")
        return value
    if isinstance(value, Mapping):
        value = [f"{key}={_text(option.name, each)}" for key, each in value.items()]
    if option.multiple:
        each_one = [value] if isinstance(value, (str, os.PathLike)) else value
        return tuple(_text(option.name, each) for each in each_one)
    if option.name == "hosts" and isinstance(value, (list, tuple)):
        return ",".join(_text(option.name, each) for each in value)
    return _text(option.name, value)


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, os.PathLike)):
        raise TypeError(f"{name} cannot be {value!r}.")
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)
