"""From records to figures: exact percentiles, measurement windows, batch sizes. The only place they are computed.

Every duration here is in engine seconds: wall seconds divided by the run's time scale. Latencies cover every successful
measured request of a level, except for the cut. Rates and batch sizes cover a window, with requests of every phase:
tokens by their arrival, requests by the share of their duration inside. `steady_state` defines window and cut,
`bootstrap` the confidence intervals.

In an open loop a user's clock starts when the request was due. Latencies are reported from both the due time and the
send time, and objectives apply to the former, which includes delays of a late generator or a full connection pool.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from loadtest.metrics import bootstrap
from loadtest.metrics.batch_size import Samples, batch_curve, client_batch, gpus_of, samples_of, server_batch
from loadtest.metrics.bootstrap import Range
from loadtest.metrics.energy import energy_of
from loadtest.metrics.latency import Counted, counted, felt, spread, spreads_of
from loadtest.metrics.slo_results import goodput_ratio, meets_goodput, verdicts_of
from loadtest.metrics.speculation import speculation_of
from loadtest.metrics.summary import (
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
from loadtest.metrics.throughput import ranges_of, rates_of
from loadtest.results import (
    OUTCOMES,
    UNKNOWN,
    Columns,
    Kind,
    Level,
    RequestRecord,
    RunManifest,
    Sample,
    ValidityIssue,
    columns_of,
    parse_series,
)
from loadtest.scenario import Objectives

__all__ = [
    "PERCENTILES_NOTE",
    "BatchSpread",
    "Interval",
    "LevelSummary",
    "RunFacts",
    "Spread",
    "Summary",
    "goodput_ratio",
    "meets_goodput",
    "parse_series",
    "spread",
    "summarize",
    "summarize_level",
    "validity_issues_of",
    "verdicts_of",
]

SETTLING = frozenset({"constant", "poisson", "gamma"})  # processes with a constant rate
CUT_METHOD = (
    "MSER-5 on requests in flight and tokens per bin, where what it cuts differs by over 3 standard errors and 5 %"
)
MAX_ERROR_TEXTS = 10


def summarize(
    run: RunManifest,
    records: Columns | Iterable[RequestRecord],
    samples: Iterable[Sample],
    *,
    objectives: Objectives | None = None,
    confidence: bool = False,
) -> Summary:
    """Return a run's figures, level by level; latencies cover requests of phase `measure`.

    The document's `made_by` and `made_from` are the run's; a caller that writes it to a file sets its own.

    Args:
        objectives: None: the scenario's own, if any.
        confidence: Whether to compute confidence intervals, which takes a tenth of a second per level.
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
            kind=run.kind,
            counts_are_exact=run.server.counts_are_exact,
            objectives=objectives,
            settles=settles(run),
            class_objectives=class_objectives(run),
            confidence=confidence,
        )
        for index, level in enumerate(run.levels)
    ]
    validity_issues = validity_issues_of(run, [level.requests for level in levels])
    return Summary(
        made_by=run.made_by,
        made_from=run.made_from,
        kind=run.kind,
        label=run.label,
        time_scale=run.time_scale,
        valid=not validity_issues,
        validity_issues=validity_issues,
        runs=[_facts(run)],
        levels=levels,
    )


def settles(run: RunManifest) -> bool:
    """Whether a run's load is constant, so that its transient can be cut."""
    return run.scenario.arrivals is None or run.scenario.arrivals.process in SETTLING


def class_objectives(run: RunManifest) -> dict[str, Objectives | None]:
    """Return the objectives of each class of a run's mix."""
    return {each.name: each.objectives for each in getattr(run.scenario, "classes", ())}


def validity_issues_of(run: RunManifest, measured: Sequence[int]) -> list[ValidityIssue]:
    """Return the run's validity issues, and those found in its files: it was interrupted, or records are missing.

    Args:
        measured: Number of measured requests found for each level.
    """
    validity_issues = list(run.validity_issues)
    if run.interrupted is not None and all(issue.code != "interrupted" for issue in validity_issues):
        validity_issues.append(ValidityIssue(code="interrupted", text=f"the run was interrupted: {run.interrupted}"))
    for index, (level, found) in enumerate(zip(run.levels, measured, strict=True)):
        requested = run.scenario.requests
        if level.concurrency is not None and level.complete and not level.sufficed and found < requested:
            text = f"{found} measured requests found, but the scenario has {requested}"
            validity_issues.append(ValidityIssue(code="records-missing", text=text, level=index))
    return validity_issues


def summarize_level(  # noqa: PLR0913 (facts of the level and choices of the caller)
    level: Level,
    records: Columns | Sequence[RequestRecord],
    samples: Samples | Sequence[Sample],
    *,
    time_scale: float,
    kind: Kind = "measured",
    counts_are_exact: bool = True,
    objectives: Objectives | None = None,
    settles: bool = True,
    class_objectives: Mapping[str, Objectives | None] | None = None,
    confidence: bool = False,
) -> LevelSummary:
    """Return one level's figures from all its requests; the samples may cover the whole run.

    Args:
        kind: Of the run; it decides whether GPU readings count.
        counts_are_exact: Whether each response said how many tokens it had; if not, characters decided.
        settles: Whether the load is constant; if not, nothing is cut.
        class_objectives: Of classes with their own; the goodput of others uses `objectives`.
        confidence: Whether to compute confidence intervals.
    """
    found = counted(level, records, time_scale=time_scale, settles=settles)
    sampled = samples if isinstance(samples, Samples) else samples_of(samples)
    measured, window = found.measured, found.cut.window
    errors = len(measured) - int(measured.good.sum())
    goodput = _goodput(objectives, measured, found.is_open, time_scale)
    rates = rates_of(found) if len(measured) else {}
    energy, unknown = (
        energy_of(sampled.meters, window, kind=kind, time_scale=time_scale, rates=rates)
        if errors < len(measured)
        else (None, "no measured request succeeded")
    )
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
        incomplete=int(found.all.incomplete.sum()),
        window=window.kind,
        window_s=window.length_s / time_scale,
        output_tokens_per_s=rates.get("output_tokens_per_s"),
        requests_per_s=rates.get("requests_per_s"),
        input_tokens_per_s=rates.get("input_tokens_per_s"),
        rates_ci=ranges_of(found, rates) if confidence else None,
        batch_size=server_batch(sampled, window),
        batch_size_client=client_batch(window, found.all),
        kv_blocks_used=sampled.mean("kv_blocks_used", window),
        kv_ratio=sampled.mean("kv_ratio", window),
        waiting=sampled.mean("waiting", window),
        gpus=gpus_of(sampled, window),
        energy=energy,
        energy_unknown=unknown,
        goodput=goodput,
        goodput_ci=_goodput_ci(goodput, len(measured)) if confidence else None,
        bundled_tokens=int(found.good.bundled_tokens.sum()),
        speculation=speculation_of(found.good, sampled, window, counts_are_exact=counts_are_exact),
        cached_ratio=_cached_ratio(found.good),
        steady=_steady(found) if settles else None,
        batch_curve=batch_curve(window, found.all, sampled, time_scale=time_scale),
        classes=_classes(found, objectives, class_objectives or {}, confidence=confidence),
        **spreads_of(found, confidence=confidence),
    )


def _errors_by_outcome(measured: Columns) -> dict[str, int]:
    """Count failed requests by outcome; a successful one without a token is `empty`."""
    failed = measured.outcome[~measured.good]
    names = ["empty" if OUTCOMES[place] == "ok" else OUTCOMES[place] for place in failed.tolist()]
    return dict(sorted(Counter(names).items()))


def _errors_by_text(measured: Columns) -> dict[str, int]:
    texts = measured.error[~measured.good & (measured.error != UNKNOWN)]
    return {measured.errors[place]: count for place, count in Counter(texts.tolist()).most_common(MAX_ERROR_TEXTS)}


def _goodput(objectives: Objectives | None, measured: Columns, is_open: bool, time_scale: float) -> float | None:
    return None if objectives is None else goodput_ratio(objectives.goodput, measured, time_scale, is_open=is_open)


def _goodput_ci(goodput: float | None, count: int) -> Range | None:
    return None if goodput is None else bootstrap.wilson(round(goodput * count), count)


def _cached_ratio(good: Columns) -> float | None:
    is_known = good.cached_tokens != UNKNOWN
    prompt_tokens = int(good.prompt_tokens[is_known].sum())
    return float(good.cached_tokens[is_known].sum()) / prompt_tokens if prompt_tokens else None


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
    """Return each class's own figures; empty if all requests are of one kind."""
    return tuple(
        _class(found, name, own.get(name) or objectives, confidence=confidence)
        for place, name in sorted(enumerate(found.all.names), key=lambda pair: pair[1])
        if (found.measured.class_name == place).any()
    )


def _class(found: Counted, name: str, objectives: Objectives | None, *, confidence: bool) -> ClassSummary:
    measured = found.measured.of_class(name)
    of_class = found._replace(measured=measured, good=found.good.of_class(name))
    latencies = spreads_of(of_class, confidence=confidence)
    good = of_class.good
    return ClassSummary(
        name=name,
        requests=len(measured),
        errors=len(measured) - int(measured.good.sum()),
        prompt_tokens=float(measured.prompt_tokens.mean()),
        output_tokens=float(good.output_tokens.mean()) if len(good) else 0.0,
        ttft_s=felt(latencies, "ttft_s"),
        itl_s=latencies["itl_s"],
        tpot_s=latencies["tpot_s"],
        e2e_s=felt(latencies, "e2e_s"),
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
