"""Validity checks of a run, in one pass over its records and samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engines.units import MS_PER_S, milliseconds
from loadtest.results import (
    OUTCOMES,
    PHASES,
    UNKNOWN,
    Columns,
    Level,
    LogHistogram,
    ServerFacts,
    ValidityIssue,
    WorkerClock,
    read_samples,
)
from loadtest.scenario import Scenario, ValidityLimits

LATE_SERIES = "emulator_lateness_seconds{"
STEPS_SERIES, STEP_SECONDS_SERIES = "emulator_steps_total{", "emulator_step_seconds_total{"


@dataclass(slots=True)
class LevelObservations:
    """Aggregates of one level's records for the validity checks.

    Attributes:
        late: Wall seconds from when a request was due to when it was sent.
        gaps: Wall seconds between tokens of measured requests.
        measured: Measured requests that ended.
        good: Those that succeeded.
        incomplete: Measured requests that the end of the run cut short.
        lost: Requests in flight in a lost generator.
        first_error: First error of a measured request; if no such error is known, of one before them.
    """

    late: LogHistogram = field(default_factory=LogHistogram)
    gaps: LogHistogram = field(default_factory=LogHistogram)
    measured: int = 0
    good: int = 0
    incomplete: int = 0
    lost: int = 0
    first_error: str | None = None

    @classmethod
    def of(cls, records: Columns) -> LevelObservations:
        """Return the aggregates of one level's records."""
        late, gaps = LogHistogram(), LogHistogram()
        late.add(records.sent_s - records.scheduled_s)
        gaps.add(records.select(records.phase == PHASES.index("measure")).gaps_s)
        measured = records.select(records.measured)
        errors = (each.errors[place] for each in (measured, records) for place in each.error if place != UNKNOWN)
        return cls(
            late,
            gaps,
            measured=len(measured),
            good=int((measured.outcome == OUTCOMES.index("ok")).sum()),
            incomplete=int(records.incomplete.sum()),
            lost=int((records.outcome == OUTCOMES.index("lost")).sum()),
            first_error=next(filter(None, errors), None),
        )


def observations_of(records: Columns) -> dict[int, LevelObservations]:
    """Return the aggregates of a run's records by level."""
    levels = np.unique(records.level)
    return {int(level): LevelObservations.of(records.select(records.level == level)) for level in levels}


def validity_issues_of(
    scenario: Scenario,
    facts: ServerFacts,
    levels: Sequence[Level],
    observations: dict[int, LevelObservations],
    clocks: Sequence[WorkerClock],
    out: Path,
) -> Iterator[ValidityIssue]:
    """Yield every validity issue of a run, level by level."""
    emulator = _emulator_seen(levels, out) if facts.emulated else {}
    for index, level in enumerate(levels):
        of_level = observations.get(index, LevelObservations())
        yield from _client_issues(scenario.validity_limits, facts, index, level, of_level)
        if not level.complete:
            yield ValidityIssue(code="incomplete", text="the level ended before all its requests", level=index)
        if level.away_s:
            text = f"the server accepted no connections for {level.away_s:.1f} s"
            yield ValidityIssue(code="server-away", text=text, level=index)
        if of_level.lost:
            text = f"{of_level.lost} requests were in flight in a worker that was lost"
            yield ValidityIssue(code="requests-lost", text=text, level=index)
        yield from _clock_issues(scenario.validity_limits, index, clocks)
        yield from emulator.get(index, _Emulator()).validity_issues(scenario.validity_limits, index)


def _client_issues(
    limits: ValidityLimits, facts: ServerFacts, index: int, level: Level, observations: LevelObservations
) -> Iterator[ValidityIssue]:
    gap_s = observations.gaps.quantile(0.5)
    # If the kernel timestamped the arrivals, a late timer did not affect them; a late read may have.
    if gap_s and level.clock != "kernel" and level.generator_late_p99_s > limits.generator_late_ratio * gap_s:
        text = (
            f"the load generator's timers fired {milliseconds(level.generator_late_p99_s)} ms late (p99), with tokens"
        )
        text += f" {milliseconds(gap_s)} ms apart; limit {limits.generator_late_ratio:.0%} of that"
        yield ValidityIssue(code="generator-late", text=text, level=index)
    if gap_s and level.read_late_p99_s > limits.generator_late_ratio * gap_s:
        text = f"replies were read {milliseconds(level.read_late_p99_s)} ms after they arrived (p99), with tokens"
        text += f" {milliseconds(gap_s)} ms apart, so some were merged; limit {limits.generator_late_ratio:.0%}"
        yield ValidityIssue(code="read-late", text=text, level=index)
    late_s = observations.late.quantile(0.99) or 0.0
    if level.concurrency is None and late_s > limits.arrivals_late_s * facts.time_scale:
        text = f"requests were sent {milliseconds(late_s)} ms after their time (p99); "
        text += f"limit {limits.arrivals_late_s * MS_PER_S:g} ms"
        yield ValidityIssue(
            code="arrivals-late", text=f"{text} of engine time: the load was not the configured one", level=index
        )


def _clock_issues(limits: ValidityLimits, index: int, clocks: Sequence[WorkerClock]) -> Iterator[ValidityIssue]:
    for clock in clocks:
        off_s = clock.uncertainty_s + abs(clock.drift_s)
        if clock.level == index and off_s > limits.clocks_apart_s:
            text = f"the clock of worker {clock.worker} on {clock.host} is known only to {milliseconds(off_s)} ms"
            yield ValidityIssue(
                code="clocks-apart", text=f"{text}; limit {limits.clocks_apart_s * MS_PER_S:g} ms", level=index
            )


@dataclass(slots=True)
class _Emulator:
    """What the emulated engine reported during the measurement of one level.

    Attributes:
        late_s: Readings of its p99.
        counters: By series, the lowest and the highest reading.
    """

    late_s: list[float] = field(default_factory=list)
    counters: dict[str, tuple[float, float]] = field(default_factory=dict)

    def note(self, values: dict[str, float]) -> None:
        for key, value in values.items():
            if key.startswith(LATE_SERIES) and 'statistic="p99"' in key:
                self.late_s.append(value)
            elif key.startswith((STEPS_SERIES, STEP_SECONDS_SERIES)):
                low, high = self.counters.get(key, (value, value))
                self.counters[key] = (min(low, value), max(high, value))

    def validity_issues(self, limits: ValidityLimits, index: int) -> Iterator[ValidityIssue]:
        steps, seconds = self._grown(STEPS_SERIES), self._grown(STEP_SECONDS_SERIES)
        if not (self.late_s and steps and seconds):
            return
        ratio = float(np.median(self.late_s)) * steps / seconds
        if ratio > limits.server_late_ratio:
            yield ValidityIssue(
                code="emulator-late",
                text=f"the emulated engine finished its steps late by {ratio:.0%} of a step (p99); "
                f"limit {limits.server_late_ratio:.0%}: increase --time-scale of build-repo",
                level=index,
            )

    def _grown(self, start: str) -> float:
        return sum(high - low for key, (low, high) in self.counters.items() if key.startswith(start))


def _emulator_seen(levels: Sequence[Level], out: Path) -> dict[int, _Emulator]:
    """Read a run's samples once; return the emulated engine's reports by level."""
    found: dict[int, _Emulator] = defaultdict(_Emulator)
    for sample in read_samples(out):
        for index, level in enumerate(levels):
            if level.measure_s <= sample.t_s <= level.end_s:
                found[index].note(sample.values)
    return found
