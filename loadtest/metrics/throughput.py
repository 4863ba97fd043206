"""Rates of one level in its measurement window, with confidence intervals."""

from __future__ import annotations

import numpy as np

from loadtest.metrics import bootstrap
from loadtest.metrics.bootstrap import Range
from loadtest.metrics.latency import Counted
from loadtest.metrics.steady_state import Window, arrivals_in
from loadtest.results import OUTCOMES, Columns, Floats

RATE_BINS = 256


def rates_of(found: Counted) -> dict[str, float | None]:
    """Return the rates in the window, per engine second; None if it has no length."""
    window, columns = found.cut.window, found.all
    shares = _shares_in(window, columns, found.level.osl)
    counts = {
        "output_tokens_per_s": float(_tokens_in(window, columns)),
        "requests_per_s": float(shares.sum()),
        "input_tokens_per_s": float((shares * columns.prompt_tokens).sum()),
    }
    length_s = window.length_s
    return {name: count * found.time_scale / length_s if length_s > 0 else None for name, count in counts.items()}


def ranges_of(found: Counted, rates: dict[str, float | None]) -> dict[str, Range]:
    """Return confidence intervals of the rates, by resampling blocks of time."""
    ranges = {}
    for name, replicates in rate_replicates(found).items():
        if rates.get(name) is not None:
            ranges[name] = bootstrap.middle(replicates)
    return ranges


def rate_replicates(found: Counted, *, seed: int = bootstrap.SEED) -> dict[str, Floats]:
    """Return the rates of each replicate, per engine second; empty if there is too little data."""
    window = found.cut.window
    if window.length_s <= 0:
        return {}
    edges = np.linspace(window.begin_s, window.end_s, RATE_BINS + 1)
    per_bin_s = window.length_s / RATE_BINS / found.time_scale
    ended, _ = np.histogram(found.all.done_s[found.all.good], edges)
    whole = float(_shares_in(window, found.all, found.level.osl).sum()) / max(int(ended.sum()), 1)
    counts = {"output_tokens_per_s": arrivals_in(edges, found.all), "requests_per_s": ended * whole}
    drawn = {
        name: bootstrap.rate_replicates(values.astype(np.float64), seed=seed)
        for name, values in counts.items()
        if values.sum() >= bootstrap.MIN_UNITS * bootstrap.MIN_PER_BLOCK
    }
    return {name: replicates / per_bin_s for name, replicates in drawn.items() if replicates is not None}


def _tokens_in(window: Window, columns: Columns) -> int:
    if columns.spans is not None:
        times_s, weights = columns.spans.times_s()
        return int(weights[(times_s >= window.begin_s) & (times_s <= window.end_s)].sum())
    whole = (columns.first_s >= window.begin_s) & (columns.last_s <= window.end_s)
    outside = (columns.first_s > window.end_s) | (columns.last_s < window.begin_s) | (columns.tokens == 0)
    count = int(columns.tokens[whole].sum())
    for chunk in columns.select(~whole & ~outside).token_chunks():
        count += int(((chunk.time_s >= window.begin_s) & (chunk.time_s <= window.end_s)).sum())
    return count


def _shares_in(window: Window, columns: Columns, osl: int) -> Floats:
    """Return the share of each request inside a window, by its time in flight.

    Counting ends alone would make a window that closes with the first of many equal requests look almost idle. A
    request that was cut counts by the share of its reply that arrived, an error not at all.
    """
    inside_s = np.minimum(columns.done_s, window.end_s) - np.maximum(columns.sent_s, window.begin_s)
    shares = np.maximum(inside_s, 0.0) / np.maximum(columns.done_s - columns.sent_s, 1e-9)
    ended = columns.outcome == OUTCOMES.index("ok")
    cut_short = columns.outcome == OUTCOMES.index("cancelled")
    requested = np.where(columns.asked_tokens > 0, columns.asked_tokens, osl)
    part = np.where(ended, 1.0, np.where(cut_short, np.minimum(1.0, columns.output_tokens / requested), 0.0))
    found: Floats = shares * part
    return found
