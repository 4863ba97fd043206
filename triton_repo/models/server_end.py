"""Ends a model's process with its server."""

from __future__ import annotations

import os
import threading
import time
from functools import cache

_LOOK_EVERY_S = 0.5


@cache
def end_with_server() -> None:
    """Start the thread that ends this process when its parent, Triton, has ended.

    Triton's own part of this process ends then, too, unless it waits for a lock in shared memory that Triton held when
    it was killed. Where it waits with Python's own lock held, as while it sets a metric, no thread runs: `stop_server`
    ends the process then.
    """
    threading.Thread(target=_watch, args=(os.getppid(),), name="server-end", daemon=True).start()


def _watch(server: int) -> None:
    while os.getppid() == server:
        time.sleep(_LOOK_EVERY_S)
    os._exit(1)
