"""Detached work: the whole stack in memory, with clients that vanish and controllers that die."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import LoopingCall

from ipython1.kernel.client import CompositeError, StringTask
from ipython1.kernel.client.life import ClientLife
from ipython1.kernel.client.taskspec import task_keys
from ipython1.kernel.controller import holdings, parcels
from ipython1.kernel.controller import ledger as ledger_module
from ipython1.kernel.controller.holdings import Holding
from ipython1.kernel.controller.ledger import Folder
from ipython1.kernel.controller.parcels import BLOB, NAME, RECORD, Parcel
from ipython1.kernel.controller.service import CLIENT_GRACE, RETURN_GRACE
from ipython1.kernel.engine import kept
from ipython1.kernel.error import ClientClosed, ConnectionFailed, DetachFailed, EngineDied, UnknownResult
from ipython1.kernel.testing import MemoryCluster
from ipython1.kernel.wire.codec import decode_failure, encode
from ipython1.kernel.wire.records import Answer, Ask, Batch, BlobRef, Chunk, Detach, Withdraw, Work
from tests.conftest import LoggedErrors
from tests.unit.task_peers import FOREVER, Peer, TaskWorld

N = 2
LARGE = 3_000_000


@pytest.fixture
def cluster() -> Iterator[MemoryCluster]:
    with MemoryCluster(N) as cluster:
        cluster.clock.advance(RETURN_GRACE)
        yield cluster


class Held:
    """Engines that start nothing until they are let go."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._time = LoopingCall(lambda: None)  # goes on, though nothing happens
        self._time.clock = cluster.clock
        self._time.start(0.25)
        self._loops = [engine.loop for engine in cluster.engines]
        for loop in self._loops:
            loop.run_ready = lambda: 0  # type: ignore[method-assign]

    def let_go(self) -> None:
        self._time.stop()
        for loop in self._loops:
            loop.__dict__.pop("run_ready", None)


def vanish(cluster: MemoryCluster, client: ClientLife, grace: float = CLIENT_GRACE + 1) -> None:
    """The process of a client ends without a word."""
    client._core._dialer._door = lambda: None
    client._core._dialer.cut()
    let_pass(cluster, grace)


def let_pass(cluster: MemoryCluster, seconds: float) -> None:
    for _ in range(int(seconds * 4)):
        cluster.clock.advance(0.25)
        cluster.settle()


def restart(cluster: MemoryCluster, seconds: float = 0.0) -> None:
    cluster.stop_controller()
    let_pass(cluster, 1)
    cluster.start_controller()
    cluster.run_until(lambda: len(cluster.ready_ids()) == len(cluster.engines))
    let_pass(cluster, seconds)


def files(cluster: MemoryCluster) -> list[Path]:
    return sorted(path for path in Path(cluster._disk.name).rglob("*") if path.is_file())


def nothing(cluster: MemoryCluster) -> None:
    """Nothing happens to the controller."""


def long_ago(cluster: MemoryCluster) -> None:
    """It was killed, and the grace time of the client is over."""
    restart(cluster, CLIENT_GRACE + 1)


@pytest.mark.parametrize("trouble", [nothing, restart, long_ago])
@pytest.mark.parametrize("count", [3, 200])
def test_queued_commands_of_a_vanished_client_run_once_and_in_order(
    cluster: MemoryCluster, trouble: Callable[[MemoryCluster], None], count: int
) -> None:
    client, later = cluster.client(), cluster.client()
    client.execute("log = []")
    held = Held(cluster)
    prs = [client.execute(f"log.append({i}); print({i}); {i}", block=False) for i in range(count)]
    dropped = client.execute("log.append('dropped')", block=False)
    ids = [pr.detach() for pr in prs] if count < 10 else client._core.detach(prs)
    assert ids == [pr.id for pr in prs]
    vanish(cluster, client)
    assert not dropped.done()
    trouble(cluster)
    pending = [later.get_pending(id) for id in ids]
    held.let_go()
    for i, pr in enumerate(pending):
        result = pr.get_result(timeout=100)
        assert [r["stdout"] for r in result] == [f"{i}\n"] * N
    assert later["log"] == [list(range(count))] * N
    let_pass(cluster, 1)
    assert files(cluster) == []
    assert [later.get_pending(id).r for id in ids]


@pytest.mark.parametrize("trouble", [nothing, restart, long_ago])
def test_bulk_bytes_are_kept_too(cluster: MemoryCluster, trouble: Callable[[MemoryCluster], None]) -> None:
    client, later = cluster.client(), cluster.client()
    held = Held(cluster)
    for i in range(70):  # more than an engine is handed ahead
        client.execute(f"n = {i}", block=False)
    data = bytes(range(256)) * (LARGE // 256)
    client.push({"big": data}, block=False)
    parts = client.scatter("part", [data, data[::-1]], block=False)
    last = client.execute("len(big), n", block=False)
    ids = client.detach()
    assert sum(path.stat().st_size for path in files(cluster)) > 3 * len(data)
    assert last.id in ids
    assert parts.id in ids
    vanish(cluster, client)
    trouble(cluster)
    pending = later.get_pending(last.id)
    held.let_go()
    pending.get_result(timeout=100)
    assert later.pull("big") == [data, data]
    assert later.gather("part") == [data, data[::-1]]
    let_pass(cluster, 1)
    assert files(cluster) == []
    assert cluster.controller is not None
    assert not cluster.controller.custody._custodians
    assert len(cluster.controller.router.blobs) == 0


@pytest.mark.parametrize("trouble", [nothing, restart, long_ago])
def test_tasks_of_a_vanished_client(cluster: MemoryCluster, trouble: Callable[[MemoryCluster], None]) -> None:
    client, later = cluster.task_client(), cluster.task_client()
    held = Held(cluster)
    data = b"d" * LARGE

    def work(i: int, more: bytes = b"") -> tuple[int, int]:
        RUNS.append(i)  # type: ignore[name-defined]  # noqa: F821
        return i, len(more)

    mec = cluster.client()
    held.let_go()
    mec.execute("RUNS = []")
    held = Held(cluster)
    prs = [client.submit(work, i) for i in range(300)]
    prs.append(client.submit(work, 300, data))
    lost = client.submit(len, "never")
    ids = client._core.detach(prs)
    assert ids == [pr.id for pr in prs]
    vanish(cluster, client)
    trouble(cluster)
    assert later.queue_status()["ended"] == 0
    pending = [later.get_pending(ids[i]) for i in (0, 150, 300)]
    held.let_go()
    assert [pr.get_result(timeout=100) for pr in pending] == [(0, 0), (150, 0), (300, LARGE)]
    let_pass(cluster, 1)
    assert [later.get_pending(id).get_result(timeout=10) for id in ids[:3]] == [(0, 0), (1, 0), (2, 0)]
    runs = [i for part in mec["RUNS"] for i in part]
    assert sorted(runs) == list(range(301))
    with pytest.raises(UnknownResult):
        later.get_task_result(lost.id, block=True)
    assert files(cluster) == []
    assert_idle(cluster)


def assert_idle(cluster: MemoryCluster) -> None:
    """Nothing of detached work is left in the controller; engines keep results only."""
    let_pass(cluster, CLIENT_GRACE + 1)
    assert cluster.controller is not None
    custody = cluster.controller.custody
    assert not custody.ledger.parcels
    assert not custody.ledger._concerned
    assert not custody.ledger._of_client
    assert not custody._custodians
    assert not custody._jobs
    assert not cluster.controller.tasks._batches
    assert not cluster.controller.router._routes
    assert len(cluster.controller.router.blobs) == 0
    for engine in cluster.engines:
        assert not engine.service._commands._kept._wanted
        assert not engine.service._tasks._batches


def test_what_tasks_depend_on_is_known_after_a_restart(cluster: MemoryCluster) -> None:
    client, later = cluster.task_client(), cluster.task_client()
    first = client.run(StringTask("a = 1", pull="a"))
    client.get_task_result(first, block=True)
    held = Held(cluster)
    second = client.run(StringTask("b = 2", pull="b", after=[first]))
    third = client.run(StringTask("c = 3", pull="c", after=[second], follow=[second]))
    assert client.detach() == [second, third]
    vanish(cluster, client)
    for engine in cluster.engines:
        type(engine.loop).run_ready(engine.loop)  # the second task runs; the third one is not there yet
    let_pass(cluster, 1)
    assert cluster.controller is not None
    assert not cluster.controller.custody.ledger.keeps(*task_keys(second)[0])
    assert cluster.controller.custody.ledger.keeps(*task_keys(third)[0])
    restart(cluster, CLIENT_GRACE + 1)
    held.let_go()
    assert later.get_task_result(third, block=True)["c"] == 3  # type: ignore[index]
    assert later.get_task_result(second, block=True)["b"] == 2  # type: ignore[index]
    assert_idle(cluster)


def test_engines_that_come_back_late_are_waited_for(cluster: MemoryCluster) -> None:
    client, mec = cluster.task_client(), cluster.client()
    mec.execute("RUNS = []")

    def work(i: int) -> int:
        RUNS.append(i)  # type: ignore[name-defined]  # noqa: F821
        return i

    held = Held(cluster)
    ids = [client.submit(work, i).detach() for i in range(3)]
    vanish(cluster, client, 0.0)
    cluster.stop_controller()
    held.let_go()
    for engine in cluster.engines:  # what they have, they run; and then come back late
        engine.loop.run_ready()
        engine.service._connection._delay = 5.0
    let_pass(cluster, 0.5)
    cluster.start_controller()
    later = cluster.task_client()
    assert cluster.ready_ids() == []
    assert [later.get_pending(id).get_result(timeout=100) for id in ids] == [0, 1, 2]
    assert sorted(i for part in mec["RUNS"] for i in part) == [0, 1, 2]


def test_the_end_of_an_engine_is_told_to_who_asks_later(cluster: MemoryCluster) -> None:
    client = cluster.client()
    held = Held(cluster)
    running, queued = (client.execute(f"x = {i}", block=False) for i in range(2))
    client.detach()
    vanish(cluster, client)
    cluster.end_engine(cluster.engine(1), "killed by signal 9 (SIGKILL)", restart=True)
    held.let_go()
    let_pass(cluster, 1)
    assert len(files(cluster)) == 1, "only the failures"
    for _ in range(2):
        later = cluster.client()
        for pr in (running, queued):
            with pytest.raises(CompositeError, match="SIGKILL") as caught:
                later.get_pending(pr.id).get_result(timeout=10)
            assert [failure.ename for failure in caught.value.elist] == [EngineDied.__name__]
            assert list(caught.value.results) == [0]
        assert later.execute("x", targets=0)[0]["result"]["text/plain"] == "1"
        restart(cluster)


def test_of_failures_only_the_newest_are_kept(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "OVER_KEPT", 1)
    client = cluster.client()
    ids = []
    for i in range(2):
        held = Held(cluster)
        ids.append(client.execute(f"x = {i}", targets=0, block=False).detach())
        cluster.end_engine(cluster.engine(0), "killed", restart=True)
        held.let_go()
        cluster.run_until(lambda: cluster.ready_ids() == [0, 1])
    let_pass(cluster, 1)
    assert len(files(cluster)) == 1
    later = cluster.client()
    with pytest.raises(UnknownResult):
        later.get_pending(ids[0]).get_result(timeout=10)
    with pytest.raises(CompositeError, match="EngineDied"):
        later.get_pending(ids[1]).get_result(timeout=10)


def test_its_client_goes_on_as_ever(cluster: MemoryCluster) -> None:
    client, later = cluster.client(), cluster.client()
    client.execute("log = []")
    held = Held(cluster)
    prs = [client.execute(f"print({i}); log.append({i})", block=False) for i in range(5)]
    prs[3].detach()
    prs[1].detach()
    restart(cluster)
    held.let_go()
    assert [pr.get_result(timeout=100)[0]["stdout"] for pr in prs] == [f"{i}\n" for i in range(5)]
    assert client["log"] == [[0, 1, 2, 3, 4]] * N, "also after a restart in the order they were sent"
    let_pass(cluster, 1)
    assert files(cluster) == []
    assert later.get_pending(prs[3].id).get_result(timeout=10)[1]["stdout"] == "3\n"
    client.close()
    assert_idle(cluster)
    assert later.get_pending(prs[1].id).get_result(timeout=10)[1]["stdout"] == "1\n"


def test_a_client_that_comes_back_after_its_grace_gets_its_results(cluster: MemoryCluster) -> None:
    client = cluster.client()
    client.execute("log = []")
    held = Held(cluster)
    pr = client.execute("log.append(1)", block=False)
    pr.detach()
    door = client._core._dialer._door
    vanish(cluster, client)
    held.let_go()
    let_pass(cluster, 1)
    client._core._dialer._door = door
    pr.get_result(timeout=100)
    assert client["log"] == [[1]] * N


def test_a_client_may_close_right_after(cluster: MemoryCluster) -> None:
    client, tasks, later = cluster.client(), cluster.task_client(), cluster.client()
    held = Held(cluster)
    pr = client.execute("6 * 7", targets=0, block=False)
    task = tasks.submit(pow, 2, 5)
    pr.detach()
    task.detach()
    client.close()
    tasks.close()
    with pytest.raises(ClientClosed):
        pr.get_result()
    let_pass(cluster, CLIENT_GRACE + 1)
    held.let_go()
    assert later.get_pending(pr.id).get_result(timeout=10)[0]["result"]["text/plain"] == "42"
    assert cluster.task_client().get_pending(task.id).get_result(timeout=10) == 32
    assert_idle(cluster)


def test_what_is_finished_or_detached_already_costs_nothing(cluster: MemoryCluster) -> None:
    client = cluster.client()
    pr = client.execute("1", block=False)
    pr.get_result(timeout=10)
    assert pr.detach() == pr.id
    assert client.detach() == []
    assert files(cluster) == []
    held = Held(cluster)
    pr = client.execute("2", block=False)
    assert [pr.detach(), pr.detach(), *client.detach()] == [pr.id] * 3
    held.let_go()
    assert pr.get_result(timeout=10)[0]["result"]["text/plain"] == "2"
    assert_idle(cluster)
    assert files(cluster) == []


@pytest.mark.parametrize("size", [1000, LARGE])
def test_there_is_a_limit(cluster: MemoryCluster, size: int) -> None:
    cluster.detach_limit = 100_000
    restart(cluster)
    client = cluster.client()
    held = Held(cluster)
    fits = client.push({"a": b"x" * 1000}, block=False)
    fits.detach()
    prs = [client.push({"b": b"x" * size}, block=False) for _ in range(200 if size < LARGE else 1)]
    with pytest.raises(DetachFailed, match="keeps at most 0 MB"):
        client.detach()
    assert len(files(cluster)) == 1
    held.let_go()
    client.barrier(prs, timeout=100)
    assert client.pull("b")[0] == b"x" * size, "the work itself goes on"
    let_pass(cluster, 1)
    assert files(cluster) == []
    assert_idle(cluster)


@pytest.mark.parametrize("method", ["create", "append", "fill", "keep"])
def test_a_disk_that_cannot_be_written_is_told(
    cluster: MemoryCluster, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = cluster.client()
    held = Held(cluster)
    pr = client.push({"b": b"x" * LARGE}, block=False)

    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Parcel, method, full)
        with pytest.raises(DetachFailed, match="No space left on device"):
            pr.detach()
    assert files(cluster) == []
    pr.detach()
    assert len(files(cluster)) == 1
    held.let_go()
    pr.get_result(timeout=10)


def test_without_a_folder_nothing_is_detached(cluster: MemoryCluster) -> None:
    assert cluster.controller is not None
    cluster.controller.custody.ledger.folder = None
    held = Held(cluster)
    pr = cluster.client().execute("1", block=False)
    with pytest.raises(DetachFailed, match="no folder"):
        pr.detach()
    held.let_go()
    pr.get_result(timeout=10)


@pytest.mark.parametrize("when", ["before", "while", "away"])
def test_detach_waits_for_a_controller(cluster: MemoryCluster, when: str) -> None:
    client, later = cluster.client(), cluster.client()
    client.execute("log = []")
    held = Held(cluster)
    pr = client.push({"b": b"x" * LARGE}, block=False)
    then = client.execute("log.append(1)", block=False)
    if when == "away":
        client._core._dialer.cut()
    if when == "before":
        cluster.stop_controller()
        cluster.clock.callLater(5.0, cluster.start_controller)
    if when == "while":
        cluster.clock.callLater(0.0, cluster.stop_controller)
        cluster.clock.callLater(5.0, cluster.start_controller)
    client.detach()
    vanish(cluster, client)
    restart(cluster)
    pending = later.get_pending(then.id)
    held.let_go()
    pending.get_result(timeout=100)
    assert later["log"] == [[1]] * N
    assert later.pull("b") == [b"x" * LARGE] * N
    assert later.get_pending(pr.id).get_result(timeout=10) == [None] * N


def test_who_goes_before_it_is_safe_has_detached_nothing(cluster: MemoryCluster) -> None:
    client, later = cluster.client(), cluster.client()
    held = Held(cluster)
    pr = client.push({"b": b"x" * LARGE}, block=False)
    for _ in range(3):
        cluster.step()
    cluster.clock.callLater(0.0, client._core._dialer.cut)
    client._core._dialer._door = lambda: None
    with pytest.raises(ConnectionFailed):
        pr.detach()
    let_pass(cluster, CLIENT_GRACE + 1)
    assert files(cluster) == []
    held.let_go()
    with pytest.raises(CompositeError, match=r"TaskAborted|ConnectionError"):
        later.get_pending(pr.id).get_result(timeout=10)
    assert_idle(cluster)


def test_who_goes_while_it_is_being_written_has_detached_it(cluster: MemoryCluster) -> None:
    client, later = cluster.client(), cluster.client()
    client.execute("log = []")
    held = Held(cluster)
    pr = client.push({"b": b"x" * LARGE}, block=False)
    then = client.execute("log.append(1)", block=False)
    assert cluster.controller is not None
    slow: list[tuple[Callable[[], Any], Deferred[Any]]] = []

    def in_thread(f: Callable[[], Any]) -> Deferred[Any]:
        slow.append((f, Deferred()))
        return slow[-1][1]

    cluster.controller.custody.intake._in_thread = in_thread
    with pytest.raises(TimeoutError):
        client._core.wait(detach_soon(client), 1.0)
    vanish(cluster, client)
    [(write, done)] = slow
    done.callback(write())
    held.let_go()
    let_pass(cluster, 1)
    assert later.get_pending(then.id).get_result(timeout=10)
    assert later.get_pending(pr.id).get_result(timeout=10) == [None] * N
    assert later["log"] == [[1]] * N
    assert later.pull("b") == [b"x" * LARGE] * N
    assert_idle(cluster)


def detach_soon(client: Any) -> Future[Any]:
    """Detach all that is outstanding, and do not wait for it."""
    future: Future[Any] = Future()
    core = client._core
    core.detaching.detach(core.new_id(), client.pending, future)
    return future


def test_results_of_others_push_nothing_out(cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "KEPT_COUNT", 5)
    monkeypatch.setattr(kept, "DETACHED_COUNT", 3)
    client, later = cluster.client(), cluster.client()
    tasks, other = cluster.task_client(), cluster.task_client()
    held = Held(cluster)
    for i in range(5):
        client.execute(f"{i}", targets=0, block=False)
    ids = client.detach()
    task = tasks.submit(pow, 2, 5)
    task.detach()
    vanish(cluster, client, 0.0)
    vanish(cluster, tasks)
    held.let_go()
    let_pass(cluster, 1)
    for i in range(20):
        later.execute(f"{i}")
        other.submit(pow, 2, i).get_result(timeout=10)
    assert [later.get_pending(id).get_result(timeout=10)[0]["result"]["text/plain"] for id in ids[2:]] == [
        "2",
        "3",
        "4",
    ]
    for id in ids[:2]:  # there is room for three
        with pytest.raises(UnknownResult):
            later.get_pending(id).get_result(timeout=10)
    assert other.get_pending(task.id).get_result(timeout=10) == 32


def test_an_abort_holds_for_detached_work(cluster: MemoryCluster) -> None:
    client, later = cluster.client(), cluster.client()
    held = Held(cluster)
    first, second = (client.execute(f"ran = {i}", block=False) for i in (1, 2))
    client.detach()
    second.abort()
    held.let_go()
    first.get_result(timeout=10)
    with pytest.raises(CompositeError, match="TaskAborted"):
        second.get_result(timeout=10)
    let_pass(cluster, 1)
    with pytest.raises(CompositeError, match="TaskAborted"):
        later.get_pending(second.id).get_result(timeout=10)
    assert later["ran"] == [1] * N


def test_stop_on_error_holds_without_the_client(cluster: MemoryCluster) -> None:
    client, later = cluster.client(), cluster.client()
    client.stop_on_error = True
    held = Held(cluster)
    client.execute("1 / 0", targets=0, block=False)
    last = [client.execute("ran = 1", targets=0, block=False) for _ in range(100)][-1]
    client.detach()
    vanish(cluster, client)
    held.let_go()
    let_pass(cluster, 1)
    with pytest.raises(CompositeError, match="QueueCleared"):
        later.get_pending(last.id).get_result(timeout=10)
    assert later.execute("'ran' in globals()", targets=0)[0]["result"]["text/plain"] == "False"
    assert_idle(cluster)


def test_what_others_have_sent_and_maps_cannot_be_detached(cluster: MemoryCluster) -> None:
    client, other = cluster.client(), cluster.client()
    tasks = cluster.task_client()
    held = Held(cluster)
    pr = client.execute("1", block=False)
    asked = other.get_pending(pr.id)
    with pytest.raises(ValueError, match="another client"):
        asked.detach()
    assert other.detach() == []
    mapped = tasks.map(len, ["a", "bb"], block=False)
    for detach in (mapped.detach, tasks.detach):
        with pytest.raises(ValueError, match="map"):
            detach()
    held.let_go()
    assert mapped.get_result(timeout=10) == [1, 2]


def test_the_files_are_private(cluster: MemoryCluster) -> None:
    client = cluster.client()
    Held(cluster)
    client.push({"secret": b"x" * LARGE}, block=False).detach()
    [path] = files(cluster)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("left", [1, 5, 9])
def test_a_note_that_a_killed_controller_had_begun_is_cut_off(cluster: MemoryCluster, left: int) -> None:
    client, later = cluster.client(), cluster.client()
    client.execute("log = []")
    held = Held(cluster)
    ids = [client.execute(f"log.append({i})", block=False).detach() for i in range(2)]
    vanish(cluster, client)
    cluster.stop_controller()
    path = files(cluster)[0]
    whole = path.read_bytes()
    path.write_bytes(whole + b"e\0\0\0\0\0\0\0\x20\x92"[:left])
    (path.parent / "x-1.part").write_bytes(b"begun")
    cluster.start_controller()
    cluster.run_until(lambda: len(cluster.ready_ids()) == N)
    assert files(cluster)[0].read_bytes() == whole
    assert len(files(cluster)) == 2
    held.let_go()
    for id in ids:
        later.get_pending(id).get_result(timeout=10)
    assert later["log"] == [[0, 1]] * N


def test_a_file_that_is_none_of_ours_does_no_harm(cluster: MemoryCluster) -> None:
    cluster.stop_controller()
    folder = Path(cluster._disk.name) / "detached"
    folder.mkdir()
    (folder / "c-1").write_bytes(b"r\0\0\0\0\0\0\0\x03abc")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr(ledger_module.log, "error", lambda text, **facts: lines.append(text))
        cluster.start_controller()
    assert len(lines) == 1
    cluster.run_until(lambda: len(cluster.ready_ids()) == N)
    assert cluster.client().apply(lambda: 7) == [7] * N


# -- what others might send ----------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[TaskWorld]:
    world = TaskWorld(detached=Folder(tmp_path / "detached"))
    yield world
    world.close()


def parcel(user: Peer, name: str, *blobs: tuple[str, int]) -> None:
    """Detach a batch with one task, and blobs."""
    work = [Batch("c1-1", "call", "", 0.0, b"\x80", b"\x80", (b"f",)), Work("c1-1", ((0, 0, (b"x",)),))]
    refs = tuple(BlobRef(f"{name}/{blob}", size) for blob, size in blobs)
    user.send(Detach(name, 0, tuple(map(encode, work)), refs))


def test_many_blobs_are_few_calls(world: TaskWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []

    def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path)
        return open(path, *args, **kwargs)

    monkeypatch.setattr(parcels, "open", counted, raising=False)
    user = world.client("c1")
    sizes = {f"b{i}": 10 * i for i in range(100)}
    parcel(user, "c1-9", *sizes.items())
    assert 1 <= len(opened) < 5
    ledger = world.controller.custody.ledger  # type: ignore[union-attr]
    for blob in list(ledger.parcels["c1-9"].arriving):
        name = blob.partition("/")[2]
        user.send(Chunk(blob, 0, bytes([int(name[1:])]) * sizes[name]))
    user.send(Ask("c1-9", "detach", b"\x80"))
    assert [answer.ok for answer in user.hear(Answer)] == [True]
    folder = ledger.folder.path  # type: ignore[union-attr]
    found = Parcel(folder, "c1-9")
    assert [frame.kind for frame in found.open()] == [RECORD] * 2 + [NAME, BLOB] * 100
    assert found.blobs == sizes
    assert all(found.blob(name) == bytes([int(name[1:])]) * size for name, size in sizes.items())


def test_a_piece_has_no_more_blobs_than_clients_put_into_one(
    world: TaskWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdings, "BLOBS_LIMIT", 10)
    user, other = world.client("c1"), world.client("c2")
    blobs = [(str(i), 1) for i in range(11)]
    parcel(user, "c1-8", *blobs[:10])
    assert user.welcomes == [False]
    parcel(user, "c1-9", *blobs)
    world.run(1.0)
    assert len(user.welcomes) > 1, "it had to dial again"
    assert other.welcomes == [False]
    assert list(world.controller.custody.ledger.parcels) == ["c1-8"]  # type: ignore[union-attr]


def test_bytes_that_a_blob_has_no_room_for_fail_only_their_parcel(world: TaskWorld) -> None:
    world.engine("e", lambda key, attempt: ("ok", FOREVER))
    user, other = world.client("c1"), world.client("c2")
    parcel(user, "c1-9", ("a", 10), ("b", 10))
    parcel(user, "c1-8", ("a", 10))
    user.send(Ask("c1-9", "detach", b"\x80"), Ask("c1-8", "detach", b"\x80"))
    for record in (
        Chunk("c1-9/a", 0, b"x" * 20),
        Chunk("c1-8/a", 0, b"y" * 10),
        Chunk("c1-9/b", 0, b"z" * 10),
    ):
        user.connection.send(record)
    world.run(1.0)
    refused, kept = sorted(user.hear(Answer), key=lambda answer: answer.ok)
    assert (refused.id, refused.ok, kept.id, kept.ok) == ("c1-9", False, "c1-8", True)
    failure = decode_failure(refused.body, -1, "detach")
    assert failure.ename == "DetachFailed"
    assert "only 10 bytes" in failure.evalue
    assert other.connection.linked


def test_the_answer_goes_to_who_detaches(world: TaskWorld) -> None:
    user, other = world.client("c1"), world.client("c2")
    parcel(user, "c1-9", ("a", 10))
    user.send(Ask("c1-9", "detach", b"\x80"))
    other.send(Ask("c1-9", "detach", b"\x80"))
    user.send(Chunk("c1-9/a", 0, b"x" * 10))
    assert [answer.ok for answer in user.hear(Answer)] == [True]
    assert [answer.ok for answer in other.hear(Answer)] == [False]


def test_one_record_that_fails_does_not_stop_the_others(
    world: TaskWorld, monkeypatch: pytest.MonkeyPatch, logged_errors: LoggedErrors
) -> None:
    user = world.client("c1")
    fill = Holding.filled

    def failing(held: Holding, blob: str, offset: int, data: bytes) -> int:
        if blob == "c1-9/a":
            raise KeyError(blob)
        return fill(held, blob, offset, data)

    monkeypatch.setattr(Holding, "filled", failing)
    parcel(user, "c1-9", ("a", 10))
    parcel(user, "c1-8", ("a", 10))
    for name in ("c1-9", "c1-8"):
        user.connection.send(Chunk(f"{name}/a", 0, b"x" * 10))
    user.send(Ask("c1-8", "detach", b"\x80"))
    assert [(answer.id, answer.ok) for answer in user.hear(Answer)] == [("c1-8", True)]
    assert len(logged_errors.flush(KeyError)) == 1


@pytest.mark.parametrize("fate", ["dropped", "full"])
def test_failures_are_not_remembered_longer_than_their_parcel(
    world: TaskWorld, fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledger_module, "OVER_KEPT", 0)
    monkeypatch.setattr(ledger_module.log, "warn", lambda text, **facts: None)
    monkeypatch.setattr(Parcel, "shrink", full)
    user = world.client("c1")
    batch = user.open(1)
    ledger = world.controller.custody.ledger  # type: ignore[union-attr]
    parcel(user, "c1-9", ("a", 10))
    if fate == "full":
        user.send(Chunk("c1-9/a", 0, b"x" * 10), Ask("c1-9", "detach", b"\x80"))
    user.send(Withdraw(batch, (), "abort"))
    assert user.end(batch) == "TaskAborted"
    if fate == "dropped":
        assert ledger._answers
        user.vanish()
        world.run(CLIENT_GRACE + 1)
    assert not ledger.parcels
    assert not ledger._answers
    assert not ledger._over
    assert ledger._size == 0
    assert not list(ledger.folder.path.parent.rglob("c1-9"))  # type: ignore[union-attr]
