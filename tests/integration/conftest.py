"""What the tests that run real reactors, sockets and processes share."""

from __future__ import annotations

from tests.conftest import ReactorThread

__all__ = ["ReactorThread"]
