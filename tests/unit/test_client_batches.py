"""The client's side of tasks, with a recorder for the controller."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.task import Clock

from ipython1.kernel.client.batches import Batches
from ipython1.kernel.client.taskpending import TaskPending
from ipython1.kernel.error import ClientClosed
from ipython1.kernel.wire import objects
from ipython1.kernel.wire.blobs import ChunkStore
from ipython1.kernel.wire.codec import unpack_map
from ipython1.kernel.wire.records import (
    Batch,
    BlobRef,
    Chunk,
    Event,
    Grant,
    Outcomes,
    Parts,
    Record,
    Seek,
    Taken,
    Withdraw,
    Work,
)

VALUE = tuple(bytes(part) for part in objects.dumps("value"))


class Bridge:
    """Everything happens at once."""

    def submit(self, f: Callable[..., Any], *args: Any) -> None:
        f(*args)


class Client:
    """A client's tasks, and what it sends."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sent: list[Record] = []
        self.blobs = ChunkStore(self.sent.append)
        self.count = 0
        self.tasks = Batches(self.clock, Bridge(), self.blobs, self.sent.append, self.new_id)  # type: ignore[arg-type]

    def call_user(self, f: Callable[..., Any], *args: Any) -> None:
        f(*args)

    def new_id(self) -> str:
        self.count += 1
        return f"c1-{self.count}"

    def open(self, count: int, size: int = 3, **rules: Any) -> tuple[str, TaskPending]:
        batch = self.tasks.open("call", (b"function",), rules=rules)
        return batch, self.add(batch, count, size)

    def add(self, batch: str, count: int, size: int = 3) -> TaskPending:
        slots = self.tasks.reserve(batch, count)
        pending = self.pending(batch, slots)
        self.tasks.add(pending, slots, [(bytes(size),)] * count)
        return pending

    def pending(self, batch: str, slots: Any) -> TaskPending:
        return TaskPending(self, batch, "map", slots)  # type: ignore[arg-type]

    def said(self) -> list[Record]:
        """What was sent since this was asked last."""
        self.clock.advance(0)
        sent = self.sent[:]
        self.sent.clear()
        return sent

    def end(
        self, batch: str, index: int, attempt: int = 1, events: int = 0, parts: Parts = VALUE, **more: Any
    ) -> None:
        status, engine = more.get("status", "ok"), more.get("engine", 0)
        self.tasks.incoming.outcomes(
            Outcomes(batch, engine, ((index, attempt, status, 1.0, 2.0, events, parts),))
        )

    def event(self, batch: str, task: int, number: int, text: str, attempt: int = 1) -> None:
        self.tasks.incoming.event(Event(f"{batch}#{task}", 0, number, "stdout", text, (), attempt))


@pytest.fixture
def client() -> Client:
    return Client()


def test_tasks_go_out_together_and_are_told_as_taken(client: Client) -> None:
    batch, pending = client.open(600)
    head, *works = client.said()
    assert isinstance(head, Batch)
    assert [len(work.items) for work in works] == [256, 256, 88]  # type: ignore[attr-defined]
    for index in range(600):
        client.end(batch, index)
    assert pending.result(timeout=0) == ["value"] * 600
    client.tasks.close(batch)
    takens = client.said()
    assert all(isinstance(taken, Taken) for taken in takens)
    assert sorted(index for taken in takens for index in taken.items) == list(range(600))  # type: ignore[attr-defined]
    assert [taken.last for taken in takens] == [False] * (len(takens) - 1) + [True]  # type: ignore[attr-defined]
    assert not client.tasks._batches


def test_what_a_batch_depends_on_is_sent_before_it(client: Client) -> None:
    first, _ = client.open(1)
    client.open(1, after=[(first, 0)])
    assert [type(record) for record in client.said()] == [Batch, Work, Batch, Work]
    client.end(first, 0)
    client.said()
    client.open(1, follow=[(first, 0)])
    head = client.said()[0]
    assert isinstance(head, Batch)
    assert unpack_map(head.rules)["known"] == ((first, 0, True, 0),)


def test_withdraw_names_those_that_are_left(client: Client) -> None:
    batch, pending = client.open(3)
    other = client.add(batch, 1)
    client.said()
    client.tasks.withdraw(batch, pending.unfinished)
    assert client.said() == [Withdraw(batch, (0, 1, 2), "abort")]
    for index in range(3):
        client.end(batch, index)
    client.tasks.withdraw(batch, pending.unfinished, interrupt=True)  # nothing is left: nothing happens
    assert not any(isinstance(record, Withdraw) for record in client.said())
    assert not other.done()
    client.tasks.withdraw(batch, interrupt=True)
    assert client.said() == [Withdraw(batch, (3,), "interrupt")]


def test_what_goes_to_a_new_controller(client: Client) -> None:
    batch, _ = client.open(4)
    empty = client.tasks.open("call", (b"function",))
    client.event(batch, 1, 0, "seen", attempt=2)
    client.end(batch, 0)
    client.tasks.withdraw(batch, [2])
    client.tasks.withdraw(batch, [3], interrupt=True)
    asked = client.pending("c9-1", (5,))
    client.tasks.seek(asked)
    client.said()
    client.tasks.send_again()
    sent = [record for record in client.said() if not isinstance(record, Batch)]
    args = (bytes(3),)
    assert sent == [
        Work(batch, ((1, 2, args), (2, 0, args), (3, 0, args)), True),
        Withdraw(batch, (2,), "abort"),
        Withdraw(batch, (3,), "interrupt"),
        Work(empty, (), True),
        Seek("c9-1", (5,)),
    ]


def test_a_later_attempt_begins_its_output_anew(client: Client) -> None:
    batch, pending = client.open(1)
    client.event(batch, 0, 0, "one")
    client.event(batch, 0, 1, "more")
    client.event(batch, 0, 0, "two", attempt=2)
    client.event(batch, 0, 2, "late", attempt=1)
    client.end(batch, 0, attempt=1, events=3)
    assert not pending.done()
    client.end(batch, 0, attempt=2, events=1)
    assert pending.stdout == ["two"]
    assert pending.result(timeout=0) == ["value"]


def test_events_that_were_lost_with_a_controller_are_asked_for(client: Client) -> None:
    batch, pending = client.open(1)
    client.event(batch, 0, 0, "one")
    client.said()
    client.end(batch, 0, attempt=2, events=1)  # as many as of the first attempt, but not the same
    assert not pending.done()
    assert client.said() == [Work(batch, ((0, 2, (bytes(3),)),))]
    client.event(batch, 0, 0, "two", attempt=2)
    client.end(batch, 0, attempt=2, events=1)
    assert pending.stdout == ["two"]
    assert pending.done()


def test_a_repeated_outcome_does_not_stop_its_bytes(client: Client) -> None:
    batch, pending = client.open(1)
    [data] = objects.dumps("x" * 100_000)
    blob = BlobRef(f"{batch}#0/e/r/0", len(data))
    client.end(batch, 0, parts=(blob,))
    client.blobs.chunk_received(Chunk(blob.blob, 0, bytes(data[:50_000])))
    client.said()
    client.end(batch, 0, parts=(blob,))
    assert client.said() == [Grant(blob.blob, 50_000)]
    client.blobs.chunk_received(Chunk(blob.blob, 50_000, bytes(data[50_000:])))
    assert pending.result(timeout=0) == ["x" * 100_000]


def test_a_result_that_died_with_its_engine_is_made_again(client: Client) -> None:
    batch, pending = client.open(1, size=100_000)
    client.said()
    blob = BlobRef(f"{batch}#0/e/r/0", 100_000)
    client.end(batch, 0, parts=(blob,))
    client.said()
    client.blobs.chunk_received(Chunk(blob.blob, -1, b""))
    again, *chunks = client.said()
    assert isinstance(again, Work)
    assert again.items[0][:2] == (0, 1)
    assert chunks, "the arguments are offered again"
    client.end(batch, 0, attempt=2)
    assert pending.result(timeout=0) == ["value"]
    assert not client.blobs._held


def test_what_is_said_to_others_does_not_end_our_tasks(client: Client) -> None:
    batch, pending = client.open(1)
    client.end(batch, 0, status="unknown", engine=-1, parts=())
    assert not pending.done()
    client.end(batch, 0)
    assert pending.done()


def test_several_may_ask_for_the_same(client: Client) -> None:
    batch, pending = client.open(1)
    mine = client.pending(batch, (0,))
    others = [client.pending("c9-1", (3,)) for _ in range(2)]
    client.said()
    for asked in (mine, *others):
        client.tasks.seek(asked)
    assert client.said() == [Seek("c9-1", (3,))]
    assert set(map(id, client.tasks.pending())) == set(map(id, (pending, mine, *others)))
    client.event("c9-1", 3, 0, "hi")
    client.end("c9-1", 3, events=1)
    client.end(batch, 0)
    assert [each.done() for each in (pending, mine, *others)] == [True] * 4
    assert [asked.stdout for asked in others] == [["hi"], ["hi"]]
    assert "c9-1" not in client.tasks._batches


def test_after_the_end_nothing_can_be_sent(client: Client) -> None:
    batch, pending = client.open(1)
    client.tasks.fail(ClientClosed())
    with pytest.raises(ClientClosed):
        pending.result(timeout=0)
    for _ in range(3):
        with pytest.raises(ClientClosed) as caught:
            client.tasks.reserve(batch)
        assert len(caught.traceback) == 3  # not those of earlier calls
    with pytest.raises(ClientClosed):
        client.tasks.add(pending, range(1), [(b"x",)])
    with pytest.raises(KeyError):
        Client().tasks.reserve("c1-1")
    assert not client.clock.getDelayedCalls()
