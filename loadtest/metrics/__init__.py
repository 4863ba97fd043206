"""From records to TTFT, ITL, throughput, confidence intervals and objectives. May import `results` and `scenario`."""

from loadtest.metrics.bootstrap import quantiles_of, quantiles_of_weighted
from loadtest.metrics.cost import GpuPrice, token_prices, with_cost
from loadtest.metrics.latency import Counted, counted, felt, latencies_of, request_latencies, resampler_of
from loadtest.metrics.loaded_run import LoadedRun, load_runs, refuse_mixed_kinds, summary_of_runs
from loadtest.metrics.repeats import repeats_of
from loadtest.metrics.slo_results import Knee, class_alone, knee_of, scopes_of, verdicts_in, verdicts_of
from loadtest.metrics.summarize import (
    Interval,
    LevelSummary,
    Spread,
    Summary,
    meets_goodput,
    settles,
    summarize,
    validity_issues_of,
)
from loadtest.metrics.summary import PERCENTILES, BatchPoint, ClassSummary, Repeat, RunFacts, TokenPrices
from loadtest.metrics.throughput import rate_replicates
from loadtest.metrics.timeline import Ecdf, LevelDetail, RunDetail, Span, Timeline

__all__ = [
    "PERCENTILES",
    "BatchPoint",
    "ClassSummary",
    "Counted",
    "Ecdf",
    "GpuPrice",
    "Interval",
    "Knee",
    "LevelDetail",
    "LevelSummary",
    "LoadedRun",
    "Repeat",
    "RunDetail",
    "RunFacts",
    "Span",
    "Spread",
    "Summary",
    "Timeline",
    "TokenPrices",
    "class_alone",
    "counted",
    "felt",
    "knee_of",
    "latencies_of",
    "load_runs",
    "meets_goodput",
    "quantiles_of",
    "quantiles_of_weighted",
    "rate_replicates",
    "refuse_mixed_kinds",
    "repeats_of",
    "request_latencies",
    "resampler_of",
    "scopes_of",
    "settles",
    "summarize",
    "summary_of_runs",
    "token_prices",
    "validity_issues_of",
    "verdicts_in",
    "verdicts_of",
    "with_cost",
]
