"""What was promised against what was found, and where a load should have stopped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loadtest.metrics.summary import ClassSummary, LevelSummary
from loadtest.results import Bools, Columns, RequestRecord, columns_of
from loadtest.scenario import Goodput, Objectives, Verdict


def goodput_ratio(
    wanted: Goodput | None, measured: Columns | Sequence[RequestRecord], time_scale: float, *, scheduled: bool = False
) -> float | None:
    """Return the share of measured requests that kept every limit; None: nothing to say. See `kept_of`."""
    if wanted is None or not len(measured):
        return None
    return float(kept_of(wanted, measured, time_scale, scheduled=scheduled).mean())


def kept_of(
    wanted: Goodput, measured: Columns | Sequence[RequestRecord], time_scale: float, *, scheduled: bool = False
) -> Bools:
    """Return which requests ended well within every limit; a failed one kept none; shape (requests,).

    Args:
        scheduled: Whether a request's clock starts when it was meant to be sent, as in an open loop.
    """
    columns = columns_of(measured)
    begin_s = columns.scheduled_s if scheduled else columns.sent_s
    found = (
        (wanted.ttft_s, columns.first_s - begin_s),
        (wanted.tpot_s, np.nan_to_num(columns.tpot_s)),
        (wanted.itl_s, columns.longest_gap_s),
        (wanted.e2e_s, columns.done_s - begin_s),
    )
    kept = columns.good
    for limit, values in found:
        if limit is not None:
            kept = kept & (values <= limit * time_scale)
    return kept


def verdicts_of(objectives: Objectives, level: LevelSummary) -> list[Verdict]:
    """Return each objective against one level's figures; what was not measured is missed."""
    found: list[Verdict] = []
    spreads = {"ttft_s": level.felt_ttft_s, "itl_s": level.itl_s, "tpot_s": level.tpot_s, "e2e_s": level.felt_e2e_s}
    for quantity, spread_found in spreads.items():
        for statistic, limit in getattr(objectives, quantity).items():
            value = None if spread_found is None else getattr(spread_found, statistic)
            found.append(Verdict(f"{quantity} {statistic}", limit, value, value is not None and value <= limit))
    if objectives.goodput is not None:
        share = objectives.goodput.share
        found.append(Verdict("goodput", share, level.goodput, level.goodput is not None and level.goodput >= share))
    errors = level.errors / level.requests if level.requests else None
    is_met = errors is not None and errors <= objectives.errors_ratio
    found.append(Verdict("errors_ratio", objectives.errors_ratio, errors, is_met))
    return found


def class_alone(level: LevelSummary, found: ClassSummary) -> LevelSummary:
    """Return a level's figures as if there were one class only."""
    own = found.model_dump(include={"requests", "errors", "goodput"})
    spreads = {name: getattr(found, name) for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s")}
    of_all = {"ttft_scheduled_s": None, "e2e_scheduled_s": None, "goodput_ci": None}  # of all classes together only
    return level.model_copy(update={**own, **spreads, **of_all})


class Knee(NamedTuple):
    """The load to run at.

    Attributes:
        level: Its place among the levels; None: not even the least load met the objectives.
        why: How it was found.
    """

    level: int | None
    why: str


def knee_of(levels: Sequence[LevelSummary], objectives: Objectives | None = None) -> Knee | None:
    """Return the knee of some levels of one run: the highest load up to which every objective was met.

    Without objectives it is where throughput over latency is greatest: beyond, latency grows faster than what is got
    for it (Kleinrock, "Power and Deterministic Rules of Thumb for Probabilistic Problems in Computer Communications",
    ICC 1979). None of fewer than three levels, or where nothing was measured.
    """
    order = sorted(range(len(levels)), key=lambda place: levels[place].offered)
    if objectives is not None:
        met: int | None = None
        for place in order:
            if not all(verdict.met for verdict in verdicts_of(objectives, levels[place])):
                break
            met = place
        return Knee(met, "the highest load that met every objective")
    power = {
        place: level.requests_per_s / level.felt_e2e_s.mean
        for place, level in enumerate(levels)
        if level.requests_per_s and level.felt_e2e_s is not None
    }
    if len(power) < 3:  # noqa: PLR2004 (an end, an end, and something between them)
        return None
    return Knee(max(power, key=lambda place: power[place]), "the most requests/s for their latency (Kleinrock's power)")
