"""Search for a server's knee: the load of each probe, its end, and its results.

A probe is one level of a scenario, run or predicted. Its requests decide its verdict (`sequential_test.py`): a run ends
as soon as they suffice, a prediction is extended until they do.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from engines.errors import UserError
from engines.files import Document, MadeBy, Source, Strict
from engines.manifest import EngineManifest
from loadtest.knee.bisection import Knee, Probe, find_knee
from loadtest.knee.sequential_test import (
    BACKLOG,
    SloDecision,
    ended_before_the_first_under_way,
    is_backlog_growing,
    weigh,
)
from loadtest.metrics import LevelSummary, summarize, validity_issues_of, verdicts_in
from loadtest.results import (
    Columns,
    Kind,
    RequestRecord,
    RunManifest,
    Sample,
    ValidityIssue,
    read_records,
    read_run,
    read_samples,
)
from loadtest.scenario import Constant, Gamma, Objectives, ObjectiveScope, Poisson, Scenario, Trace
from loadtest.simulate import predict

if TYPE_CHECKING:
    from loadtest.run import Enough  # a plan uses the sequential test, and drives no server

Axis = Literal["rate", "concurrency"]
UNITS: dict[Axis, str] = {"rate": "requests/s", "concurrency": "users"}

START_IN_FLIGHT = 16  # requests in flight at the first probe
MIN_IN_FLIGHT, MAX_IN_FLIGHT = 0.25, 4096
LIVES = 4  # minimum length of an open loop in durations of a lone request: the batch has to fill and turn over
ROUNDS = 4  # minimum measured requests per user of a closed-loop probe
WARMUP_RATIO = 0.25
PILOT_REQUESTS = 4


class ProbeResult(Strict):
    """One probe with all its figures.

    Attributes:
        missed: Objectives that were missed.
        open: Objectives that the requests do not decide; `met` then depends on the figures alone.
        validity_issues: Reasons not to rely on its figures.
    """

    load: float
    met: bool
    missed: tuple[str, ...]
    open: tuple[str, ...]
    validity_issues: tuple[ValidityIssue, ...] = ()
    level: LevelSummary


class KneeResult(Document):
    """`knee.json`: the highest load that met every objective, and every load tried.

    Attributes:
        objectives: By class; `all` are those of every request.
        unit: Unit of every load.
        load: None if even the lowest load of interest missed.
        above: The lowest load tried above it that missed; None if the highest load of interest met the objectives.
        binding: Objectives missed at `above`.
        lone_e2e_s: End-to-end latency of a request alone on the server.
    """

    kind: Kind
    label: str
    engine: str | None
    scenario: Scenario
    objectives: dict[str, Objectives]
    unit: str
    load: float | None
    above: float | None
    binding: tuple[str, ...]
    lone_e2e_s: float
    tried: list[ProbeResult]


class Range(NamedTuple):
    """Range of loads to search; None: derived from a lone request's duration, see `START_IN_FLIGHT`."""

    lowest: float | None = None
    highest: float | None = None
    tolerance: float = 0.05


class Span(NamedTuple):
    """Initial and maximum number of measured requests of a probe."""

    first: int = 256
    limit: int = 4096


class KneeSearch(NamedTuple):
    """The objectives and the settings of a search."""

    scenario: Scenario
    promises: tuple[ObjectiveScope, ...]
    axis: Axis = "rate"
    within: Range = Range()
    span: Span = Span()

    @property
    def unit(self) -> str:
        """Unit of every load."""
        return UNITS[self.axis]

    @property
    def is_open(self) -> bool:
        """Whether the search is over the rate of an open loop."""
        return self.axis == "rate"

    @property
    def of_all(self) -> Objectives | None:
        """The objectives of all requests together."""
        return next((scope.objectives for scope in self.promises if scope.class_name is None), None)


class ProbeRun(NamedTuple):
    """The files of one probe: run, records and samples."""

    run: RunManifest
    records: Columns | Sequence[RequestRecord]
    samples: Sequence[Sample]

    def level(self, objectives: Objectives | None = None) -> LevelSummary:
        """Return the figures of its only level; goodput by the given objectives, or the scenario's own."""
        (found,) = summarize(self.run, self.records, self.samples, objectives=objectives).levels
        return found


class ProbeRunner(NamedTuple):
    """How a single-level scenario is run: in real time, or in virtual time.

    Attributes:
        play: Takes the scenario, and a function that tells from the records so far, and their time scale, whether they
            suffice.
        stops_early: Whether it ends once they suffice. If not, a probe is repeated, longer, until they do.
    """

    play: Callable[[Scenario, Enough], ProbeRun]
    stops_early: bool


def search(
    knee_search: KneeSearch,
    player: ProbeRunner,
    *,
    made_by: MadeBy,
    made_from: list[Source],
    progress: Callable[[str], None],
) -> KneeResult:
    """Return the knee of the server, real or predicted, on which the player runs the probes.

    Raises:
        UserError: The scenario's arrivals have no rate to search over, or no lone request succeeds.
    """
    lone_s, pilot = _lone_e2e_s(knee_search.scenario, player)
    tried: list[ProbeResult] = []

    def probe(load: float) -> Probe:
        found = _try(knee_search, load, player, lone_s)
        tried.append(found)
        progress(_line(found, knee_search.unit))
        return Probe(load, found.met, found.missed, found.level.requests)

    knee = _find(probe, knee_search.axis, knee_search.within, lone_s)
    return KneeResult(
        made_by=made_by,
        made_from=made_from,
        kind=pilot.run.kind,
        label=pilot.run.label,
        engine=pilot.run.server.engine,
        scenario=knee_search.scenario,
        objectives={each.class_name or "all": each.objectives for each in knee_search.promises},
        unit=knee_search.unit,
        load=knee.load,
        above=knee.above,
        binding=knee.missed,
        lone_e2e_s=lone_s,
        tried=sorted(tried, key=lambda each: each.load),
    )


def predicting(manifest: EngineManifest, *, made_by: MadeBy, made_from: list[Source]) -> ProbeRunner:
    """Return a player in virtual time."""

    def play(scenario: Scenario, _: Enough) -> ProbeRun:
        found = predict(scenario, manifest, made_by=made_by, made_from=made_from)
        return ProbeRun(found.run, found.columns, found.samples)

    return ProbeRunner(play, stops_early=False)


def driving(run: Callable[[Scenario, Path, Enough], object], out: Path) -> ProbeRunner:
    """Return a player in real time; every run is kept in its own numbered folder.

    Args:
        run: Runs a scenario into a folder, until the given function reports that its requests suffice.
    """
    numbers = itertools.count(1)

    def play(scenario: Scenario, enough: Enough) -> ProbeRun:
        folder = out / f"{next(numbers):02d}"
        run(scenario, folder, enough)
        return ProbeRun(read_run(folder), list(read_records(folder)), list(read_samples(folder)))

    return ProbeRunner(play, stops_early=True)


def at_load(scenario: Scenario, axis: Axis, load: float, *, requests: int, lone_s: float) -> Scenario:
    """Return the scenario as one level at a load, long enough for the measured requests and several request durations.

    Raises:
        UserError: The scenario's arrivals have no rate to search over.
    """
    if isinstance(scenario.arrivals, Trace):
        raise UserError(
            "arrivals: a trace has its own times and lengths, and no load to search over",
            hint="state lengths (isl and osl, or pairs) instead of the trace",
        )
    if axis == "concurrency":
        enough = max(requests, ROUNDS * int(load))
        return scenario.model_copy(
            update={"concurrency": (int(load),), "rate_per_s": None, "arrivals": None, "requests": enough}
        )
    duration_s = max(requests / load, LIVES * lone_s) / (1 - WARMUP_RATIO)
    update: dict[str, Any] = {"warmup_ratio": WARMUP_RATIO, "duration_s": duration_s, "rate_per_s": (load,)}
    process = scenario.arrivals
    if process is not None:
        if not isinstance(process, Constant | Poisson | Gamma):
            raise UserError(
                f"arrivals: a {process.process} has no constant mean rate to search over",
                hint="use constant, poisson or gamma arrivals, or --by concurrency",
            )
        changed = process.model_copy(update={"rate_per_s": load, "duration_s": duration_s})
        update |= {"arrivals": changed, "rate_per_s": None}
    return scenario.model_copy(update=update)


def _lone_e2e_s(scenario: Scenario, player: ProbeRunner) -> tuple[float, ProbeRun]:
    """Return the end-to-end latency of a request alone on the server, in engine seconds."""
    alone = at_load(scenario, "concurrency", 1, requests=PILOT_REQUESTS, lone_s=0.0)
    probe_run = player.play(alone, lambda *_: False)
    found = probe_run.level().e2e_s
    if found is None:
        raise UserError(
            "no single request succeeded on the idle server", hint="find the cause with run-load --concurrency 1"
        )
    return found.p50, probe_run


def _find(probe: Callable[[float], Probe], axis: Axis, within: Range, lone_s: float) -> Knee:
    """Search around the load that keeps `START_IN_FLIGHT` requests in flight."""
    unit = 1.0 if axis == "concurrency" else 1 / lone_s  # by Little's law, of one request in flight
    lowest = within.lowest or max(MIN_IN_FLIGHT * unit, 1 if axis == "concurrency" else 0)
    if within.lowest is None and within.highest is not None:
        lowest = min(lowest, within.highest)
    highest = within.highest or max(MAX_IN_FLIGHT * unit, lowest)
    start = min(max(START_IN_FLIGHT * unit, lowest), highest)
    return find_knee(
        probe, start=start, lowest=lowest, highest=highest, tolerance=within.tolerance, is_whole=axis == "concurrency"
    )


def _try(knee_search: KneeSearch, load: float, player: ProbeRunner, lone_s: float) -> ProbeResult:
    def decided(records: Columns | Sequence[RequestRecord], time_scale: float) -> SloDecision:
        return weigh(knee_search.promises, records, is_open=knee_search.is_open, time_scale=time_scale)

    def enough(records: Sequence[RequestRecord], time_scale: float) -> bool:
        return decided(ended_before_the_first_under_way(records), time_scale).met is not None

    requests = knee_search.span.limit if player.stops_early else knee_search.span.first
    while True:
        level = at_load(knee_search.scenario, knee_search.axis, load, requests=requests, lone_s=lone_s)
        probe_run = player.play(level, enough)
        decision = decided(probe_run.records, probe_run.run.time_scale)
        if decision.met is not None or player.stops_early or requests >= knee_search.span.limit:
            return result_of(knee_search, load, probe_run, decision)
        requests = min(requests * 2, knee_search.span.limit)


def result_of(knee_search: KneeSearch, load: float, probe_run: ProbeRun, decision: SloDecision) -> ProbeResult:
    """Return a probe's verdicts, equal to those of any report of its records, and whether they are certain.

    In addition to the objectives, a growing backlog counts as a miss: an overload that has not reached them yet.
    """
    level = probe_run.level(knee_search.of_all)
    missed = tuple(each.objective for each in verdicts_in(knee_search.promises, level) if not each.met)
    if decision.met is None and is_backlog_growing(probe_run.records):
        missed = (*missed, BACKLOG)
    disputed = tuple(each for each in decision.missed if each not in missed)
    is_sure = decision.met is not None and decision.met == (not missed) and not disputed
    left_open = () if is_sure else decision.open or disputed or missed
    issues = tuple(validity_issues_of(probe_run.run, [level.requests]))
    return ProbeResult(load=load, met=not missed, missed=missed, open=left_open, validity_issues=issues, level=level)


def _line(result: ProbeResult, unit: str) -> str:
    verdict = "met" if result.met else "missed " + ", ".join(result.missed)
    sure = "" if not result.open else f"; {result.level.requests} requests do not decide {', '.join(result.open)}"
    return f"{result.load:.4g} {unit}: {verdict}{sure}"
