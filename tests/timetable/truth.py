"""What a run's records say against what the server with the timetable says that it did, token by token."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from loadtest.results.records import read_records


class Added(NamedTuple):
    """What the client added, in seconds: of each reply to its TTFT, and of each gap between tokens to its length."""

    ttft_s: NDArray[np.float64]
    gaps_s: NDArray[np.float64]


def added_by_client(run: Path, log: Path) -> Added:
    """Return the differences between a run's records and the server's log of the same replies.

    Of whole replies that were measured, with one token an event, asked for over `triton-http`, whose requests carry
    their number.

    Raises:
        ValueError: A reply is not in the log, or has another number of tokens there.
    """
    truth = {line.split()[0]: np.array(line.split()[1:], float) for line in log.read_text().splitlines()}
    ttft, gaps = [], []
    for record in read_records(run):
        if record.outcome != "ok" or record.phase != "measure":
            continue
        arrived_s, *sent_s = truth.get(f"r{record.id}", np.zeros(1))
        if len(sent_s) != record.output_tokens:
            raise ValueError(f"request {record.id}: {record.output_tokens} tokens, {len(sent_s)} in the server's log")
        ttft.append(record.token_times_s[0] - record.sent_s - (sent_s[0] - arrived_s))
        gaps.append(np.diff(record.token_times_s) - np.diff(sent_s))
    return Added(np.array(ttft), np.concatenate(gaps))
