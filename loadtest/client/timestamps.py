"""Arrival times of bytes: from the kernel's timestamps if available, with the delay until the bytes were read."""

from __future__ import annotations

import socket
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loadtest.client.receiver import UNSTAMPED, Pieces, compiled

TIMESTAMPS = getattr(socket, "SO_TIMESTAMPNS", 35)  # Linux: nanoseconds of CLOCK_REALTIME with every receive
MAX_LATE_S = 5.0
SLACK_S = 0.001  # bytes may arrive between a receive and reading the clock after it
BIN_S = 1e-4
BINS = 20_000


def ask_for_stamps(connection: Any) -> None:
    """Request arrival timestamps; has no effect if the system does not support them."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, TIMESTAMPS, 1)
    except OSError:
        return


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
    _late: array[int] = field(default_factory=lambda: array("q", bytes(8 * BINS)))

    def arrivals_s(self, pieces: Pieces, previous_s: float, *, began_s: float) -> list[float]:
        """Return when pieces of a reply arrived, on the monotonic clock, counted from `began_s`.

        A timestamp is from another clock, which may be set at any moment. Only its delay is used, and only if it puts
        the arrival between the previous one and the reading.

        Args:
            pieces: In order.
            previous_s: When the bytes before them arrived or the request was sent, counted from `began_s`.
        """
        limits_s = (SLACK_S, MAX_LATE_S, BIN_S)
        arrivals_s, unstamped, refused = arrivals(
            pieces.read_s, pieces.delays_s, previous_s, began_s, self._late, limits_s
        )
        self.stamped += len(arrivals_s) - unstamped - refused
        self.unstamped += unstamped + refused
        self.refused += refused
        return arrivals_s

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


def _arrivals(
    read_s: Sequence[float],
    delays_s: Sequence[float],
    previous_s: float,
    began_s: float,
    late: array[int],
    limits_s: tuple[float, float, float],
) -> tuple[list[float], int, int]:
    """Return when pieces arrived, how many have no timestamp, and how many an implausible one; count the delays."""
    slack_s, max_late_s, bin_s = limits_s
    arrivals_s, unstamped, refused = [], 0, 0
    for each_s, late_s in zip(read_s, delays_s, strict=True):
        arrived_s = each_s - began_s
        if late_s == UNSTAMPED:  # no calls, and no min() or max(): this runs for every token
            unstamped += 1
        elif late_s < -slack_s or late_s > max_late_s or arrived_s - late_s < previous_s - slack_s:
            refused += 1
        else:
            place = int(late_s / bin_s) if late_s > 0.0 else 0
            late[place if place < len(late) else -1] += 1
            if late_s > 0.0:
                arrived_s = arrived_s - late_s if arrived_s - late_s > previous_s else previous_s
        arrivals_s.append(arrived_s)
        previous_s = arrived_s
    return arrivals_s, unstamped, refused


arrivals: Callable[..., tuple[list[float], int, int]] = compiled("arrivals", _arrivals)


def _whole_microseconds(times_s: array[float]) -> tuple[float, ...]:
    """Return times from 0 on, rounded to microseconds."""
    return tuple([int(time_s * 1e6 + 0.5) / 1e6 for time_s in times_s])


whole_microseconds: Callable[[array[float]], tuple[float, ...]] = compiled("whole_microseconds", _whole_microseconds)
