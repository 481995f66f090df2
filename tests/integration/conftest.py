"""What the tests that run real reactors, sockets and processes share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ipython1.kernel import client
from tests.conftest import ReactorThread

if TYPE_CHECKING:
    from tests.integration.test_ipcluster import Running

__all__ = ["ReactorThread"]


@pytest.fixture(scope="module")
def cluster(ipython1_dir: Path) -> Iterator[Running]:
    """A cluster of two engines, started with ``ipcluster``; modules with other needs have their own."""
    from tests.integration.test_ipcluster import two_engines  # pytest rewrites it first

    with two_engines() as running:
        yield running


@pytest.fixture
def mec(cluster: Running) -> Iterator[client.MultiEngineClient]:
    """A client of that cluster, with both engines there."""
    with client.MultiEngineClient() as mec:
        mec.wait_for_engines(2)
        yield mec
