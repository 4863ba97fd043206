"""Arrival times of bytes, from the kernel's timestamps if available, and the delay until they were read."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

TIMESTAMPS = getattr(socket, "SO_TIMESTAMPNS", 35)  # Linux: nanoseconds of CLOCK_REALTIME with every receive
ANCILLARY_BYTES = 64
MOST_LATE_S = 5.0
SLACK_S = 0.001  # bytes may come between a receive and the look at the clock after it
BIN_S = 1e-4
BINS = 20_000
_STAMP = struct.Struct("qq")


def ask_for_stamps(connection: Any) -> None:
    """Ask for the time of every receive; where the system has no such thing, none come."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, TIMESTAMPS, 1)
    except OSError:
        return


def stamp_of(ancillary: list[tuple[int, int, bytes]]) -> float | None:
    """Return the kernel's stamp among what came beside bytes, in seconds of its wall clock; None without one."""
    if not ancillary:
        return None
    seconds, nanoseconds = _STAMP.unpack(ancillary[0][2][: _STAMP.size])
    return float(seconds + nanoseconds * 1e-9)


@dataclass(slots=True)
class Readings:
    """How a process read its replies: clock and delay.

    Attributes:
        stamped: Receives whose time is the kernel's.
        unstamped: Receives whose time is when this process came to read them.
        refused: Stamps not believed, as after a step of the machine's clock; counted as unstamped too.
    """

    stamped: int = 0
    unstamped: int = 0
    refused: int = 0
    _late: list[int] = field(default_factory=lambda: [0] * BINS)

    def arrival_s(self, now_s: float, real_s: float, stamp_s: float | None, previous_s: float) -> float:
        """Return when bytes came, on the clock of `now_s`.

        A stamp is of another clock, which may be set at any moment: only the difference of that clock now and then is
        used, and it is believed where it puts the arrival between the previous one and now.

        Args:
            now_s: When they were read.
            real_s: The kernel's clock at that moment.
            stamp_s: The kernel's stamp; None where there is none.
            previous_s: When the bytes before them came or the request was sent, on the clock of `now_s`.
        """
        if stamp_s is None:
            self.unstamped += 1
            return now_s
        late_s = real_s - stamp_s
        if not -SLACK_S <= late_s <= min(MOST_LATE_S, now_s - previous_s + SLACK_S):
            self.refused += 1
            self.unstamped += 1
            return now_s
        self.stamped += 1
        self._late[min(int(max(late_s, 0.0) / BIN_S), BINS - 1)] += 1
        return min(max(now_s - late_s, previous_s), now_s)

    def late_p99_s(self) -> float:
        """Return the 99th percentile of how late stamped bytes were read; 0 where none was stamped."""
        left = 0.01 * self.stamped
        for place in range(BINS - 1, -1, -1):
            left -= self._late[place]
            if left < 0:
                return place * BIN_S
        return 0.0

    @property
    def clock(self) -> str:
        """Which clock stamped the receives: the `kernel`'s, the `reader`'s, or a `mixed` lot."""
        if not self.stamped:
            return "reader"
        return "kernel" if self.unstamped <= 0.01 * self.stamped else "mixed"
