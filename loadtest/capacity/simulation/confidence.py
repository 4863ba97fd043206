"""Whether the requests simulated so far decide each objective.

A percentile limit is a share of requests (or gaps) within it, and has an interval by the spread between blocks of
consecutive requests.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from loadtest.capacity.simulation.rate_result import objective_of
from loadtest.capacity.simulation.request_table import (
    Bools,
    RequestTable,
    gaps_within,
    meets_goodput,
    of_class,
)
from loadtest.knee import share_interval
from loadtest.results import Floats, Ints
from loadtest.scenario import QUANTITIES, Objectives, share_of

BLOCKS = 8  # blocks of consecutive requests per window, to estimate the correlation of neighbours


class Confidence(NamedTuple):
    """What the simulation so far implies for the objectives.

    Attributes:
        missed: Objectives whose interval lies entirely beyond the limit.
        undecided: Objectives whose interval contains the limit.
    """

    missed: tuple[str, ...]
    undecided: tuple[str, ...]

    @property
    def met(self) -> bool | None:
        """Whether every objective is met; None while undecided."""
        return False if self.missed else None if self.undecided else True


def confidence_of(
    table: RequestTable, objectives: Mapping[str, Objectives], *, z: float, stretch: float = 1.0
) -> Confidence:
    """Return which objectives are met, missed and undecided, at `z` standard deviations; a mean is always undecided.

    Args:
        objectives: By class; the empty name is all requests together.
        stretch: See `observations`.
    """
    missed: list[str] = []
    undecided: list[str] = []
    for name, spec in objectives.items():
        chosen = of_class(table, name)
        if not chosen.any():
            continue
        for objective, share, good, count in _shares(table, spec, chosen, stretch):
            low, high = share_interval(good, count, _block_edges(table.window[chosen]), z=z)
            if high < share:
                missed.append(objective_of(name, objective))
            elif low < share:
                undecided.append(objective_of(name, objective))
        undecided += [
            objective_of(name, f"{quantity} mean") for quantity in QUANTITIES if "mean" in getattr(spec, quantity)
        ]
    return Confidence(tuple(missed), tuple(undecided))


def _shares(
    table: RequestTable, spec: Objectives, chosen: Bools, stretch: float
) -> list[tuple[str, float, Floats, Floats]]:
    """Return each objective as a share: name, required share, and per request the good and the total count."""
    ones = np.ones(int(chosen.sum()))
    ok = table.is_ok
    found: list[tuple[str, float, Floats, Floats]] = []
    values = {
        "ttft_s": table.ttft_s,
        "tpot_s": np.where(table.tokens > 1, table.tpot_s, math.nan),
        "e2e_s": table.e2e_s,
    }
    for quantity, of_request in values.items():
        limits = getattr(spec, quantity)
        rows = chosen & ok & ~np.isnan(of_request)
        for statistic, limit_s in limits.items():
            if (share := share_of(statistic)) is not None:
                good = ((of_request * stretch <= limit_s) & rows)[chosen].astype(float)
                found.append((f"{quantity} {statistic}", share, good, rows[chosen].astype(float)))
    for statistic, limit_s in spec.itl_s.items():
        if (share := share_of(statistic)) is not None:
            within, gaps = gaps_within(table, limit_s / stretch)
            good, all_ = (np.where(ok, each, 0)[chosen].astype(float) for each in (within, gaps))
            found.append((f"itl_s {statistic}", share, good, all_))
    if spec.goodput is not None:
        meets = meets_goodput(table, spec.goodput, stretch)[chosen].astype(float)
        found.append(("goodput", spec.goodput.share, meets, ones))
    if not ok[chosen].all():
        found.append(("errors_ratio", 1 - spec.errors_ratio, ok[chosen].astype(float), ones))
    return found


def _block_edges(window: Ints) -> Ints:
    """Return the start of each block of consecutive requests; no block spans two windows."""
    begins = np.flatnonzero(np.diff(window, prepend=-1))
    ends = [*begins[1:].tolist(), len(window)]
    edges = [
        np.linspace(begin, end, min(BLOCKS, end - begin) + 1).astype(np.int64)[:-1]
        for begin, end in zip(begins.tolist(), ends, strict=True)
    ]
    return np.concatenate(edges)
