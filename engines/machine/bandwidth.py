"""Memory bandwidth of a CPU: STREAM's copy and triad in numpy, and a matrix-vector product, which only reads.

A decode step reads every weight once, so reading is what decides it. STREAM (McCalpin, 1995) counts the bytes a kernel
reads and writes, and not the line that a write fetches first; so does this. The best of several passes counts.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from engines.machine.cores import run_pinned

ARRAY_BYTES = 256 << 20  # all threads together: several times any cache that one core can fill
PASSES = 7
_CHUNK = 1 << 14  # elements: a chunk of three arrays stays in the level-2 cache between triad's two operations
_ROW = 1 << 13  # elements of the matrix's rows


class Bandwidth(NamedTuple):
    """Bytes a second."""

    copy_bytes_per_s: float
    triad_bytes_per_s: float
    read_bytes_per_s: float


def measure_bandwidth(threads: int, *, array_bytes: int = ARRAY_BYTES) -> Bandwidth:
    """Return the bandwidth that this many threads reach; the process must be pinned to as many cores."""
    import numpy as np  # noqa: PLC0415 (its threads are counted when it is loaded)

    size = array_bytes // 4 // threads // _ROW * _ROW
    arrays = [tuple(np.full(size, value, dtype=np.float32) for value in (1.0, 2.0, 3.0)) for _ in range(threads)]
    vector = np.ones(_ROW, dtype=np.float32)

    def copy(thread: int) -> None:
        np.copyto(arrays[thread][0], arrays[thread][1])

    def triad(thread: int) -> None:
        out, left, right = arrays[thread]
        for start in range(0, size, _CHUNK):
            piece = slice(start, start + _CHUNK)
            np.multiply(right[piece], np.float32(0.5), out=out[piece])
            np.add(out[piece], left[piece], out=out[piece])

    def read(thread: int) -> None:
        arrays[thread][1].reshape(-1, _ROW) @ vector

    moved = 4 * size * threads
    return Bandwidth(
        2 * moved / _best_s(copy, threads), 3 * moved / _best_s(triad, threads), moved / _best_s(read, threads)
    )


def read_bandwidth(cores: tuple[int, ...]) -> float:
    """Return what some cores read from memory together, bytes a second; in a process pinned to them."""
    return run_pinned(cores, measure_bandwidth, len(cores)).read_bytes_per_s


def _best_s(kernel: Callable[[int], None], threads: int) -> float:
    """Return the shortest pass, all threads together; the first warms up."""
    return min([_pass_s(kernel, threads) for _ in range(PASSES + 1)][1:])


def _pass_s(kernel: Callable[[int], None], threads: int) -> float:
    ready = threading.Barrier(threads + 1)

    def one(thread: int) -> None:
        ready.wait()
        kernel(thread)

    started = [threading.Thread(target=one, args=(thread,)) for thread in range(threads)]
    for thread in started:
        thread.start()
    ready.wait()
    began_s = time.perf_counter()
    for thread in started:
        thread.join()
    return time.perf_counter() - began_s
