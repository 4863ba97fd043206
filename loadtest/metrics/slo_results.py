"""Evaluation of objectives for a level's figures, and the knee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loadtest.metrics.latency import request_latencies
from loadtest.metrics.summary import ClassSummary, LevelSummary
from loadtest.results import Bools, Columns, RequestRecord, columns_of
from loadtest.scenario import Goodput, Objectives, ObjectiveScope, Scenario, Verdict, evaluate


def goodput_ratio(
    goodput: Goodput | None, measured: Columns | Sequence[RequestRecord], time_scale: float, *, is_open: bool
) -> float | None:
    """Return the share of measured requests that met every limit (`meets_goodput`); None without limits or requests."""
    if goodput is None or not len(measured):
        return None
    return float(meets_goodput(goodput, measured, time_scale, is_open=is_open).mean())


def meets_goodput(
    goodput: Goodput, measured: Columns | Sequence[RequestRecord], time_scale: float, *, is_open: bool
) -> Bools:
    """Return which requests succeeded within every limit; failed requests did not; shape (requests,)."""
    columns = columns_of(measured)
    found = request_latencies(columns, is_open=is_open)
    met = goodput.is_met_by(
        ttft_s=found.ttft_s / time_scale,
        tpot_s=np.nan_to_num(found.tpot_s) / time_scale,
        longest_gap_s=found.longest_gap_s / time_scale,
        e2e_s=found.e2e_s / time_scale,
    )
    return columns.good & met


def scopes_of(scenario: Scenario) -> tuple[ObjectiveScope, ...]:
    """Return a scenario's objectives, for all requests and for each class."""
    found = [(scenario.objectives, None), *((kind.objectives, kind.name) for kind in scenario.kinds)]
    return tuple(ObjectiveScope(objectives, name) for objectives, name in found if objectives is not None)


def verdicts_of(objectives: Objectives, level: LevelSummary) -> list[Verdict]:
    """Return each objective's verdict for one level; an objective without a measurement is missed."""
    return evaluate(objectives, level.figure)


def verdicts_in(scopes: Sequence[ObjectiveScope], level: LevelSummary) -> list[Verdict]:
    """Return each objective's verdict for one level; names of a class's objectives start with its name.

    A class without requests meets nothing.
    """
    verdicts: list[Verdict] = []
    by_name = {each.name: each for each in level.classes}
    for scope in scopes:
        of_scope = level
        if scope.class_name is not None:
            own = by_name.get(scope.class_name)
            if own is None:
                verdicts.append(Verdict(scope.label("no request of this class"), 0.0, None, met=False))
                continue
            of_scope = class_alone(level, own)
        verdicts += [
            verdict._replace(objective=scope.label(verdict.objective))
            for verdict in verdicts_of(scope.objectives, of_scope)
        ]
    return verdicts


def class_alone(level: LevelSummary, found: ClassSummary) -> LevelSummary:
    """Return a level's figures as if it had only one class."""
    own = found.model_dump(include={"requests", "errors", "goodput"})
    spreads = {name: getattr(found, name) for name in ("ttft_s", "itl_s", "tpot_s", "e2e_s")}
    of_all = {"ttft_scheduled_s": None, "e2e_scheduled_s": None, "goodput_ci": None}  # of all classes together only
    return level.model_copy(update={**own, **spreads, **of_all})


class Knee(NamedTuple):
    """The knee: the highest load that meets the objectives; without objectives, the load with the best power.

    Attributes:
        level: Its index among the levels; None: even the lowest load missed an objective.
        why: How it was determined.
    """

    level: int | None
    why: str


def knee_of(levels: Sequence[LevelSummary], objectives: Objectives | None = None) -> Knee | None:
    """Return the knee of a run's levels: the highest load up to which every objective was met.

    Without objectives it is the maximum of throughput over latency: beyond it, latency grows faster than throughput
    (Kleinrock, "Power and Deterministic Rules of Thumb for Probabilistic Problems in Computer Communications", ICC
    1979). None if there are fewer than three levels, or nothing was measured.
    """
    order = sorted(range(len(levels)), key=lambda place: levels[place].offered)
    if objectives is not None:
        met: int | None = None
        for place in order:
            if not all(verdict.met for verdict in verdicts_of(objectives, levels[place])):
                break
            met = place
        return Knee(met, "the highest load that met every objective" + _beyond(met, order))
    power = {
        place: level.requests_per_s / level.felt_e2e_s.mean
        for place, level in enumerate(levels)
        if level.requests_per_s and level.felt_e2e_s is not None
    }
    if len(power) < 3:  # noqa: PLR2004 (an end, an end, and something between them)
        return None
    best = max(power, key=lambda place: power[place])
    return Knee(best, "the highest ratio of requests/s to latency (Kleinrock's power)" + _beyond(best, order))


def _beyond(knee: int | None, order: Sequence[int]) -> str:
    """Return the addition for a knee at the highest load: the real one may lie beyond it."""
    return "; no higher load was tried" if knee == order[-1] else ""
