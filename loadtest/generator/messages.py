"""Messages between the runner and a load generator process, on its standard input and output.

Input: one line with the plan or a worker's master; then possibly `ENOUGH`, which ends a level whose results are
conclusive. The end of the input means stop, so that no generator outlives the command that started it. Output: one JSON
object per line, with one key; `ended` has a `hint` beside it where there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import gevent
import gevent.os
import gevent.queue

from loadtest.generator.progress import Progress
from loadtest.results import Level
from loadtest.traffic import LevelPlan

LOOK_EVERY_S = 1.0
INTERRUPTED = "interrupted"
CRASHED = "internal error in the load generator"


class CommandReader:
    """Reads lines of an input concurrently with everything else in a gevent process.

    Attributes:
        on_end: Called when the input ends.
    """

    def __init__(self, file: int) -> None:
        self.on_end: Callable[[], object] = lambda: os._exit(0)  # nobody reads the output any more
        self._lines: gevent.queue.Queue[str] = gevent.queue.Queue()
        gevent.os.make_nonblocking(file)
        gevent.spawn(self._read, file)

    def next(self) -> str:
        """Wait for the next line and return it."""
        line: str = self._lines.get()
        return line

    def _read(self, file: int) -> None:
        left = b""
        while data := gevent.os.nb_read(file, 65_536):
            *lines, left = (left + data).split(b"\n")
            for line in lines:
                self._lines.put(line.decode())
        self.on_end()


def tell(**fields: Any) -> None:
    """Send one message to the command that started this process."""
    print(json.dumps(fields), flush=True)


def tell_progress(statistics: Callable[[], Progress], note: Callable[[Progress], object] | None = None) -> None:
    """Report the progress every second, until killed."""
    while True:
        gevent.sleep(LOOK_EVERY_S)
        current = statistics()
        if note is not None:
            note(current)
        tell(progress=current.model_dump())


def level_of(plan: LevelPlan, shares: Iterable[Mapping[str, Any]]) -> Level:
    """Return a level combined from its shares: from the first start to the last end, with the largest lateness."""
    shares = list(shares)
    begin_s = min(share["begin_s"] for share in shares)
    clocks = {share.get("clock", "reader") for share in shares}
    level = plan.played(
        begin_s=begin_s,
        measure_s=max(share.get("measure_s", begin_s) for share in shares),
        end_s=max(share.get("end_s", begin_s) for share in shares),
        complete=all(share.get("complete", False) for share in shares),
    )
    worst = {
        name: max(share.get(name, 0.0) for share in shares)
        for name in ("generator_late_p99_s", "away_s", "read_late_p99_s")
    }
    sufficed = any(share.get("sufficed", False) for share in shares)
    return level.model_copy(
        update=worst | {"sufficed": sufficed, "clock": clocks.pop() if len(clocks) == 1 else "mixed"}
    )
