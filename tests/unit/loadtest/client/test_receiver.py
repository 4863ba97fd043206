"""What receives a socket's bytes: in Python, which is the reference, and compiled."""

from __future__ import annotations

import errno
import gc
import shutil
import socket
import struct
import sysconfig
import time
import weakref
from collections.abc import Callable, Iterator
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
    UNSTAMPED,
    Pieces,
    PythonReceiver,
    Quiet,
    Receiver,
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
    """An empty line at the end of a piece, or a piece so short that it may be the rest of one."""
    ends.receiver.quiet = Quiet.CHUNKS
    looks = []
    for data in (b"5\r\nhello\r\n", b"0\r\n\r\n", b"more", b"\r\n\r\n", b"\n", b"x\r\n\r\ny"):
        ends.send(data)
        looks.append(ends.looks)
    assert looks == [0, 1, 1, 2, 3, 3]
    assert ends.drained().data == b"5\r\nhello\r\n0\r\n\r\nmore\r\n\r\n\nx\r\n\r\ny"


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


PIECES = st.lists(
    st.binary(min_size=1, max_size=40)
    | st.sampled_from([b"\r\n\r\n", b"a\r\n\r\n", b"\n", b"x" * 30_000, b"y" * RECEIVE_BYTES, b"z" * 70_000])
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
            assert one.looks == other.looks
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
