"""From records to figures: exact percentiles, honest windows, batch sizes. The only place they are computed.

Every duration here is in engine seconds: wall seconds divided by the run's time scale.

The window of a level. Latencies are of every measured request of a level. Rates and batch sizes need a span of time
in which the load was what was asked for: from the first to the last instant, while measuring, with as many requests in
flight as the level has users (`steady`); where that is less than a tenth of the level, or never happened, it is the
whole measurement (`whole`). What is counted there is what happened, by requests of every phase: tokens by their
arrival, requests by the share of their work that lies inside.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from engines.files import Document, Strict
from loadtest.objectives import Goodput, Objectives, Verdict
from loadtest.records import Doubt, Kind, Level, RequestRecord, RunManifest, Sample, ServerFacts

PERCENTILES_NOTE = (
    "exact, by linear interpolation between order statistics; inter-token latencies are pooled over all gaps of a "
    "level's successful requests, so that one stall among many tokens stays visible"
)
STEADY_LEAST_RATIO = 0.1

_SERIES = re.compile(r"^\s*([A-Za-z_:][\w:]*)\s*(?:\{(.*)\})?\s*$", re.DOTALL)
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')
_Floats = npt.NDArray[np.float64]


class Spread(Strict):
    """How one quantity is spread; percentiles by linear interpolation."""

    count: int
    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float
    p999: float | None = None


class BatchSpread(Strict):
    """How many sequences were decoding at a time."""

    mean: float
    p50: float
    p95: float
    max: float


class Interval(Strict):
    """Where a predicted mean lies with a probability of `share`."""

    share: float
    low: float
    mean: float
    high: float


class LevelSummary(Strict):
    """One level's figures; durations in engine seconds, rates per engine second.

    Attributes:
        run: Which run the level is of, where a summary has several.
        requests: Measured requests, failed ones included.
        errors: Of those, the ones that did not end well; latencies are of the others.
        itl_s: Gaps between tokens, pooled over requests.
        tpot_s: Mean gap of each request.
        window: Which span rates and batch sizes are of; see the module.
        output_tokens_per_s: Tokens that arrived in the window, of failed requests too; None without request or window.
        batch_size: Sequences in the generation phase by the server's own count; None when it published none.
        batch_size_client: Requests between their first and last token, weighted by time.
        kv_blocks_used: Mean, by the server's own count; None when it published none.
        waiting: Requests at the server that were in no iteration, mean; None as above.
        goodput: Share of measured requests that kept every limit of the objectives' goodput; None without one.
        intervals: By quantity (`tokens_per_s`, `itl_s`, `ttft_s`), of a calibrated prediction's means; None otherwise.
    """

    run: str | None = None
    concurrency: int | None
    rate_per_s: float | None = None
    isl: int
    osl: int
    complete: bool
    requests: int
    errors: int
    errors_by_outcome: dict[str, int]
    ttft_s: Spread | None
    itl_s: Spread | None
    tpot_s: Spread | None
    e2e_s: Spread | None
    window: Literal["steady", "whole"]
    window_s: float
    output_tokens_per_s: float | None
    requests_per_s: float | None
    batch_size: BatchSpread | None
    batch_size_client: BatchSpread | None
    kv_blocks_used: float | None
    waiting: float | None
    goodput: float | None = None
    intervals: dict[str, Interval] | None = None

    @property
    def offered(self) -> float:
        """How much was asked of the server: users of a closed loop, requests a second of an open one."""
        return self.concurrency if self.concurrency is not None else self.rate_per_s or 0.0

    @property
    def load(self) -> str:
        """The same in words."""
        return str(self.concurrency) if self.concurrency is not None else f"{self.offered:g}/s"


class RunFacts(Strict):
    """What a summary keeps of each run it is of."""

    name: str
    label: str
    time_scale: float
    scenario: str
    server: ServerFacts
    interrupted: str | None


class Summary(Document):
    """`summary.json`: the figures of one run, or of several of one kind.

    Attributes:
        label: What every figure is marked with.
        time_scale: Wall seconds of one engine second; None when the runs differ.
        valid: Whether there is no doubt.
    """

    kind: Kind
    label: str
    time_scale: float | None
    valid: bool
    doubts: list[Doubt]
    percentiles: str = PERCENTILES_NOTE
    runs: list[RunFacts]
    levels: list[LevelSummary]


class _Window(NamedTuple):
    begin_s: float
    end_s: float
    kind: Literal["steady", "whole"]

    @property
    def length_s(self) -> float:
        return max(0.0, self.end_s - self.begin_s)


def summarize(
    run: RunManifest,
    records: Iterable[RequestRecord],
    samples: Iterable[Sample],
    *,
    objectives: Objectives | None = None,
) -> Summary:
    """Return a run's figures, level by level; latencies are of what was sent in phase `measure`.

    The document's `made_by` and `made_from` are the run's; who writes it to a file puts its own.
    """
    by_level: defaultdict[int, list[RequestRecord]] = defaultdict(list)
    for record in records:
        by_level[record.level].append(record)
    all_samples = list(samples)
    levels = [
        summarize_level(level, by_level[index], all_samples, time_scale=run.time_scale, objectives=objectives)
        for index, level in enumerate(run.levels)
    ]
    doubts = doubts_of(run, [level.requests for level in levels])
    return Summary(
        made_by=run.made_by,
        made_from=run.made_from,
        kind=run.kind,
        label=run.label,
        time_scale=run.time_scale,
        valid=not doubts,
        doubts=doubts,
        runs=[_facts(run)],
        levels=levels,
    )


def doubts_of(run: RunManifest, measured: Sequence[int]) -> list[Doubt]:
    """Return the run's doubts, and those that its files give: it was interrupted, or records are missing.

    Args:
        measured: Measured requests found for each level.
    """
    doubts = list(run.doubts)
    if run.interrupted is not None and all(doubt.code != "interrupted" for doubt in doubts):
        doubts.append(Doubt(code="interrupted", text=f"the run was interrupted: {run.interrupted}"))
    for index, (level, found) in enumerate(zip(run.levels, measured, strict=True)):
        asked = run.scenario.requests
        if level.concurrency is not None and level.complete and found < asked:
            text = f"{found} measured requests found where the scenario asks for {asked}"
            doubts.append(Doubt(code="records-missing", text=text, level=index))
    return doubts


def summarize_level(
    level: Level,
    records: Sequence[RequestRecord],
    samples: Sequence[Sample],
    *,
    time_scale: float,
    objectives: Objectives | None = None,
) -> LevelSummary:
    """Return one level's figures from all its requests; the samples may be of the whole run."""
    measured = [record for record in records if record.phase == "measure"]
    good = [record for record in measured if record.outcome == "ok" and record.token_times_s]
    outcomes = Counter(record.outcome if record.outcome != "ok" else "empty" for record in measured)
    outcomes["empty"] -= len(good)
    window = _window(level, records)
    inside = [sample for sample in samples if window.begin_s <= sample.t_s <= window.end_s]
    return LevelSummary(
        concurrency=level.concurrency,
        rate_per_s=level.rate_per_s,
        isl=level.isl,
        osl=level.osl,
        complete=level.complete,
        requests=len(measured),
        errors=len(measured) - len(good),
        errors_by_outcome={outcome: count for outcome, count in sorted(outcomes.items()) if count > 0},
        ttft_s=spread([record.token_times_s[0] - record.sent_s for record in good], time_scale),
        itl_s=spread([gap for record in good for gap in _gaps(record)], time_scale),
        tpot_s=spread([float(np.mean(_gaps(record))) for record in good if len(record.token_times_s) > 1], time_scale),
        e2e_s=spread([record.done_s - record.sent_s for record in good], time_scale),
        window=window.kind,
        window_s=window.length_s / time_scale,
        output_tokens_per_s=_rate(_tokens_in(window, records), window, time_scale) if measured else None,
        requests_per_s=_rate(_requests_in(window, records, level.osl), window, time_scale) if measured else None,
        batch_size=_batch_spread(_server_batch(inside)),
        batch_size_client=_client_batch(window, records),
        kv_blocks_used=_mean_of(inside, "nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", "used"),
        waiting=_mean_of(inside, "nv_trt_llm_request_metrics", "request_type", "waiting"),
        goodput=None if objectives is None else goodput_ratio(objectives.goodput, measured, time_scale),
    )


def goodput_ratio(wanted: Goodput | None, measured: Sequence[RequestRecord], time_scale: float) -> float | None:
    """Return the share of measured requests that kept every limit; a failed one kept none. None: nothing to say."""
    if wanted is None or not measured:
        return None
    return sum(is_good(wanted, record, time_scale) for record in measured) / len(measured)


def is_good(wanted: Goodput, record: RequestRecord, time_scale: float) -> bool:
    """Whether a request ended well and kept every limit; the limits are in engine seconds."""
    if record.outcome != "ok" or not record.token_times_s:
        return False
    gaps = _gaps(record)
    found = (
        (wanted.ttft_s, record.token_times_s[0] - record.sent_s),
        (wanted.tpot_s, float(np.mean(gaps)) if gaps else 0.0),
        (wanted.itl_s, max(gaps, default=0.0)),
        (wanted.e2e_s, record.done_s - record.sent_s),
    )
    return all(limit is None or value <= limit * time_scale for limit, value in found)


def verdicts_of(objectives: Objectives, level: LevelSummary) -> list[Verdict]:
    """Return each objective against one level's figures; what was not measured is missed."""
    found: list[Verdict] = []
    spreads = {"ttft_s": level.ttft_s, "itl_s": level.itl_s, "tpot_s": level.tpot_s, "e2e_s": level.e2e_s}
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


def spread(wall_s: Sequence[float], time_scale: float = 1.0) -> Spread | None:
    """Return how durations are spread, in engine seconds; None when there are none.

    >>> spread([1.0, 2.0, 3.0, 4.0]).p50
    2.5
    """
    if not wall_s:
        return None
    values = np.asarray(wall_s, dtype=np.float64) / time_scale
    p50, p90, p95, p99, p999 = (float(value) for value in np.percentile(values, [50, 90, 95, 99, 99.9]))
    return Spread(
        count=len(values),
        mean=float(values.mean()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999,
        max=float(values.max()),
    )


def parse_series(text: str) -> tuple[str, dict[str, str]] | None:
    """Return name and labels of a Prometheus series, labels in any order; None when the text is none.

    >>> parse_series('up{model="a",version="1"}')
    ('up', {'model': 'a', 'version': '1'})
    """
    found = _SERIES.match(text)
    if found is None:
        return None
    return found[1], {name: value for name, value in _LABEL.findall(found[2] or "")}


def _facts(run: RunManifest) -> RunFacts:
    return RunFacts(
        name=run.scenario.name,
        label=run.label,
        time_scale=run.time_scale,
        scenario=run.scenario.name,
        server=run.server,
        interrupted=run.interrupted,
    )


def _gaps(record: RequestRecord) -> list[float]:
    return [later - earlier for earlier, later in pairwise(record.token_times_s)]


def _window(level: Level, records: Sequence[RequestRecord]) -> _Window:
    """Return the span in which the level had all its users at work, or all of it; see the module."""
    whole = _Window(level.measure_s, level.end_s, "whole")
    if level.concurrency is None:  # an open loop offers its load from beginning to end, then lets it drain
        ends_s = max((record.scheduled_s for record in records), default=level.end_s)
        return _Window(level.measure_s, ends_s, "steady")
    instants = _full_instants(level.concurrency, records)
    if instants is None:
        return whole
    steady = _Window(max(instants[0], whole.begin_s), min(instants[1], whole.end_s), "steady")
    return steady if steady.length_s > STEADY_LEAST_RATIO * whole.length_s else whole


def _full_instants(concurrency: int, records: Sequence[RequestRecord]) -> tuple[float, float] | None:
    """Return the first and the last instant at which so many requests were in flight."""
    changes = [(record.sent_s, 1) for record in records] + [(record.done_s, -1) for record in records]
    in_flight, first, last = 0, None, None
    for instant, change in sorted(changes):  # an end sorts before a start of the same instant
        if in_flight >= concurrency:
            last = instant
        in_flight += change
        if in_flight >= concurrency and first is None:
            first = instant
    return None if first is None or last is None else (first, last)


def _rate(count: float, window: _Window, time_scale: float) -> float | None:
    return count * time_scale / window.length_s if window.length_s > 0 else None


def _tokens_in(window: _Window, records: Sequence[RequestRecord]) -> int:
    return sum(window.begin_s <= arrival <= window.end_s for record in records for arrival in record.token_times_s)


def _requests_in(window: _Window, records: Sequence[RequestRecord], osl: int) -> float:
    """Return how many requests a window holds, each by the share of its time in flight that lies inside.

    Counting ends alone would make a window that closes with the first of many equal requests look all but idle. A
    request that was cut short counts by how much of its reply there was, an error not at all.
    """
    shares = 0.0
    for record in records:
        if record.outcome in {"ok", "cancelled"}:
            inside_s = min(record.done_s, window.end_s) - max(record.sent_s, window.begin_s)
            part = min(1.0, record.output_tokens / osl) if record.outcome == "cancelled" else 1.0
            shares += part * max(0.0, inside_s) / max(record.done_s - record.sent_s, 1e-9)
    return shares


def _client_batch(window: _Window, records: Sequence[RequestRecord]) -> BatchSpread | None:
    """Return how many requests were between first and last token, each count weighted by how long it lasted."""
    streaming = [record.token_times_s for record in records if record.token_times_s]
    if not streaming or window.length_s <= 0:
        return None
    starts = np.sort(np.clip([times[0] for times in streaming], window.begin_s, window.end_s))
    ends = np.sort(np.clip([times[-1] for times in streaming], window.begin_s, window.end_s))
    edges = np.unique(np.concatenate([[window.begin_s, window.end_s], starts, ends]))
    counts = np.searchsorted(starts, edges[:-1], side="right") - np.searchsorted(ends, edges[:-1], side="right")
    lasted = np.diff(edges)
    return BatchSpread(
        mean=float(np.average(counts, weights=lasted)),
        p50=_weighted_percentile(counts, lasted, 0.50),
        p95=_weighted_percentile(counts, lasted, 0.95),
        max=float(counts.max()),
    )


def _weighted_percentile(values: npt.NDArray[Any], weights: _Floats, share: float) -> float:
    """Return the least value that, with all below it, makes up this share of the weight."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    position = int(np.searchsorted(reached, share * reached[-1]))
    return float(values[order][min(position, len(values) - 1)])


def _server_batch(samples: Sequence[Sample]) -> list[float]:
    name, label = "nv_trt_llm_inflight_batcher_metrics", "inflight_batcher_specific_metric"
    return _gauge(samples, name, label, "generation_requests")


def _batch_spread(values: Sequence[float]) -> BatchSpread | None:
    if not values:
        return None
    p50, p95 = (float(value) for value in np.percentile(values, [50, 95]))
    return BatchSpread(mean=float(np.mean(values)), p50=p50, p95=p95, max=max(values))


def _mean_of(samples: Sequence[Sample], name: str, label: str, wanted: str) -> float | None:
    values = _gauge(samples, name, label, wanted)
    return float(np.mean(values)) if values else None


def _gauge(samples: Sequence[Sample], name: str, label: str, wanted: str) -> list[float]:
    """Return a gauge's value at each sample that has it, added up over the models that publish it."""
    found: list[float] = []
    matches: dict[str, bool] = {}
    for sample in samples:
        values = []
        for series, value in sample.values.items():
            if series not in matches:
                parsed = parse_series(series)
                matches[series] = parsed is not None and parsed[0] == name and parsed[1].get(label) == wanted
            if matches[series] and np.isfinite(value):
                values.append(value)
        if values:
            found.append(sum(values))
    return found
