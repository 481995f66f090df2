"""Imports go one way (docs/architecture.rst), and importing starts nothing."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]

#: The layers from the bottom up. A module sees the layers below its own and
#: its own package; parts that stand in one line do not see each other.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("ipython1.kernel.tracebacks",),
    ("ipython1", "ipython1.kernel", "ipython1.kernel.error"),
    (
        "ipython1.kernel.files",
        "ipython1.kernel.processes",
        "ipython1.kernel.interfaces",
        "ipython1.kernel.texts",
    ),
    ("ipython1.kernel.wire",),
    ("ipython1.kernel.controller", "ipython1.kernel.engine", "ipython1.kernel.client"),
    ("ipython1.launch",),
    ("ipython1.web",),
    ("ipython1.scripts",),
    ("ipython1.kernel.testing",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}

#: Names that users find in a lower layer than they live in, looked up when they are asked for.
LAZY = {
    ("ipython1", "ipython1.kernel.client"): "load_ipython_extension",
    ("ipython1", "ipython1.kernel.engine"): "this_engine",
    ("ipython1.kernel.client", "ipython1.launch"): "client.Cluster",
}


class Import(NamedTuple):
    """One import of one of our modules by another."""

    module: str
    imported: str
    line: int
    lazy: bool  # inside a function, or for type checkers only


def part_of(module: str) -> str:
    """The entry of `LAYERS` that a module belongs to."""
    names = module.split(".")
    for length in range(len(names), 0, -1):
        part = ".".join(names[:length])
        # 'ipython1' and 'ipython1.kernel' are themselves only, not what lies below them
        if part in RANK and (length == len(names) or part not in LAYERS[1]):
            return part
    raise LookupError(f"{module} stands in no layer of tests/unit/test_layers.py")


def modules() -> dict[str, Path]:
    """Every module of the package, by name."""
    found = {}
    for path in sorted((ROOT / "ipython1").rglob("*.py")):
        names = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(names[:-1] if names[-1] == "__init__" else names)] = path
    return found


MODULES = modules()


def imports(module: str, source: str, is_package: bool) -> Iterator[Import]:
    """The imports of our own modules in `source`, wherever they stand."""

    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = module.split(".")[: None if is_package else -1]
                    package = package[: len(package) - child.level + 1]
                    base = ".".join([*package, *([base] if base else [])])
                # `from package import name`: the name may be a module too
                names = [f"{base}.{alias.name}" for alias in child.names]
                names = [name if name in MODULES else base for name in names]
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
                for_types = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
                yield from walk(child, lazy or inside or for_types)
                continue
            for name in names:
                if name.split(".")[0] == "ipython1":
                    yield Import(module, name, child.lineno, lazy)

    yield from walk(ast.parse(source), False)


def forbidden(found: Import) -> bool:
    """Whether an import goes against the direction of the layers."""
    ours, theirs = part_of(found.module), part_of(found.imported)
    if ours == theirs or RANK[theirs] < RANK[ours]:
        return False
    if RANK[theirs] == RANK[ours] <= 1:
        return False  # the small modules at the bottom may use each other
    return not (found.lazy and (ours, theirs) in LAZY)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module: str) -> None:
    path = MODULES[module]
    found = imports(module, path.read_text(encoding="utf-8"), path.name == "__init__.py")
    wrong = [f"line {i.line}: {module} imports {i.imported}" for i in found if forbidden(i)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("module", "source", "is_forbidden"),
    [
        ("ipython1.kernel.wire.session", "from ipython1.kernel.error import WireError", False),
        ("ipython1.kernel.wire.session", "from ipython1.kernel.client import pending", True),
        ("ipython1.kernel.wire.session", "from ..client import pending", True),
        ("ipython1.kernel.wire.session", "def f():\n    import ipython1.kernel.client.pending", True),
        ("ipython1.kernel.client.core", "from ipython1.kernel.engine import shell", True),
        ("ipython1.kernel.client.core", "from . import pending", False),
        ("ipython1.kernel.client", "from ipython1.launch.cluster import Cluster", True),
        ("ipython1.kernel.client", "def f():\n    from ipython1.launch.cluster import Cluster", False),
        ("ipython1.kernel.client", "if TYPE_CHECKING:\n    from ipython1.launch import cluster", False),
        ("ipython1.kernel.client.core", "if TYPE_CHECKING:\n    import ipython1.kernel.engine.shell", True),
        ("ipython1.scripts.ipcontroller", "from ipython1.web import dashboard", False),
        ("ipython1.web.dashboard", "import ipython1.scripts.ipcluster", True),
        ("ipython1.launch.cluster", "from ipython1.kernel.testing import MemoryCluster", True),
        ("ipython1.kernel.testing", "from ipython1.kernel.engine import shell", False),
        ("ipython1", "from ipython1.kernel import client", True),
    ],
)
def test_the_rule_itself(module: str, source: str, is_forbidden: bool) -> None:
    [found] = imports(module, source, is_package=module in ("ipython1", "ipython1.kernel.client"))
    assert forbidden(found) is is_forbidden


def python(code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a fresh interpreter that sees this source tree."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    "module",
    [
        "ipython1",
        "ipython1.kernel.files",
        "ipython1.launch.local",
        "ipython1.scripts.ipcluster",
        "ipython1.scripts.screen",
        "ipython1.web.watching",
    ],
)
def test_light_modules_import_no_reactor(module: str) -> None:
    done = python(
        f"import sys, {module}\n"
        "print([name for name in ('twisted.internet.reactor', 'foolscap', 'IPython') if name in sys.modules])"
    )
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stdout + done.stderr


def test_importing_everything_starts_nothing() -> None:
    done = python(
        "import importlib, os, threading\n"
        f"for name in {list(MODULES)!r}:\n"
        "    importlib.import_module(name)\n"
        "from twisted.internet import reactor\n"
        "print(threading.active_count(), reactor.running, reactor.getDelayedCalls())"
    )
    assert (done.stdout.strip(), done.returncode) == ("1 False []", 0), done.stdout + done.stderr
