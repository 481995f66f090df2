"""The engine queue against a simple model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipython1.kernel.controller.queue import HAND, Command, EngineQueue


def command(id: str) -> Command:
    return Command(id, "execute", f"label {id}", f"raw {id}".encode())


def raws(*ids: str) -> list[bytes]:
    return [f"raw {id}".encode() for id in ids]


STEPS = st.lists(
    st.one_of(
        st.just("put"),
        st.just("done"),
        st.just("open"),
        st.just("drain"),
        st.tuples(st.just("cancel"), st.integers(0, 4)),
    ),
    max_size=300,
)


@given(STEPS)
def test_every_command_is_handed_over_once_in_order_or_given_back(steps: list) -> None:
    queue = EngineQueue(lambda: 1.0)
    put: list[str] = []
    sent: list[bytes] = []
    waiting: list[str] = []  # the model
    handed: list[str] = []
    open_ = False
    for step in steps:
        if step == "put":
            id = f"c{len(put) % 5}-{len(put)}"
            put.append(id)
            waiting.append(id)
            queue.put(command(id))
        elif step == "done" and handed:
            assert queue.done(handed.pop(0))
        elif step == "open":
            open_ = True
            queue.open(sent.append)
        elif step == "drain":
            assert [gone.id for gone in queue.drain()] == handed + waiting
            handed, waiting, open_ = [], [], False
        elif step[0] == "cancel":
            client = f"c{step[1]}"
            gone = queue.cancel(lambda command, client=client: command.client == client)
            assert [command.id for command in gone] == [i for i in waiting if i.startswith(client + "-")]
            waiting = [id for id in waiting if not id.startswith(client + "-")]
        while open_ and waiting and len(handed) < HAND:
            handed.append(waiting.pop(0))
        assert len(queue) == len(handed) + len(waiting)
        assert (queue.running.id if queue.running else None) == (handed[0] if handed else None)
        assert [command.id for command in queue.commands] == handed + waiting
        assert all(queue.waits(id) for id in waiting)
        assert not any(queue.waits(id) for id in handed)
    assert len(sent) == len(set(sent))
    assert sent == sorted(sent, key=lambda raw: int(raw.split(b"-")[1]))


def test_a_repeated_command_goes_to_the_engine_again_only_where_it_has_it() -> None:
    queue, sent = EngineQueue(lambda: 1.0), []
    queue.put(command("a-1"))
    queue.put(command("a-1"))
    assert len(queue) == 1
    queue.open(sent.append)
    assert sent == raws("a-1")
    queue.put(command("a-1"))
    assert sent == raws("a-1", "a-1")
    assert len(queue) == 1


def test_adopted_commands_are_running_and_not_sent() -> None:
    queue, sent = EngineQueue(lambda: 5.0), []
    queue.adopt(Command("a-1", "execute", "x", b""))
    queue.open(sent.append)
    queue.put(command("a-2"))
    assert sent == raws("a-2")
    assert queue.running is not None
    assert (queue.running.id, queue.running.since) == ("a-1", 5.0)
    assert not queue.done("a-7")
    assert queue.done("a-1")
    assert queue.running.id == "a-2"


def test_commands_are_found_by_their_ids() -> None:
    queue = EngineQueue(lambda: 1.0)
    queue.open(lambda raw: None)
    ids = [f"a-{i}" for i in range(HAND + 3)]
    for id in ids:
        queue.put(command(id))
    assert "a-0" in queue
    assert "a-99" not in queue
    assert queue.handed(("a-1", f"a-{HAND}", "a-99")) == ["a-1"]
    assert queue.handed(()) == ids[:HAND]
    assert [gone.id for gone in queue.take(("a-1", f"a-{HAND}", "a-99"), raise_)] == [f"a-{HAND}"]
    assert [gone.id for gone in queue.take((), raise_)] == ids[HAND + 1 :]
    assert len(queue) == HAND


def raise_(id: str) -> bytes:
    raise AssertionError(id)


def test_only_the_engine_knows_whether_a_command_sent_again_has_run() -> None:
    queue, sent = EngineQueue(lambda: 1.0), []
    queue.put(Command("a-1", "execute", "x", b"raw a-1", again=True))
    queue.put(command("a-2"))
    assert [gone.id for gone in queue.take((), lambda id: f"cancel {id}".encode())] == ["a-2"]
    queue.open(sent.append)
    assert sent == [b"raw a-1", b"cancel a-1"]
