"""`ViewClient`: what the view FURL is good for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipython1.kernel.client import ClientClosed
from ipython1.kernel.testing import MemoryCluster


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(2) as cluster:
        yield cluster


def test_it_sees_what_the_others_see(cluster: MemoryCluster, tmp_path: Path) -> None:
    mec, tc, view = cluster.client(), cluster.task_client(), cluster.view_client()
    began = time.time()
    mec.execute("a = 1", targets=1)
    assert tc.map(abs, [-1, -2]) == [1, 2]
    assert view.ids == mec.ids == [0, 1]
    assert [row["uuid"] for row in view.status()] == [row["uuid"] for row in mec.status()]
    assert (
        view.queue_status() == mec.queue_status() == [(id, {"queue": [], "pending": None}) for id in (0, 1)]
    )
    assert view.task_status() == tc.queue_status()
    assert view.task_status(verbose=True) == tc.queue_status(verbose=True)
    saved = tmp_path / "a.json"
    spans = view.timeline(saved).spans
    assert spans == mec.timeline().spans
    assert [span["label"] for span in spans if span["kind"] == "command"] == ["a = 1"]
    assert all(span["started"] >= began - 1 for span in spans)
    assert saved.stat().st_size > 100
    assert repr(view).endswith(": 2 engines>")


def test_waiting_work_is_seen(cluster: MemoryCluster) -> None:
    mec, view = cluster.client(), cluster.view_client()
    engine = cluster.engine(0)
    engine.dialer.cut()
    pending = mec.execute("b = 2", targets=0, block=False)
    [(_, facts), _] = view.queue_status()
    assert "b = 2" in (facts["pending"], *facts["queue"])
    pending.get_result(timeout=100)


def test_one_that_is_closed(cluster: MemoryCluster) -> None:
    view = cluster.view_client()
    with view:
        pass
    for look in (lambda: view.ids, view.status, view.queue_status, view.task_status, view.timeline):
        with pytest.raises(ClientClosed):
            look()
