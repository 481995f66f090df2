"""Runs a script for `ipcluster run`, as Python itself would, with clients ready as ``mec`` and ``tc``.

Each is made only for a script that uses the name and does not give it a
meaning of its own.
"""

from __future__ import annotations

import ast
import builtins
import os
import sys
import types
from collections.abc import Sequence
from types import TracebackType
from typing import Any

#: What a script finds under which name: a class of `ipython1.kernel.client`.
NAMES = {"mec": "MultiEngineClient", "tc": "TaskClient"}


def wanted(source: bytes, filename: str = "<script>") -> list[str]:
    """The keys of `NAMES` that a script uses without binding them anywhere."""
    used: set[str] = set()
    bound: set[str] = set()
    for node in ast.walk(ast.parse(source, filename)):
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name)
    return [name for name in NAMES if name in used - bound]


def run(script: str, arguments: Sequence[str]) -> None:
    """Run a script as ``__main__``; it sees `arguments` in ``sys.argv``."""
    show = sys.excepthook
    sys.excepthook = lambda kind, error, trace: show(kind, error.with_traceback(_own(trace)), _own(trace))
    with open(script, "rb") as file:
        source = file.read()
    code = compile(source, script, "exec", dont_inherit=True)
    main: Any = types.ModuleType("__main__")
    main.__file__ = script
    main.__builtins__ = builtins
    sys.modules["__main__"] = main
    sys.argv[:] = [script, *arguments]
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = os.path.dirname(os.path.abspath(script))
    names = wanted(source, script)
    if names:
        from ipython1.kernel import client

        for name in names:
            setattr(main, name, getattr(client, NAMES[name])())
    exec(code, main.__dict__)


def _own(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that is not of this module, nor of the command that runs it."""
    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<string>"):
        trace = trace.tb_next
    return trace


def main() -> None:
    """Run the script that the command line names."""
    run(sys.argv[1], sys.argv[2:])
