"""Output of commands: order, coalescing, limits, back-pressure, streams."""

from __future__ import annotations

import json
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipython1 import __getattr__ as lazy
from ipython1.kernel.engine import output as module
from ipython1.kernel.engine.output import OutputBuffer, OutputStream
from ipython1.kernel.engine.this_engine import ThisEngine, set_current
from ipython1.kernel.error import IPython1Error, SerializationError
from ipython1.kernel.wire.objects import loads


@pytest.fixture
def woken():
    return []


@pytest.fixture
def output(woken):
    return OutputBuffer(lambda: woken.append(1), wait=False)


def test_texts_are_joined_and_kinds_keep_their_order(output, woken):
    output.begin("c-1")
    for kind, text in [("stdout", "a"), ("stdout", "b"), ("stderr", "c"), ("stdout", "d")]:
        assert output.write(kind, text)
    output.add("display", "", [b"x"])
    output.add("display", "", [b"y"])
    assert woken == [1]
    assert output.take() == [
        ("c-1", "stdout", "ab", []),
        ("c-1", "stderr", "c", []),
        ("c-1", "stdout", "d", []),
        ("c-1", "display", "", [b"x"]),
        ("c-1", "display", "", [b"y"]),
    ]
    assert output.take() == []
    output.write("stdout", "e")
    assert woken == [1, 1]


def test_commands_are_kept_apart(output):
    for command in ("c-1", "c-2"):
        output.begin(command)
        output.write("stdout", "x")
        output.end()
    assert [item[0] for item in output.take()] == ["c-1", "c-2"]


def test_without_a_command_nothing_is_taken(output):
    assert not output.write("stdout", "x")
    output.begin("c-1")
    output.end()
    assert not output.write("stdout", "x")
    assert output.take() == []


def test_the_end_wakes_for_what_is_left(output, woken):
    output.begin("c-1")
    output.write("stdout", "x")
    output.end()
    assert len(woken) == 2


def test_an_interrupted_wake_is_made_up_for():
    calls = []

    def wake():
        calls.append(1)
        if len(calls) == 1:
            raise KeyboardInterrupt

    output = OutputBuffer(wake, wait=False)
    output.begin("c-1")
    with pytest.raises(KeyboardInterrupt):
        output.write("stdout", "a")
    output.write("stdout", "b")
    assert len(calls) == 2
    assert output.take() == [("c-1", "stdout", "ab", [])]


def test_of_progress_only_the_last_counts(output):
    output.begin("c-1")
    for n in range(5):
        output.add("progress", str(n), [])
    output.write("stdout", "x")
    output.add("progress", "9", [])
    assert [item[2] for item in output.take()] == ["4", "x", "9"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["stdout", "stderr"]), st.text(st.characters(codec="utf-8"))), max_size=30
    )
)
def test_all_text_arrives_in_order_in_small_pieces(writes):
    output = OutputBuffer(lambda: None, wait=False)
    output.begin("c-1")
    for kind, text in writes:
        output.write(kind, text * 700)
    items = output.take()
    assert all(len(text.encode()) <= module.TEXT_LIMIT for _, _, text, _ in items)
    for kind in ("stdout", "stderr"):
        assert "".join(i[2] for i in items if i[1] == kind) == "".join(
            t * 700 for k, t in writes if k == kind
        )


def test_output_beyond_the_limit_is_dropped_with_one_sentence(output, monkeypatch):
    monkeypatch.setattr(module, "OUTPUT_LIMIT", 2 << 20)
    output.begin("c-1")
    for _ in range(30):
        output.write("stdout", "x" * 100_000)
    output.add("publish", "", [b"still"])
    items = output.take()
    assert sum(len(i[2]) for i in items if i[1] == "stdout") == 2_000_000
    assert [i[2] for i in items if i[1] == "stderr"] == [
        "\nMore than 2 MiB of output: the rest is dropped.\n"
    ]
    assert items[-1][3] == [b"still"]
    output.begin("c-2")
    output.write("stdout", "again")
    assert output.take() == [("c-2", "stdout", "again", [])]


def test_the_command_waits_for_the_taker_and_loses_nothing():
    wanted = threading.Event()
    output = OutputBuffer(wanted.set)
    most = []
    total = 40 * 1024 * 1024 // 64  # under the limit of one command

    def command():
        output.begin("c-1")
        for _ in range(total // 1000):
            output.write("stdout", "x" * 1000)
            most.append(output._put - output._taken)
        output.end()

    writer = threading.Thread(target=command)
    writer.start()
    got = 0
    while writer.is_alive() or output._items:
        wanted.wait(0.01)
        wanted.clear()
        got += sum(len(item[2]) for item in output.take())
    writer.join()
    assert got == total // 1000 * 1000
    assert max(most) <= module.HIGH_WATER + 1000 + module.OVERHEAD


def test_only_the_thread_of_the_command_waits():
    output = OutputBuffer(lambda: None)
    output.begin("c-1")
    thread = threading.Thread(
        target=lambda: [output.write("stdout", "x" * 1_000_000) for _ in range(8)], daemon=True
    )
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert output._put > module.HIGH_WATER


def test_a_forked_child_has_nobody_to_write_to(output):
    output.begin("c-1")
    child = os.fork()
    if child == 0:
        os._exit(7 if output.write("stdout", "x") is False else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


# -- streams -------------------------------------------------------------------


@pytest.fixture
def emitted():
    return []


@pytest.fixture
def stream(emitted):
    return OutputStream("stdout", lambda kind, text: emitted.append(text) or True)


def test_a_stream_takes_text_and_bytes(stream, emitted):
    assert stream.write("ä") == 1
    print("a", 1, file=stream, flush=True)
    stream.buffer.write(b"\xc3")
    stream.buffer.write(memoryview(b"\xa4"))
    stream.writelines(["p", "q"])
    assert "".join(emitted) == "äa 1\näpq"


def test_a_stream_escapes_what_is_no_text(stream, emitted):
    assert stream.write("\ud800!") == 2
    stream.buffer.write(b"\xff")
    assert "".join(emitted) == "\\ud800!\\xff"


def test_a_stream_says_what_it_is(stream):
    assert (stream.fileno(), stream.isatty(), stream.encoding, stream.writable()) == (1, False, "utf-8", True)
    stream.reconfigure(encoding="utf-8")
    stream.close()
    stream.buffer.close()
    assert stream.write("still open") == 10
    with pytest.raises(TypeError, match="must be str"):
        stream.write(b"bytes")


def test_what_nobody_wants_goes_to_the_process(capfd):
    OutputStream("stderr", lambda kind, text: False).write("to the log\n")
    assert capfd.readouterr().err == "to the log\n"


# -- this_engine -----------------------------------------------------------------


def test_progress_and_published_objects_are_output(output):
    engine = ThisEngine(output)
    output.begin("c-1")
    engine.progress(1, 3.5, "half")
    value = [1]
    engine.publish(value)
    value.append(2)
    progress, published = output.take()
    assert json.loads(progress[2]) == {"done": 1, "total": 3.5, "label": "half"}
    assert progress[1] == "progress"
    assert published[1] == "publish"
    assert loads(published[3]) == [1]


def test_publishing_fails_clearly(output):
    with pytest.raises(IPython1Error, match="nobody to publish to"):
        ThisEngine(output).publish(1)
    output.begin("c-1")
    with pytest.raises(SerializationError, match="the published object cannot be sent"):
        ThisEngine(output).publish(threading.Lock())


def test_this_engine_is_only_there_on_an_engine():
    engine = ThisEngine()
    before = set_current(None)
    try:
        with pytest.raises(IPython1Error, match="only there in code that runs on an engine"):
            lazy("this_engine")
        set_current(engine)
        assert lazy("this_engine") is engine
    finally:
        set_current(before)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        lazy("nonsense")
