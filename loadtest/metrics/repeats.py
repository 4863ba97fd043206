"""Spread between several runs of one scenario."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from loadtest.metrics.loaded_run import LoadedRun
from loadtest.metrics.summary import LevelSummary, Repeat, Summary
from loadtest.results import RunManifest

_NOT_THE_LOAD = ("name", "seed")
_FIGURES = (
    "output_tokens_per_s",
    "requests_per_s",
    "itl_s p50",
    "itl_s p99",
    "ttft_s p50",
    "ttft_s p99",
    "e2e_s p50",
    "goodput",
)


def repeats_of(runs: Sequence[LoadedRun], summaries: Sequence[Summary]) -> tuple[Repeat, ...]:
    """Return the spread between runs whose scenarios differ only in name and seed; empty if no two do."""
    groups: dict[str, list[Summary]] = {}
    if len(runs) == 1:
        return ()
    for run, summary in zip(runs, summaries, strict=True):
        groups.setdefault(_load(run.manifest), []).append(summary)
    return tuple(repeat for group in groups.values() if len(group) > 1 for repeat in _spread(group))


def _load(run: RunManifest) -> str:
    """Return a run's load as text that is equal for repeated runs."""
    changed = run.scenario.model_dump_json(exclude=set(_NOT_THE_LOAD))
    return f"{run.kind} {run.time_scale} {run.server.engine or run.server.model} {changed}"


def _spread(group: list[Summary]) -> list[Repeat]:
    levels: dict[float, list[LevelSummary]] = {}  # drawn lengths differ with the seed; requested lengths do not
    for summary in group:
        for level in summary.levels:
            levels.setdefault(level.offered, []).append(level)
    return [
        found
        for same in levels.values()
        for name in _FIGURES
        if (found := _repeat(same[0].load, (same[0].isl, same[0].osl), name, [level.figure(name) for level in same]))
        is not None
    ]


def _repeat(load: str, lengths: tuple[int, int], name: str, values: Sequence[float | None]) -> Repeat | None:
    known = [value for value in values if value is not None]
    if len(known) < 2:  # noqa: PLR2004 (one has no spread)
        return None
    return Repeat(
        load=load,
        isl=lengths[0],
        osl=lengths[1],
        quantity=name,
        runs=len(known),
        mean=statistics.fmean(known),
        min=min(known),
        max=max(known),
        sd=statistics.stdev(known),
    )
