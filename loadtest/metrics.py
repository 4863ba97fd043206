"""From records to figures: exact percentiles, honest windows, batch sizes. The only place they are computed.

Every duration here is in engine seconds: wall seconds divided by the run's time scale. Latencies are of every measured
request of a level that ended well, but for what the cut leaves out; rates and batch sizes are of a window, and what is
counted there is what happened, by requests of every phase: tokens by their arrival, requests by the share of their work
that lies inside. `windows` says how window and cut are found, `intervals` how far a figure may be off.

In an open loop a user's clock starts when the request was meant to be sent. Latencies are told from both moments, and
objectives are held against the later reading: what a late generator or a full connection pool hides shows in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loadtest import intervals
from loadtest.batches import Samples, batch_curve, client_batch, gpus_of, samples_of, server_batch
from loadtest.columns import OUTCOMES, UNKNOWN, Columns, Floats, Ints, columns_of
from loadtest.intervals import SHARES, Range, Resampler
from loadtest.objectives import Goodput, Objectives, Verdict
from loadtest.records import Doubt, Level, RequestRecord, RunManifest, Sample
from loadtest.series import parse_series
from loadtest.summary import (
    PERCENTILES_NOTE,
    BatchSpread,
    ClassSummary,
    Interval,
    LevelSummary,
    RunFacts,
    Spread,
    Steady,
    Summary,
)
from loadtest.windows import Cut, Window, arrivals_in, cut_of, window_of

__all__ = [
    "PERCENTILES_NOTE",
    "BatchSpread",
    "Interval",
    "LevelSummary",
    "RunFacts",
    "Spread",
    "Summary",
    "doubts_of",
    "goodput_ratio",
    "parse_series",
    "spread",
    "summarize",
    "summarize_level",
    "verdicts_of",
]

SETTLING = frozenset({"constant", "poisson", "gamma"})  # processes whose rate does not change
CUT_METHOD = "MSER-5 on requests in flight and tokens per bin, where what it cuts differs by over 3 standard errors"
RATE_BINS = 256
MOST_ERROR_TEXTS = 10

_Values = npt.NDArray[np.floating]


def summarize(
    run: RunManifest,
    records: Columns | Iterable[RequestRecord],
    samples: Iterable[Sample],
    *,
    objectives: Objectives | None = None,
    confidence: bool = False,
) -> Summary:
    """Return a run's figures, level by level; latencies are of what was sent in phase `measure`.

    The document's `made_by` and `made_from` are the run's; who writes it to a file puts its own.

    Args:
        objectives: None: the scenario's own, where it states some.
        confidence: Whether to compute confidence intervals; they cost a tenth of a second a level.
    """
    objectives = objectives or run.scenario.objectives
    columns = columns_of(records)
    sampled = samples_of(list(samples))
    levels = [
        summarize_level(
            level,
            columns.select(columns.level == index),
            sampled,
            time_scale=run.time_scale,
            objectives=objectives,
            settles=settles(run),
            class_objectives=class_objectives(run),
            confidence=confidence,
        )
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


def settles(run: RunManifest) -> bool:
    """Whether a run's load is one that goes on unchanged, so that what comes before it has settled can be cut."""
    return run.scenario.arrivals is None or run.scenario.arrivals.process in SETTLING


def class_objectives(run: RunManifest) -> dict[str, Objectives | None]:
    """Return what was promised to each class of a run's mix."""
    return {each.name: each.objectives for each in getattr(run.scenario, "classes", ())}


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
        if level.concurrency is not None and level.complete and not level.sufficed and found < asked:
            text = f"{found} measured requests found where the scenario asks for {asked}"
            doubts.append(Doubt(code="records-missing", text=text, level=index))
    return doubts


class Counted(NamedTuple):
    """One level's requests, ready to be counted.

    Attributes:
        all: Of every phase.
        measured: Those of phase `measure`.
        good: Of those, the ones latencies are of.
    """

    level: Level
    all: Columns
    measured: Columns
    good: Columns
    cut: Cut
    time_scale: float

    @property
    def is_open(self) -> bool:
        """Whether requests were sent by the clock."""
        return self.level.concurrency is None

    @property
    def begin_s(self) -> Floats:
        """When a user's clock started, of the good requests."""
        return self.good.scheduled_s if self.is_open else self.good.sent_s


def counted(level: Level, records: Columns | Iterable[RequestRecord], *, time_scale: float, settles: bool) -> Counted:
    """Return one level's requests with its window cut to where it had settled."""
    columns = columns_of(records)
    window = window_of(level, columns)
    cut = cut_of(window, columns, is_open=level.concurrency is None) if settles else Cut(window, 0.0, 0.0)
    measured = columns.select(columns.measured)
    good = measured.good
    if cut.is_cut:
        good &= (measured.sent_s >= cut.window.begin_s) & (measured.sent_s <= cut.window.end_s)
    return Counted(level, columns, measured, measured.select(good), cut, time_scale)


def summarize_level(
    level: Level,
    records: Columns | Sequence[RequestRecord],
    samples: Samples | Sequence[Sample],
    *,
    time_scale: float,
    objectives: Objectives | None = None,
    settles: bool = True,
    class_objectives: Mapping[str, Objectives | None] | None = None,
    confidence: bool = False,
) -> LevelSummary:
    """Return one level's figures from all its requests; the samples may be of the whole run.

    Args:
        settles: Whether the load is one that goes on unchanged; if not, nothing is cut.
        class_objectives: Of classes that have their own; the others' goodput is by `objectives`.
        confidence: Whether to compute confidence intervals.
    """
    found = counted(level, records, time_scale=time_scale, settles=settles)
    sampled = samples if isinstance(samples, Samples) else samples_of(samples)
    measured, window = found.measured, found.cut.window
    errors = len(measured) - int(measured.good.sum())
    goodput = _goodput(objectives, measured, found.is_open, time_scale)
    rates = _rates(found) if len(measured) else {}
    return LevelSummary(
        concurrency=level.concurrency,
        rate_per_s=level.rate_per_s,
        isl=level.isl,
        osl=level.osl,
        complete=level.complete,
        requests=len(measured),
        errors=errors,
        errors_by_outcome=_errors_by_outcome(measured),
        errors_by_text=_errors_by_text(measured),
        window=window.kind,
        window_s=window.length_s / time_scale,
        output_tokens_per_s=rates.get("output_tokens_per_s"),
        requests_per_s=rates.get("requests_per_s"),
        input_tokens_per_s=rates.get("input_tokens_per_s"),
        rates_ci=_rates_ci(found, rates) if confidence else None,
        batch_size=server_batch(sampled, window),
        batch_size_client=client_batch(window, found.all),
        kv_blocks_used=sampled.mean("kv_blocks_used", window),
        kv_ratio=sampled.mean("kv_ratio", window),
        waiting=sampled.mean("waiting", window),
        gpus=gpus_of(sampled, window),
        goodput=goodput,
        goodput_ci=_goodput_ci(goodput, len(measured)) if confidence else None,
        bundled_tokens=int(found.good.bundled_tokens.sum()),
        cached_ratio=_cached_ratio(found.good),
        steady=_steady(found) if settles else None,
        batch_curve=batch_curve(window, found.all, sampled, time_scale=time_scale),
        classes=_classes(found, objectives, class_objectives or {}, confidence=confidence),
        **_latencies(found, confidence=confidence),
    )


def goodput_ratio(
    wanted: Goodput | None, measured: Columns | Sequence[RequestRecord], time_scale: float, *, scheduled: bool = False
) -> float | None:
    """Return the share of measured requests that kept every limit; None: nothing to say. See `kept_of`."""
    if wanted is None or not len(measured):
        return None
    return float(kept_of(wanted, measured, time_scale, scheduled=scheduled).mean())


def kept_of(
    wanted: Goodput, measured: Columns | Sequence[RequestRecord], time_scale: float, *, scheduled: bool = False
) -> npt.NDArray[np.bool_]:
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


def spread(
    wall_s: Sequence[float] | _Values,
    time_scale: float = 1.0,
    *,
    rows: Ints | None = None,
    resampler: Resampler | None = None,
) -> Spread | None:
    """Return how durations are spread, in engine seconds; None when there are none.

    Args:
        rows: Which request each is of; None: one of each.
        resampler: What draws the requests again for confidence intervals; None: there are none.

    >>> spread([1.0, 2.0, 3.0, 4.0]).p50
    2.5
    """
    if not len(wall_s):
        return None
    values = np.asarray(wall_s)
    ordered = np.sort(values)
    quantiles = dict(zip(SHARES, intervals.quantiles_of_sorted(ordered, list(SHARES.values())), strict=True))
    spread_of = None if resampler is None else resampler.replicates(values, rows)
    unsupported = tuple(name for name in SHARES if not _is_supported(values, rows, SHARES[name], quantiles[name]))
    known = {name: quantile / time_scale for name, quantile in quantiles.items()}
    return Spread(
        count=len(values),
        mean=float(values.mean(dtype=np.float64)) / time_scale,
        min=float(ordered[0]) / time_scale,
        max=float(ordered[-1]) / time_scale,
        sd=float(values.std(ddof=1, dtype=np.float64)) / time_scale if len(values) > 1 else None,
        ci=None if spread_of is None else _ranges(spread_of, unsupported, time_scale),
        unsupported=unsupported,
        **known,
    )


def _ranges(replicates: dict[str, Floats], unsupported: tuple[str, ...], time_scale: float) -> dict[str, Range]:
    ranges = {name: intervals.middle(found) for name, found in replicates.items() if name not in unsupported}
    return {name: (low / time_scale, high / time_scale) for name, (low, high) in ranges.items()}


def _is_supported(values: _Values, rows: Ints | None, share: float, quantile: float) -> bool:
    needed = intervals.needed(share)
    return len(values) >= needed and intervals.effective_size(values, rows, quantile) >= needed


def resampler_of(found: Counted) -> Resampler | None:
    """Return what draws a level's good requests again: by time in an open loop, one by one in a closed one."""
    if found.is_open:
        return intervals.by_blocks(found.good.scheduled_s, found.good.done_s - found.begin_s)
    return intervals.by_requests(len(found.good))


def latencies_of(found: Counted) -> dict[str, tuple[_Values, Ints | None]]:
    """Return each latency's values in wall seconds, and which request each is of where a request has several."""
    good = found.good
    values: dict[str, tuple[_Values, Ints | None]] = {
        "ttft_s": (good.first_s - good.sent_s, None),
        "itl_s": (good.gaps_s, good.owners),
        "tpot_s": _known(good.tpot_s),
        "e2e_s": (good.done_s - good.sent_s, None),
        "ttst_s": _known(good.second_s - good.first_s),
        "normalized_s": ((good.done_s - good.sent_s) / np.maximum(good.tokens, 1), None),
        "queue_s": _known(good.queue_s),
    }
    if found.is_open:
        values["ttft_scheduled_s"] = (good.first_s - good.scheduled_s, None)
        values["e2e_scheduled_s"] = (good.done_s - good.scheduled_s, None)
    return values


def _known(values: Floats) -> tuple[_Values, Ints | None]:
    """Return the values that are known, and whose they are unless all are."""
    is_known = np.isfinite(values)
    return (values, None) if is_known.all() else (values[is_known], np.flatnonzero(is_known))


def _latencies(found: Counted, *, confidence: bool) -> dict[str, Any]:
    resampler = resampler_of(found) if confidence else None
    return {
        name: spread(values, found.time_scale, rows=rows, resampler=resampler)
        for name, (values, rows) in latencies_of(found).items()
    }


def _rates(found: Counted) -> dict[str, float | None]:
    """Return what happened in the window for each engine second of it; None where it has no length."""
    window, columns = found.cut.window, found.all
    shares = _shares_in(window, columns, found.level.osl)
    counts = {
        "output_tokens_per_s": float(_tokens_in(window, columns)),
        "requests_per_s": float(shares.sum()),
        "input_tokens_per_s": float((shares * columns.prompt_tokens).sum()),
    }
    length_s = window.length_s
    return {name: count * found.time_scale / length_s if length_s > 0 else None for name, count in counts.items()}


def _rates_ci(found: Counted, rates: dict[str, float | None]) -> dict[str, Range]:
    """Return intervals of the rates; blocks of time are drawn again."""
    ranges = {}
    for name, replicates in rate_replicates(found).items():
        if rates.get(name) is not None:
            ranges[name] = intervals.middle(replicates)
    return ranges


def rate_replicates(found: Counted) -> dict[str, Floats]:
    """Return the rates of each replicate, per engine second; none where there is too little."""
    window = found.cut.window
    if window.length_s <= 0:
        return {}
    edges = np.linspace(window.begin_s, window.end_s, RATE_BINS + 1)
    per_bin_s = window.length_s / RATE_BINS / found.time_scale
    ended, _ = np.histogram(found.all.done_s[found.all.good], edges)
    counts = {"output_tokens_per_s": arrivals_in(edges, found.all), "requests_per_s": ended}
    drawn = {
        name: intervals.rate_replicates(values.astype(np.float64))
        for name, values in counts.items()
        if values.sum() >= intervals.LEAST_UNITS * intervals.LEAST_PER_BLOCK
    }
    return {name: replicates / per_bin_s for name, replicates in drawn.items() if replicates is not None}


def _tokens_in(window: Window, columns: Columns) -> int:
    whole = (columns.first_s >= window.begin_s) & (columns.last_s <= window.end_s)
    outside = (columns.first_s > window.end_s) | (columns.last_s < window.begin_s) | (columns.tokens == 0)
    count = int(columns.tokens[whole].sum())
    for chunk in columns.select(~whole & ~outside).token_chunks():
        count += int(((chunk.time_s >= window.begin_s) & (chunk.time_s <= window.end_s)).sum())
    return count


def _shares_in(window: Window, columns: Columns, osl: int) -> Floats:
    """Return how much of each request a window holds, by the share of its time in flight that lies inside.

    Counting ends alone would make a window that closes with the first of many equal requests look all but idle. A
    request that was cut short counts by how much of its reply there was, an error not at all.
    """
    inside_s = np.minimum(columns.done_s, window.end_s) - np.maximum(columns.sent_s, window.begin_s)
    shares = np.maximum(inside_s, 0.0) / np.maximum(columns.done_s - columns.sent_s, 1e-9)
    ended = columns.outcome == OUTCOMES.index("ok")
    cut_short = columns.outcome == OUTCOMES.index("cancelled")
    asked = np.where(columns.asked_tokens > 0, columns.asked_tokens, osl)
    part = np.where(ended, 1.0, np.where(cut_short, np.minimum(1.0, columns.output_tokens / asked), 0.0))
    found: Floats = shares * part
    return found


def _errors_by_outcome(measured: Columns) -> dict[str, int]:
    """Count what did not end well; what ended well without a token is `empty`."""
    failed = measured.outcome[~measured.good]
    names = ["empty" if OUTCOMES[place] == "ok" else OUTCOMES[place] for place in failed.tolist()]
    return dict(sorted(Counter(names).items()))


def _errors_by_text(measured: Columns) -> dict[str, int]:
    texts = measured.error[~measured.good & (measured.error != UNKNOWN)]
    return {measured.errors[place]: count for place, count in Counter(texts.tolist()).most_common(MOST_ERROR_TEXTS)}


def _goodput(objectives: Objectives | None, measured: Columns, is_open: bool, time_scale: float) -> float | None:
    return None if objectives is None else goodput_ratio(objectives.goodput, measured, time_scale, scheduled=is_open)


def _goodput_ci(goodput: float | None, count: int) -> Range | None:
    return None if goodput is None else intervals.wilson(round(goodput * count), count)


def _cached_ratio(good: Columns) -> float | None:
    told = good.cached_tokens != UNKNOWN
    prompt_tokens = int(good.prompt_tokens[told].sum())
    return float(good.cached_tokens[told].sum()) / prompt_tokens if prompt_tokens else None


def _steady(found: Counted) -> Steady:
    cut = found.cut
    return Steady(
        method=CUT_METHOD,
        warmup_s=cut.warmup_s / found.time_scale,
        cooldown_s=cut.cooldown_s / found.time_scale,
        requests_cut=int(found.measured.good.sum()) - len(found.good),
        growing=cut.growing,
    )


def _classes(
    found: Counted,
    objectives: Objectives | None,
    own: Mapping[str, Objectives | None],
    *,
    confidence: bool,
) -> tuple[ClassSummary, ...]:
    """Return each class's own figures; none where requests are of one kind."""
    return tuple(
        _class(found, place, name, own.get(name) or objectives, confidence=confidence)
        for place, name in sorted(enumerate(found.all.names), key=lambda pair: pair[1])
        if (found.measured.class_name == place).any()
    )


def _class(found: Counted, place: int, name: str, objectives: Objectives | None, *, confidence: bool) -> ClassSummary:
    measured = found.measured.select(found.measured.class_name == place)
    of_class = found._replace(measured=measured, good=found.good.select(found.good.class_name == place))
    latencies = _latencies(of_class, confidence=confidence)
    good = of_class.good
    return ClassSummary(
        name=name,
        requests=len(measured),
        errors=len(measured) - int(measured.good.sum()),
        prompt_tokens=float(measured.prompt_tokens.mean()),
        output_tokens=float(good.output_tokens.mean()) if len(good) else 0.0,
        ttft_s=latencies.get("ttft_scheduled_s") or latencies["ttft_s"],
        itl_s=latencies["itl_s"],
        tpot_s=latencies["tpot_s"],
        e2e_s=latencies.get("e2e_scheduled_s") or latencies["e2e_s"],
        goodput=_goodput(objectives, measured, found.is_open, found.time_scale),
    )


def _facts(run: RunManifest) -> RunFacts:
    return RunFacts(
        name=run.scenario.name,
        label=run.label,
        time_scale=run.time_scale,
        scenario=run.scenario.name,
        server=run.server,
        interrupted=run.interrupted,
    )
