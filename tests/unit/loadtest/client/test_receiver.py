"""What receives a socket's bytes: in Python, which is the reference, and compiled."""

from __future__ import annotations

import errno
import gc
import select
import shutil
import socket
import struct
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.http2 import PING, frame
from loadtest.client.receiver import (
    BLOCK_BYTES,
    DATA,
    END_STREAM,
    RECEIVE_BYTES,
    SOURCE,
    UNSTAMPED,
    Pieces,
    PythonReceiver,
    Quiet,
    Receiver,
    ReceivingThread,
    _compiled_from,
)
from loadtest.client.timestamps import ask_for_stamps

CAN_COMPILE = shutil.which("cc") is not None and (Path(sysconfig.get_path("include")) / "Python.h").is_file()
KINDS = [
    PythonReceiver,
    pytest.param(Receiver, marks=pytest.mark.skipif(Receiver is PythonReceiver, reason="no C compiler at the build")),
]


class Ends:
    """A connection's two ends: a receiver at one, and what is sent from the other."""

    def __init__(self, kind: type[PythonReceiver]) -> None:
        self.here, self.there = socket.socketpair()
        self.here.setblocking(False)
        self.looks = 0
        self.receiver = kind(self.here, self._look)

    def _look(self) -> None:
        self.looks += 1

    def send(self, data: bytes) -> None:
        """Send a piece, and let it be received."""
        self.there.sendall(data)
        self.receiver()

    def drained(self) -> Pieces:
        """Return what was received."""
        return Pieces(*self.receiver.drain())

    def close(self) -> None:
        """Close both ends."""
        self.here.close()
        self.there.close()


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Give both ends of a connection for each kind of receiver."""
    made = Ends(request.param)
    yield made
    made.close()


@pytest.mark.skipif(not CAN_COMPILE, reason="no C compiler, or no Python headers")
def test_where_there_is_a_compiler_the_compiled_one_is_used() -> None:
    """Or every token costs more, and nobody notices."""
    assert Receiver is not PythonReceiver


@pytest.mark.skipif(Receiver is PythonReceiver, reason="no C compiler at the build")
def test_what_was_compiled_from_another_source_is_not_used(tmp_path: Path) -> None:
    """A source that was replaced without compiling it again: the functions of two versions had met in a run."""
    other = tmp_path / "_receiver.c"
    other.write_bytes(SOURCE.read_bytes() + b"\n")
    assert _compiled_from(other) is None
    assert _compiled_from(tmp_path / "missing.c") is None
    assert _compiled_from(SOURCE) is not None


def test_pieces_are_kept_with_their_times_until_they_are_drained(ends: Ends) -> None:
    """Each piece once, in order, with when it was read; a second time there is nothing."""
    begun_s = time.monotonic()
    for data in (b"one", b"", b"three"):
        if data:
            ends.send(data)
    pieces = ends.drained()
    assert (pieces.data, list(pieces.ends)) == (b"onethree", [3, 8])
    assert begun_s <= pieces.read_s[0] <= pieces.read_s[1] == ends.receiver.read_s <= time.monotonic()
    assert ends.looks == 2
    assert ends.drained() == Pieces(b"", [], [], [])
    ends.receiver()  # nothing has come: neither kept nor looked at
    assert (ends.looks, ends.drained().data) == (2, b"")


def test_a_receiver_of_chunks_wakes_for_what_may_be_an_end_alone(ends: Ends) -> None:
    """An empty line at the end of a piece, the last chunk in it, or a piece so short that it may be the rest of one."""
    ends.receiver.quiet = Quiet.CHUNKS
    looks = []
    pieces = (b"5\r\nhello\r\n", b"0\r\n\r\n", b"more", b"\r\n\r\n", b"\n", b"x\r\n\r\ny", b"x0\r\n\r\ny")
    for data in pieces:
        ends.send(data)
        looks.append(ends.looks)
    assert looks == [0, 1, 1, 2, 3, 3, 4]
    assert ends.drained().data == b"".join(pieces)


def test_a_receiver_of_frames_wakes_for_all_but_whole_frames_of_data(ends: Ends) -> None:
    """Another kind of frame, the end of the stream, or a frame that comes in two pieces."""
    ends.receiver.quiet = Quiet.FRAMES
    data = frame(DATA, 0, 1, b"x" * 300)
    looks = []
    for piece in (data, data * 3, frame(DATA, 0, 1), data[:5], data[:20], data + frame(PING, 0, 0, b"12345678"),
                  frame(DATA, END_STREAM, 1, b"x"), data + b"\0", b"\xff\xff\xff\0\0\0\0\0\1"):  # fmt: skip
        ends.send(piece)
        looks.append(ends.looks)
    assert looks == [0, 0, 0, 1, 2, 3, 4, 5, 6]


def test_a_quiet_receiver_wakes_when_it_keeps_much(ends: Ends) -> None:
    """What is kept stays small, however long the reply."""
    ends.receiver.quiet = Quiet.CHUNKS
    sent = 0
    while not ends.looks:
        ends.send(b"x" * 10_000)
        sent += 10_000
    assert BLOCK_BYTES < sent <= BLOCK_BYTES + 10_000
    assert len(ends.drained().data) == sent


def test_a_closed_connection_is_looked_at(ends: Ends) -> None:
    """The last bytes are still there, and the end is said."""
    ends.receiver.quiet = Quiet.CHUNKS
    ends.send(b"last words")
    ends.there.close()
    ends.receiver()
    assert (ends.looks, ends.receiver.closed, ends.receiver.error) == (1, True, 0)
    assert ends.drained().data == b"last words"


@pytest.fixture
def over_tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Give both ends of a TCP connection; the first does not block, and asks for the kernel's times."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname())
        there, _ = server.accept()
    here.setblocking(False)
    ask_for_stamps(here)
    yield here, there
    here.close()
    there.close()


def _await(receive: Callable[[], object], is_done: Callable[[], bool]) -> None:
    due_s = time.monotonic() + 5
    while not is_done():
        assert time.monotonic() < due_s, "nothing came in 5 s"
        receive()


@pytest.mark.parametrize("kind", KINDS)
def test_a_reset_connection_is_looked_at(
    kind: type[PythonReceiver], over_tcp: tuple[socket.socket, socket.socket]
) -> None:
    """The system's number of the error is kept."""
    here, there = over_tcp
    looks: list[None] = []
    receiver = kind(here, lambda: looks.append(None))
    there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    there.close()
    _await(receiver, lambda: bool(looks))
    assert (receiver.error, receiver.closed) == (errno.ECONNRESET, False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kernels_time_is_told_as_a_delay(
    kind: type[PythonReceiver], over_tcp: tuple[socket.socket, socket.socket]
) -> None:
    """Bytes read 20 ms after they were sent are 20 ms late; a connection that asks for no times has none."""
    here, there = over_tcp
    receiver = kind(here, lambda: None)
    there.sendall(b"first")  # the kernel may begin to take times a moment after it was asked to
    time.sleep(0.01)
    receiver()
    there.sendall(b"late")
    time.sleep(0.02)
    receiver()
    _, late_s = Pieces(*receiver.drain()).delays_s
    assert 0.02 <= late_s < 2.0
    ends = Ends(kind)
    ends.send(b"unasked")
    assert list(ends.drained().delays_s) == [UNSTAMPED]
    ends.close()


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAMS = (
    *(
        STREAM_HEAD,
        STREAM_HEAD + b"5\r\nhello\r\n",
        STREAM_HEAD.upper() + b"5\r\n",
        STREAM_HEAD[:-2] + b"x: y\r\n\r\n5",
    ),
    *(STREAM_HEAD + b'2\r\n{"error": 1}', STREAM_HEAD + b'{"Error"', STREAM_HEAD[:-3] + b"x"),
    *(STREAM_HEAD.replace(b"200", b"500") + b"5", STREAM_HEAD.replace(b"chunked", b"gzip") + b"5", b"HTTP/1.1 200 "),
)


def test_a_receiver_of_a_stream_keeps_its_head_and_wakes_for_any_other(ends: Ends) -> None:
    """A refusal is looked at, however it ends; a stream's first piece begins the quiet, and may be its head alone."""
    looks = []
    for data in (STREAMS[7], STREAMS[5], STREAMS[1], b"more", b"0\r\n\r\n", STREAMS[0], b"more", b"0\r\n\r\n"):
        if not looks or looks[-1]:
            ends.receiver.quiet = Quiet.STREAM
        before = ends.looks
        ends.send(data)
        looks.append(ends.looks - before)
    assert looks == [1, 1, 0, 0, 1, 0, 0, 1]


PIECES = st.lists(
    st.binary(min_size=1, max_size=40)
    | st.sampled_from(
        [
            b"\r\n\r\n",
            b"a\r\n\r\n",
            b"a\r\n0\r\n\r\nHTTP/1.1",
            b"0\r\n\r\n" + b"x" * 30_000,
            b"\n",
            b"x" * 30_000,
            b"y" * RECEIVE_BYTES,
            b"z" * 70_000,
            *STREAMS,
        ]
    )
    | st.lists(
        st.builds(
            frame, st.sampled_from([DATA, DATA, PING]), st.sampled_from([0, 0, END_STREAM]), st.just(1), st.binary()
        ),
        max_size=3,
    )
    .map(b"".join)
    .filter(bool),
    max_size=12,
)


@pytest.mark.skipif(Receiver is PythonReceiver, reason="no C compiler at the build")
@given(
    PIECES,
    st.lists(st.sampled_from(Quiet), min_size=12, max_size=12),
    st.lists(st.booleans(), min_size=12, max_size=12),
)
def test_the_compiled_receiver_does_what_the_reference_does(
    sent: list[bytes], quiet: list[Quiet], drained: list[bool]
) -> None:
    """Whatever comes, in whatever pieces: the same bytes and ends, and as many looks, after each receive."""
    both = [Ends(PythonReceiver), Ends(Receiver)]
    try:
        for data, how, is_drained in zip(sent, quiet, drained, strict=False):
            for each in both:
                each.receiver.quiet = how
                each.send(data)
                if len(data) > RECEIVE_BYTES:
                    each.receiver()
            one, other = both
            assert (one.looks, one.receiver.quiet) == (other.looks, other.receiver.quiet)
            if is_drained:
                assert one.drained()[:2] == other.drained()[:2]
        one, other = (each.drained() for each in both)
        assert one[:2] == other[:2]
        assert len(other.ends) == len(other.read_s) == len(other.delays_s)
    finally:
        for each in both:
            each.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_receiver_goes_with_the_connection_that_it_wakes(kind: type[PythonReceiver]) -> None:
    """Each holds the other: they are collected together, bytes kept or not."""
    ends = Ends(kind)
    ends.send(b"kept")
    ends.close()
    gone = weakref.ref(ends)
    del ends
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(Receiver is PythonReceiver, reason="no C compiler at the build")
@pytest.mark.parametrize("arguments", [(), (1,), ("socket", print), (object(), print), (None, None)])
def test_what_is_no_socket_is_refused(arguments: tuple[Any, ...]) -> None:
    """A wrong argument is an exception, not a crash."""
    with pytest.raises((TypeError, ValueError)):
        Receiver(*arguments)
    without = Receiver.__new__(Receiver)
    with pytest.raises(RuntimeError, match="no socket"):
        without()
    assert Pieces(*without.drain()) == Pieces(b"", [], [], [])


@pytest.mark.parametrize("kind", KINDS)
def test_what_waking_raises_is_raised(kind: type[PythonReceiver]) -> None:
    """An error in what it wakes is not lost."""
    here, there = socket.socketpair()
    here.setblocking(False)

    def fail() -> None:
        raise RuntimeError("woken")

    receiver = kind(here, fail)
    there.sendall(b"x")
    with pytest.raises(RuntimeError, match="woken"):
        receiver()
    here.close()
    there.close()


class Threaded:
    """A thread that receives for some connections."""

    def __init__(self, over: list[tuple[socket.socket, socket.socket]]) -> None:
        self.looked: list[tuple[int, bytes, bool]] = []
        self.thread = ReceivingThread()
        self.receivers = [Receiver(here, partial(self._look, number)) for number, (here, _) in enumerate(over)]
        for receiver in self.receivers:
            receiver.quiet = Quiet.CHUNKS
            self.thread.add(receiver)

    def _look(self, number: int) -> None:
        receiver = self.receivers[number]
        is_closed = receiver.closed
        self.looked.append((number, bytes(receiver.drain()[0]), is_closed))

    def wait(self, looks: int) -> None:
        """Look at what is due, until there were so many looks."""
        due_s = time.monotonic() + 5
        while len(self.looked) < looks:
            assert select.select([self.thread], [], [], max(0.0, due_s - time.monotonic()))[0], "nothing in 5 s"
            self.thread()


@pytest.fixture
def pairs() -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    """Give three connections' ends."""
    made = [socket.socketpair() for _ in range(3)]
    for here, _ in made:
        here.setblocking(False)
    yield made
    for ends in made:
        for end in ends:
            end.close()


def _await_received(receivers: list[PythonReceiver]) -> None:
    """Wait until a thread has received something for each."""
    _await(lambda: time.sleep(0.001), lambda: all(receiver.read_s for receiver in receivers))
    time.sleep(0.01)  # and has noted it


def _all_received(pairs: list[tuple[socket.socket, socket.socket]], wake: Callable[[], None]) -> Any:
    """Return a thread that has received something from each pair, and has not looked at any."""
    thread = ReceivingThread()
    receivers = [Receiver(here, wake) for here, _ in pairs]
    for receiver, (_, there) in zip(receivers, pairs, strict=True):
        thread.add(receiver)
        there.sendall(b"x")
    _await_received(receivers)
    return thread


needs_thread = pytest.mark.skipif(ReceivingThread is None, reason="no C compiler at the build, or not Linux")


@needs_thread
def test_a_thread_receives_and_tells_of_what_may_be_an_end(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Quiet pieces are kept without a word; with an end, all that came is there, of that connection alone."""
    threaded = Threaded(pairs)
    for data in (b"5\r\nhello\r\n", b"5\r\nworld\r\n"):
        for _, there in pairs:
            there.sendall(data)
    _await_received(threaded.receivers)
    assert not select.select([threaded.thread], [], [], 0)[0]
    pairs[1][1].sendall(b"0\r\n\r\n")
    threaded.wait(1)
    assert threaded.looked == [(1, b"5\r\nhello\r\n5\r\nworld\r\n0\r\n\r\n", False)]
    assert not select.select([threaded.thread], [], [], 0)[0]
    assert threaded.thread.count == 3


@needs_thread
def test_a_thread_tells_of_a_closed_connection_after_its_last_bytes(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    """Though the kernel tells of both at once."""
    for _, there in pairs:
        there.sendall(b"last words")
        there.close()
    threaded = Threaded(pairs)
    threaded.wait(3)
    assert sorted(threaded.looked) == [(number, b"last words", True) for number in range(3)]


@needs_thread
def test_more_than_one_receive_takes_is_received_whole(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """However large, and though a receiver waits once it keeps a megabyte."""
    threaded = Threaded(pairs)
    _, there = pairs[0]
    sent = b"x" * 5_000_000 + b"\r\n\r\n"
    sender = threading.Thread(target=there.sendall, args=(sent,))
    sender.start()
    time.sleep(0.2)  # nobody looks meanwhile: the rest stays in the kernel
    found = 0
    while found < len(sent):
        threaded.wait(len(threaded.looked) + 1)
        assert len(threaded.looked[-1][1]) < 2_000_000
        found = sum(len(data) for _, data, _ in threaded.looked)
    sender.join()
    assert b"".join(data for _, data, _ in threaded.looked) == sent


@needs_thread
def test_a_receiver_that_was_discarded_receives_no_more(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """Even if it was about to be looked at; discarding it again does nothing."""
    threaded = Threaded(pairs)
    for number, (_, there) in enumerate(pairs):
        there.sendall(b"%d\r\n\r\n" % number)
    _await_received(threaded.receivers)
    threaded.thread.discard(threaded.receivers[1])
    threaded.thread.discard(threaded.receivers[1])
    threaded.thread()
    assert sorted(number for number, _, _ in threaded.looked) == [0, 2]
    assert threaded.thread.count == 2
    pairs[1][1].sendall(b"more")
    time.sleep(0.05)
    assert pairs[1][0].recv(100) == b"more"
    threaded.thread.add(threaded.receivers[1])
    pairs[1][1].sendall(b"again\r\n\r\n")
    threaded.wait(3)
    assert threaded.looked[-1] == (1, b"1\r\n\r\nagain\r\n\r\n", False)


@needs_thread
def test_a_flood_on_one_connection_leaves_the_loop_its_turn(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """A receiver that is due again before its look has ended waits for the next call, and is not forgotten."""
    (here, there), *_ = pairs
    looks: list[int] = []

    def look_while_more_comes() -> None:
        looks.append(len(receiver.drain()[0]))
        if len(looks) < 3:
            there.sendall(b"x")
            assert select.select([thread], [], [], 5)[0]

    thread, receiver = ReceivingThread(), Receiver(here, look_while_more_comes)
    thread.add(receiver)
    there.sendall(b"x")
    for count in range(1, 4):
        assert select.select([thread], [], [], 5)[0]
        thread()
        assert looks == [1] * count
    assert not select.select([thread], [], [], 0)[0]


@needs_thread
def test_long_looks_leave_the_loop_its_turn(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """What 64 servers sent in a flood takes seconds to parse: receivers after the first wait for the loop's timers."""
    looks: list[int] = []

    def look_long() -> None:
        looks.append(1)
        time.sleep(0.03)

    thread = _all_received(pairs, look_long)
    for count in range(1, 4):
        assert select.select([thread], [], [], 0)[0]
        thread()
        assert len(looks) == count
    assert not select.select([thread], [], [], 0)[0]


@needs_thread
def test_what_waking_one_raises_leaves_the_others_due(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """The error is raised, and the rest is still told of."""
    looked: list[int] = []

    def fail_first() -> None:
        looked.append(1)
        if len(looked) == 1:
            raise RuntimeError("woken")

    thread = _all_received(pairs, fail_first)
    with pytest.raises(RuntimeError, match="woken"):
        thread()
    assert select.select([thread], [], [], 0)[0]
    thread()
    assert len(looked) == 3


@needs_thread
def test_a_thread_refuses_what_is_no_receiver_and_one_socket_twice(
    pairs: list[tuple[socket.socket, socket.socket]],
) -> None:
    """A wrong argument is an exception, not a crash."""
    thread = ReceivingThread()
    for wrong in (None, pairs[0][0], Receiver.__new__(Receiver)):
        with pytest.raises(TypeError):
            thread.add(wrong)
    thread.add(Receiver(pairs[0][0], print))
    with pytest.raises(FileExistsError):
        thread.add(Receiver(pairs[0][0], print))
    with pytest.raises(TypeError):
        ReceivingThread(1)


@needs_thread
def test_a_thread_ends_with_its_last_reference(pairs: list[tuple[socket.socket, socket.socket]]) -> None:
    """No thread and no file descriptor is left."""

    def held() -> tuple[set[str], set[str]]:
        gc.collect()
        threads, files = (
            {path.name for path in Path(folder).iterdir()} for folder in ("/proc/self/task", "/proc/self/fd")
        )
        return threads, files

    threads, files = held()  # other tests' may end at any time
    threaded = Threaded(pairs)
    own_threads, own_files = (now - before for now, before in zip(held(), (threads, files), strict=True))
    assert (len(own_threads), len(own_files)) == (1, 3)
    del threaded
    deadline_s = time.monotonic() + 5  # a joined thread may still be listed for a moment
    while (left := held()[0] & own_threads) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert (left, held()[1] & own_files) == (set(), set())
