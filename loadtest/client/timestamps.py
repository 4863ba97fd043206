"""Arrival times of bytes, from the kernel's timestamps if available, and the delay until they were read."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field
from typing import Any

TIMESTAMPS = getattr(socket, "SO_TIMESTAMPNS", 35)  # Linux: nanoseconds of CLOCK_REALTIME with every receive
ANCILLARY_BYTES = 64
MAX_LATE_S = 5.0
SLACK_S = 0.001  # bytes may arrive between a receive and reading the clock after it
BIN_S = 1e-4
BINS = 20_000
_STAMP = struct.Struct("qq")


def ask_for_stamps(connection: Any) -> None:
    """Request arrival timestamps; has no effect if the system does not support them."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, TIMESTAMPS, 1)
    except OSError:
        return


def stamp_of(ancillary: list[tuple[int, int, bytes]]) -> float | None:
    """Return the kernel's timestamp in ancillary data, in seconds of its wall clock; None if there is none."""
    if not ancillary:
        return None
    seconds, nanoseconds = _STAMP.unpack_from(ancillary[0][2])
    return float(seconds + nanoseconds * 1e-9)


@dataclass(slots=True)
class Readings:
    """How a process read its replies: timestamps and delays.

    Attributes:
        stamped: Receives with a kernel timestamp.
        unstamped: Receives timestamped when this process read them.
        refused: Implausible timestamps, as after a step of the machine's clock; also counted as unstamped.
    """

    stamped: int = 0
    unstamped: int = 0
    refused: int = 0
    _late: list[int] = field(default_factory=lambda: [0] * BINS)

    def arrival_s(self, now_s: float, real_s: float, stamp_s: float | None, previous_s: float) -> float:
        """Return when bytes arrived, on the clock of `now_s`.

        A timestamp is from another clock, which may be set at any moment. Only the difference between that clock's
        current value and the timestamp is used, and only if it puts the arrival between the previous one and now.

        Args:
            now_s: When the bytes were read.
            real_s: The kernel's clock at that moment.
            stamp_s: The kernel's timestamp; None if there is none.
            previous_s: When the previous bytes arrived or the request was sent, on the clock of `now_s`.
        """
        if stamp_s is None:
            self.unstamped += 1
            return now_s
        late_s = real_s - stamp_s
        arrived_s = now_s - late_s
        # comparisons instead of min() and max(): this runs for every token
        if late_s < -SLACK_S or late_s > MAX_LATE_S or arrived_s < previous_s - SLACK_S:
            self.refused += 1
            self.unstamped += 1
            return now_s
        self.stamped += 1
        if late_s <= 0.0:
            self._late[0] += 1
            return now_s
        place = int(late_s / BIN_S)
        self._late[place if place < BINS else BINS - 1] += 1
        return arrived_s if arrived_s > previous_s else previous_s

    def late_p99_s(self) -> float:
        """Return the 99th percentile of the reading delay of timestamped bytes; 0 without timestamps."""
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
