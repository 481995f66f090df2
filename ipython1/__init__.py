"""Interactive parallel computing in Python: a controller, engines, and clients that drive them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipython1.kernel.engine.this_engine import ThisEngine

    this_engine: ThisEngine

__version__ = "1.0.0"


def load_ipython_extension(ipython: Any) -> None:
    """Make ``%load_ext ipython1`` define the magics."""
    from ipython1.kernel.client.magics import load_ipython_extension as load

    load(ipython)


def __getattr__(name: str) -> Any:
    if name == "this_engine":
        from ipython1.kernel.engine.this_engine import current

        return current()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
