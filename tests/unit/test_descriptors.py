"""Output that does not come through sys.stdout: read back from the files behind fds 1 and 2."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ipython1.kernel.engine import descriptors, output
from ipython1.kernel.engine.descriptors import DescriptorOutput, standard_outputs
from ipython1.kernel.engine.output import OutputBuffer


class Stream:
    """A file as fd 1 of an engine is one, and what follows it."""

    def __init__(self, path: Path, kind: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.held_back = b""
        self.source = DescriptorOutput(kind, self.fd, self.flush)

    def write(self, data: bytes) -> None:
        os.write(self.fd, data)

    def flush(self) -> None:
        self.write(self.held_back)
        self.held_back = b""


@pytest.fixture
def out(tmp_path: Path) -> Iterator[Stream]:
    stream = Stream(tmp_path / "out", "stdout")
    yield stream
    os.close(stream.fd)


@pytest.fixture
def err(tmp_path: Path) -> Iterator[Stream]:
    stream = Stream(tmp_path / "err", "stderr")
    yield stream
    os.close(stream.fd)


@pytest.fixture
def buffer(out: Stream, err: Stream) -> OutputBuffer:
    return OutputBuffer(lambda: None, wait=False, sources=[out.source, err.source])


def texts(buffer: OutputBuffer) -> list[tuple[str, str, str]]:
    return [item[:3] for item in buffer.take()]


def test_what_is_written_belongs_to_the_command_that_runs(
    buffer: OutputBuffer, out: Stream, err: Stream
) -> None:
    out.write(b"before\n")
    buffer.begin("c-1")
    out.write(b"one\n")
    err.write(b"bad\n")
    out.held_back = b"late"
    buffer.end()
    out.write(b"between\n")
    buffer.collect()
    buffer.begin("c-2")
    out.write(b"two\n")
    buffer.end()
    expected = [("c-1", "stdout", "one\nlate"), ("c-1", "stderr", "bad\n"), ("c-2", "stdout", "two\n")]
    assert texts(buffer) == expected


def test_it_comes_while_the_command_runs(buffer: OutputBuffer, out: Stream) -> None:
    buffer.begin("c-1")
    out.write(b"one\n")
    buffer.collect()
    assert texts(buffer) == [("c-1", "stdout", "one\n")]
    buffer.collect()
    buffer.end()
    assert texts(buffer) == []


def test_it_keeps_its_order_with_what_is_printed(
    buffer: OutputBuffer, out: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "COLLECT_PAUSE", -1.0)
    buffer.begin("c-1")
    buffer.write("stdout", "a")
    out.write(b"b")
    buffer.write("stdout", "c")
    out.write(b"d")
    buffer.end()
    assert texts(buffer) == [("c-1", "stdout", "abcd")]


def test_characters_that_come_in_pieces(buffer: OutputBuffer, out: Stream) -> None:
    buffer.begin("c-1")
    for byte in "é€".encode():
        out.write(bytes([byte]))
        buffer.collect()
    out.write("é".encode()[:1])
    buffer.end()
    assert texts(buffer) == [("c-1", "stdout", "é€\\xc3")]


def test_one_command_gets_so_much_and_the_next_one_all_again(
    buffer: OutputBuffer, out: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "OUTPUT_LIMIT", 1000)
    monkeypatch.setattr(output, "READ_SIZE", 400)
    buffer.begin("c-1")
    out.write(b"x" * 2000)
    buffer.end()
    [(_, kind, text), (_, warned, _)] = texts(buffer)
    assert (kind, len(text), warned) == ("stdout", 800, "stderr")
    buffer.begin("c-2")
    out.write(b"y")
    buffer.end()
    assert texts(buffer) == [("c-2", "stdout", "y")]


def test_a_look_takes_a_bounded_time(
    buffer: OutputBuffer, out: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "COLLECT_LIMIT", 100)
    monkeypatch.setattr(output, "READ_SIZE", 100)
    buffer.begin("c-1")
    out.write(b"x" * 250)
    buffer.collect()
    assert texts(buffer) == [("c-1", "stdout", "x" * 100)]
    buffer.end()
    assert texts(buffer) == [("c-1", "stdout", "x" * 150)]


def test_a_file_that_somebody_truncates(buffer: OutputBuffer, out: Stream) -> None:
    buffer.begin("c-1")
    out.write(b"long ago\n")
    buffer.collect()
    os.ftruncate(out.fd, 0)
    out.write(b"new\n")
    buffer.end()
    assert texts(buffer) == [("c-1", "stdout", "long ago\nnew\n")]


def test_only_stdout_is_emptied_and_only_between_commands(
    buffer: OutputBuffer, out: Stream, err: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "KEPT", 5)
    buffer.begin("c-1")
    out.write(b"a long line\n")
    err.write(b"a long line\n")
    buffer.end()
    assert os.fstat(out.fd).st_size == 12
    buffer.begin("c-2")
    assert [os.fstat(fd).st_size for fd in (out.fd, err.fd)] == [0, 12]
    out.write(b"x")
    buffer.end()
    assert texts(buffer)[-1] == ("c-2", "stdout", "x")


def test_a_reader_that_was_interrupted_stops_no_later_command(buffer: OutputBuffer, out: Stream) -> None:
    buffer.begin("c-1")
    buffer._reading.acquire()  # as an interrupt between this and the `try` leaves it
    buffer.collect()
    assert texts(buffer) == []
    buffer.begin("c-2")
    out.write(b"x")
    buffer.end()
    assert texts(buffer) == [("c-2", "stdout", "x")]


def test_a_child_that_user_code_forked_reads_nothing(buffer: OutputBuffer, out: Stream) -> None:
    buffer.begin("c-1")
    out.write(b"x")
    pid = os.fork()
    if pid == 0:
        buffer.write("stdout", "y")
        buffer.end()
        os._exit(len(buffer.take()))
    assert os.waitpid(pid, 0)[1] == 0
    buffer.end()
    assert texts(buffer) == [("c-1", "stdout", "x")]


def test_only_files_are_read(tmp_path: Path) -> None:
    file, folder = os.stat(__file__), os.stat(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(descriptors.os, "fstat", {1: folder, 2: file}.__getitem__)
        assert standard_outputs() == []
        patch.setattr(descriptors.os, "fstat", {1: file, 2: file}.__getitem__)
        assert standard_outputs() == []


def test_what_nobody_gets_is_removed_while_it_is_written(
    buffer: OutputBuffer, out: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "KEPT", 100)
    monkeypatch.setattr(output, "OUTPUT_LIMIT", 50)
    buffer.begin("c-1")
    for _ in range(20):
        out.write(b"x" * 40)
        buffer.collect()
    assert os.fstat(out.fd).st_size <= 140
    buffer.end()
    assert [text for _, _, text in texts(buffer)] == [
        "x" * 40,
        "\nMore than 0 MiB of output: the rest is dropped.\n",
    ]
    buffer.begin("c-2")
    out.write(b"new")
    buffer.end()
    assert texts(buffer) == [("c-2", "stdout", "new")]


def test_of_much_stderr_the_last_words_stay(
    buffer: OutputBuffer, err: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "KEPT", 100)
    monkeypatch.setattr(descriptors, "LAST_WORDS", 4)
    buffer.begin("c-1")
    err.write(b"x" * 200 + b"last")
    buffer.end()
    buffer.begin("c-2")
    assert os.pread(err.fd, 1000, 0) == b"last"
    err.write(b"!")
    buffer.end()
    assert texts(buffer)[-1] == ("c-2", "stderr", "!")
