"""Receives a socket's bytes and keeps them until they are wanted, each piece with when it was read.

It runs for every token, on code that is no longer in the processor's caches: with a C compiler, the package's build
compiles it (`_receiver.c`), and this module provides that one as `Receiver`.
"""

from __future__ import annotations

import math
import struct
import time
from collections.abc import Callable, Sequence
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from engines.compiled import sha256_of

SOURCE = Path(__file__).with_name("_receiver.c")
RECEIVE_BYTES = 65_536
ANCILLARY_BYTES = 64
BLOCK_BYTES = 65_536  # a quiet receiver wakes its user once it keeps more
UNSTAMPED = math.inf
EMPTY_LINE = b"\r\n\r\n"
CHUNKS_END = b"0" + EMPTY_LINE  # the last chunk, without a trailer
FRAME_HEAD_BYTES, DATA, END_STREAM = 9, 0, 0x1  # of HTTP/2
_unpacked = struct.Struct("qq").unpack_from  # seconds and nanoseconds of the wall clock


class Pieces(NamedTuple):
    """Bytes as they were read.

    Attributes:
        data: All bytes.
        ends: Where each piece ends in `data`.
        read_s: When each was read, on the monotonic clock.
        delays_s: From the kernel's timestamp of each to a reading of the wall clock after it; `UNSTAMPED` without one.
    """

    data: bytes
    ends: Sequence[int]
    read_s: Sequence[float]
    delays_s: Sequence[float]

    @classmethod
    def of(cls, data: bytes, read_s: float, delay_s: float = UNSTAMPED) -> Pieces:
        """Return one piece."""
        return cls(data, (len(data),), (read_s,), (delay_s,))


class Quiet(IntEnum):
    """Which pieces a receiver only keeps.

    Attributes:
        NONE: Every piece is to be looked at.
        CHUNKS: Those that do not end a reply in HTTP's chunks: an empty line ends it, after its last chunk or trailer.
        FRAMES: Those of whole HTTP/2 frames of data that do not end their stream.
        STREAM: None before one that begins as a stream in chunks does; its head alone waits; after it, as `CHUNKS`.
    """

    NONE = 0
    CHUNKS = 1
    FRAMES = 2
    STREAM = 3


class PieceStore:
    """Pieces of bytes that are kept until they are wanted."""

    def __init__(self) -> None:
        self._data: list[bytes] = []
        self._ends: list[int] = []
        self._read_s: list[float] = []
        self._delays_s: list[float] = []

    @property
    def size(self) -> int:
        """Number of bytes."""
        return self._ends[-1] if self._ends else 0

    def add(self, data: bytes, read_s: float, delay_s: float) -> None:
        """Keep a piece."""
        self._data.append(data)
        self._ends.append(self.size + len(data))
        self._read_s.append(read_s)
        self._delays_s.append(delay_s)

    def drain(self) -> Pieces:
        """Return the pieces, and keep them no longer."""
        pieces = Pieces(b"".join(self._data), self._ends, self._read_s, self._delays_s)
        self._data, self._ends, self._read_s, self._delays_s = [], [], [], []
        return pieces


class PythonReceiver:
    """A socket's receiver: called when the socket is readable.

    Args:
        socket: A socket that does not block.
        wake: Called when the pieces are to be looked at.

    Attributes:
        quiet: Which pieces need no look, unless there are many.
        closed: Whether the server has closed its end.
        error: The system's number of the error that ended receiving; 0: none.
        read_s: When bytes were read last, on the monotonic clock; 0: never.
    """

    def __init__(self, socket: Any, wake: Callable[[], object]) -> None:
        self.quiet = Quiet.NONE
        self.closed = False
        self.error = 0
        self.read_s = 0.0
        self._socket, self._wake = socket, wake
        self._store = PieceStore()

    def __call__(self) -> None:
        """Receive once."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(RECEIVE_BYTES, ANCILLARY_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.error = error.errno or 0
            self._wake()
            return
        self.read_s = time.monotonic()
        is_head = False
        if self.quiet == Quiet.STREAM and begins_stream(data):
            self.quiet = Quiet.CHUNKS
            is_head = data.index(EMPTY_LINE) + len(EMPTY_LINE) == len(data)
        if data:
            self._store.add(data, self.read_s, _delay_s(ancillary, time.time()))
        else:
            self.closed = True
        if not data or self._store.size > BLOCK_BYTES or not (is_head or _may_wait(self.quiet, data)):
            self._wake()

    def drain(self) -> tuple[bytes, Sequence[int], Sequence[float], Sequence[float]]:
        """Return the fields of the `Pieces` kept, and keep them no longer."""
        return self._store.drain()


def begins_stream(data: bytes) -> bool:
    """Return whether a piece begins with the whole head of a stream of events in chunks; not if an error follows."""
    head, is_whole, rest = data.partition(EMPTY_LINE)
    if not is_whole or not head.startswith(b"HTTP/1.1 200 "):
        return False
    fields = head.lower()
    is_stream = b"\r\ntransfer-encoding: chunked" in fields and b"\r\ncontent-type: text/event-stream" in fields
    return is_stream and b'"error"' not in rest.lower()


def _may_wait(quiet: Quiet, data: bytes) -> bool:
    if quiet == Quiet.CHUNKS:  # a piece of less than an empty line may be the rest of one
        return len(data) >= len(EMPTY_LINE) and not data.endswith(EMPTY_LINE) and CHUNKS_END not in data
    if quiet != Quiet.FRAMES:
        return False
    place, size = 0, len(data)
    while size - place >= FRAME_HEAD_BYTES:
        if data[place + 3] != DATA or data[place + 4] & END_STREAM:
            return False
        place += FRAME_HEAD_BYTES + int.from_bytes(data[place : place + 3])
    return place == size


def _delay_s(ancillary: list[tuple[int, int, bytes]], real_s: float) -> float:
    if not ancillary:
        return UNSTAMPED
    seconds, nanoseconds = _unpacked(ancillary[0][2])
    return real_s - float(seconds + nanoseconds * 1e-9)


def compiled(name: str, otherwise: Any) -> Any:
    """Return the compiled form of a class or function; the other one where none was built from the source here."""
    return getattr(_compiled_from(SOURCE), name, otherwise)


@cache
def _compiled_from(source: Path) -> Any:
    """Return the compiled module; None without one, or where it was built from another source than is here.

    A source that was replaced, as by `git pull`, is not what it was: functions of one version call those of another.
    """
    try:
        from loadtest.client import _receiver  # noqa: PLC0415

        is_same = getattr(_receiver, "SOURCE_SHA256", None) == sha256_of(source)
    except (ImportError, OSError):
        return None
    return _receiver if is_same else None


Receiver: type[PythonReceiver] = compiled("Receiver", PythonReceiver)
ReceivingThread: Any = compiled("ReceivingThread", None)  # on Linux; None: a loop has to call the receivers
