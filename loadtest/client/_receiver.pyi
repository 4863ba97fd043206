from array import array
from collections.abc import Sequence

from loadtest.client.receiver import PythonReceiver

class Receiver(PythonReceiver): ...

class ReceivingThread:
    """A thread that receives for the receivers added to it; on Linux.

    Readable, by `fileno`, while receivers are to be looked at; calling it wakes each of them.
    """

    count: int
    def add(self, receiver: Receiver, /) -> None: ...
    def discard(self, receiver: Receiver, /) -> None: ...
    def fileno(self) -> int: ...
    def __call__(self) -> None: ...

def arrivals(
    read_s: Sequence[float],
    delays_s: Sequence[float],
    previous_s: float,
    began_s: float,
    late: array[int],
    limits_s: tuple[float, float, float],
    /,
) -> tuple[list[float], int, int]: ...
def event_chunks(
    data: bytes, begin: int, ends: Sequence[int], arrivals_s: Sequence[float], /
) -> tuple[list[bytes], array[float], int]: ...
def plain_sizes(events: list[bytes], place: int, head: bytes, tail: bytes, /) -> list[int]: ...
def whole_microseconds(times_s: array[float], /) -> tuple[float, ...]: ...
