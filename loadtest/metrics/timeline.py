"""Data of charts beyond the summary: distributions, and the run over time."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from loadtest.metrics.batch_size import Samples
from loadtest.metrics.latency import Counted, counted, felt, latencies_of
from loadtest.metrics.steady_state import arrivals_in, mean_count
from loadtest.metrics.summarize import settles
from loadtest.results import Columns, Floats, Gauge, RunManifest, load_text

TIMELINE_BINS = 240
TIMELINE_BINS_A_LEVEL = 30
_SHARES = np.concatenate([np.linspace(0.0, 0.99, 199), 1.0 - np.geomspace(0.01, 1e-4, 60)[1:], [1.0]])
_SAMPLED: tuple[Gauge, ...] = ("decoding", "waiting", "kv_ratio", "kv_blocks_used", "gpu_power_w")


class Ecdf(NamedTuple):
    """A cumulative distribution: the share of `size` values at or below given seconds; shape (points,)."""

    seconds: Floats
    share: Floats
    size: int


class LevelDetail(NamedTuple):
    """One level's distributions, engine seconds; None without a value."""

    load: str
    ttft: Ecdf | None
    itl: Ecdf | None


class Span(NamedTuple):
    """Times of a level, engine seconds: start, measurement start, window start, window end, end."""

    load: str
    begin_s: float
    measure_s: float
    window_begin_s: float
    window_end_s: float
    end_s: float


class Timeline(NamedTuple):
    """A run in equal bins of time, engine seconds.

    Attributes:
        t_s: Middle of each bin; shape (bins,).
        series: By quantity, each of shape (bins,), nan where not reported; rates per engine second.
    """

    t_s: Floats
    series: dict[str, Floats]
    spans: list[Span]


class RunDetail(NamedTuple):
    """The chart data of one run."""

    name: str
    levels: list[LevelDetail]
    timeline: Timeline | None


def detail_of(name: str, run: RunManifest, columns: Columns, samples: Samples) -> RunDetail:
    """Return one run's distributions and timeline."""
    levels = [
        counted(level, columns.select(columns.level == index), time_scale=run.time_scale, settles=settles(run))
        for index, level in enumerate(run.levels)
    ]
    return RunDetail(name, [_level(found) for found in levels], _timeline(levels, columns, samples, run.time_scale))


def ecdf(values: Floats) -> Ecdf | None:
    """Return a distribution at 259 places, dense in the tail; None without a value.

    >>> ecdf(np.array([3.0, 1.0])).seconds[[0, -1]].tolist()
    [1.0, 3.0]
    """
    if not len(values):
        return None
    # Sorted first: to find 259 places in unsorted values takes numpy twice as long.
    return Ecdf(np.quantile(np.sort(values), _SHARES), _SHARES, len(values))


def _level(found: Counted) -> LevelDetail:
    level = found.level
    latencies = latencies_of(found)
    ttft, _ = felt(latencies, "ttft_s")
    load = load_text(level.concurrency, level.rate_per_s)
    scale = found.time_scale
    return LevelDetail(load, ecdf(np.asarray(ttft / scale)), ecdf(np.asarray(latencies["itl_s"][0] / scale)))


def _timeline(levels: list[Counted], columns: Columns, samples: Samples, scale: float) -> Timeline | None:
    if not levels or not len(columns):
        return None
    begin_s = min(found.level.begin_s for found in levels)
    end_s = max(float(columns.done_s.max()), *(found.level.end_s for found in levels))
    bins = max(TIMELINE_BINS, TIMELINE_BINS_A_LEVEL * len(levels))
    edges = np.linspace(begin_s, end_s, bins + 1)
    width_s = (end_s - begin_s) / bins / scale
    ended, _ = np.histogram(columns.done_s[columns.good], edges)
    failed, _ = np.histogram(columns.done_s[~columns.good & (columns.phase != _FILL)], edges)
    streaming = columns.tokens > 0
    series = {
        "output_tokens_per_s": arrivals_in(edges, columns) / width_s,
        "requests_per_s": ended / width_s,
        "errors_per_s": failed / width_s,
        "in_flight": mean_count(edges, columns.sent_s, columns.done_s),
        "decoding_client": mean_count(edges, columns.first_s[streaming], columns.last_s[streaming]),
    }
    series |= {f"{name}_server": _sampled(samples, name, edges) for name in _SAMPLED if name in samples.values}
    spans = [_span(found) for found in levels]
    return Timeline((edges[1:] + edges[:-1]) / 2 / scale, series, spans)


_FILL = 2  # in PHASES: requests that only maintain the load may be cut without being an error


def _sampled(samples: Samples, name: Gauge, edges: Floats) -> Floats:
    """Return a gauge's mean in each bin; nan where it was not sampled."""
    known = np.isfinite(samples.values[name])
    bins = len(edges) - 1
    place = np.digitize(samples.t_s[known], edges) - 1
    inside = (place >= 0) & (place < bins)
    counts = np.bincount(place[inside], minlength=bins)
    sums = np.bincount(place[inside], weights=samples.values[name][known][inside], minlength=bins)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _span(found: Counted) -> Span:
    level, window, scale = found.level, found.cut.window, found.time_scale
    load = load_text(level.concurrency, level.rate_per_s)
    moments = (level.begin_s, level.measure_s, window.begin_s, window.end_s, level.end_s)
    return Span(load, *(moment / scale for moment in moments))
