"""Batch size from the server's count and from the records, and the latency per token at each batch size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loadtest.metrics import bootstrap
from loadtest.metrics.power_readings import Meter, meters_of
from loadtest.metrics.steady_state import Window
from loadtest.metrics.summary import BatchCurve, BatchPoint, BatchSpread, Gpus
from loadtest.results import (
    MEANINGS,
    Bools,
    Columns,
    Floats,
    Gauge,
    Ints,
    Meaning,
    Sample,
    TokenSpans,
    Weighted,
    meanings_of,
)

OWN_BIN_BELOW = 4  # small batch sizes have a bin each, larger ones share bins of equal ratio
# Of a bin's edges: a separate bin for the size one below a full level's would contain only the moments when a prompt
# is computed.
BIN_RATIO = 1.25
MAX_GAPS = 4_000_000
MIN_GAPS = 20
MIN_STEPS = 4


class Samples(NamedTuple):
    """A server's samples as arrays; nan where not reported.

    Attributes:
        t_s: Midpoint of each reading.
        values: By quantity, each of shape (samples,).
        meters: Power and energy readings of each GPU.
    """

    t_s: Floats
    page: Floats
    values: dict[str, Floats]
    meters: tuple[Meter, ...] = ()

    def mean(self, quantity: Gauge, window: Window) -> float | None:
        """Return a gauge's mean over a window, pages summed or averaged; None if never reported there."""
        found = self.inside(quantity, window)
        if not len(found):
            return None
        adds_up = any(meaning.quantity == quantity and meaning.adds_up for meaning in MEANINGS)
        pages = [float(found[page].mean()) for page in self._pages(quantity, window)]
        return sum(pages) if adds_up else sum(pages) / len(pages)

    def inside(self, quantity: Gauge, window: Window) -> Floats:
        """Return a gauge's values in a window."""
        return self.values[quantity][self._known(quantity, window)] if quantity in self.values else np.zeros(0)

    def grown(self, quantity: str, window: Window) -> float | None:
        """Return what a counter grew by in a window, pages summed; None without two readings of one page.

        A server that restarted counts from 0: what it grew by until then is not known.
        """
        if quantity not in self.values:
            return None
        values, known = self.values[quantity], self._known(quantity, window)
        grown = [
            float(values[of][-1] - values[of][0])
            for page in sorted(set(self.page[known].tolist()))
            if int((of := known & (self.page == page)).sum()) > 1
        ]
        return sum(grown) if grown and min(grown) >= 0 else None

    def _known(self, quantity: str, window: Window) -> Bools:
        in_time = (self.t_s >= window.begin_s) & (self.t_s <= window.end_s)
        return in_time & np.isfinite(self.values[quantity])

    def _pages(self, quantity: Gauge, window: Window) -> list[Bools]:
        page = self.page[self._known(quantity, window)]
        return [page == each for each in sorted(set(page.tolist()))]


def samples_of(samples: Sequence[Sample]) -> Samples:
    """Return samples as arrays by quantity; models and GPUs of one page are summed or averaged."""
    known: dict[str, Meaning | None] = {}
    rows = np.full(len(samples), np.nan)
    values: dict[str, Floats] = {}
    counts: dict[str, Floats] = {}
    for row, sample in enumerate(samples):
        unknown = [series for series in sample.values if series not in known]
        found = meanings_of(unknown)
        known |= {series: found.get(series) for series in unknown}
        for series, value in sample.values.items():
            meaning = known[series]
            if meaning is None or not np.isfinite(value):
                continue
            column = values.setdefault(meaning.quantity, rows.copy())
            count = counts.setdefault(meaning.quantity, np.zeros(len(samples)))
            column[row] = (0.0 if np.isnan(column[row]) else column[row]) + value * meaning.factor
            count[row] += 0.0 if meaning.adds_up else 1.0
    for quantity, count in counts.items():
        values[quantity] = values[quantity] / np.maximum(count, 1.0)
    middle = np.array(
        [sample.t_s if sample.ended_s is None else (sample.t_s + sample.ended_s) / 2 for sample in samples]
    )
    pages = np.array([float(sample.page) for sample in samples])
    return Samples(middle, pages, values, meters_of(samples, middle))


def server_batch(samples: Samples, window: Window) -> BatchSpread | None:
    """Return the batch size reported by the server."""
    found = samples.inside("decoding", window)
    mean = samples.mean("decoding", window)
    if mean is None:
        return None
    p50, p95 = bootstrap.quantiles_of_sorted(np.sort(found), [0.50, 0.95])
    return BatchSpread(mean=mean, p50=p50, p95=p95, max=float(found.max()))


def gpus_of(samples: Samples, window: Window) -> Gpus | None:
    """Return the GPUs' activity; None if no page reports it."""
    power, memory, busy = (samples.mean(name, window) for name in ("gpu_power_w", "gpu_memory_bytes", "gpu_busy_ratio"))
    if power is None and memory is None and busy is None:
        return None
    return Gpus(power_w=power, memory_bytes=memory, busy_ratio=busy)


def client_batch(window: Window, columns: Columns) -> BatchSpread | None:
    """Return the number of requests between first and last token, weighted by time."""
    streaming = columns.tokens > 0
    if not streaming.any() or window.length_s <= 0:
        return None
    starts = np.sort(np.clip(columns.first_s[streaming], window.begin_s, window.end_s))
    ends = np.sort(np.clip(columns.last_s[streaming], window.begin_s, window.end_s))
    edges = _distinct(np.concatenate([[window.begin_s, window.end_s], starts, ends]))
    counts = np.searchsorted(starts, edges[:-1], side="right") - np.searchsorted(ends, edges[:-1], side="right")
    lasted = np.diff(edges)
    return BatchSpread(
        mean=float(np.average(counts, weights=lasted)),
        p50=_weighted_percentile(counts, lasted, 0.50),
        p95=_weighted_percentile(counts, lasted, 0.95),
        max=float(counts.max()),
    )


def batch_curve(window: Window, columns: Columns, samples: Samples, *, time_scale: float) -> BatchCurve | None:
    """Return the time per token at each batch size, from the records and from the server; None without a gap.

    Args:
        columns: All requests of the level: unmeasured ones are in the batch too.
    """
    if columns.spans is not None:
        batches, gaps = batch_of_span_gaps(window, columns, columns.spans)
    else:
        batches, gap_s = batch_of_gaps(window, columns)
        gaps = Weighted(gap_s, np.ones(len(gap_s), dtype=np.int64))
    if not len(batches):
        return None
    reconstructed = _points_of_gaps(batches, gaps._replace(values=gaps.values / time_scale))
    steps = _steps(window, samples, time_scale)
    server = _points_of_steps(*steps) if steps is not None else []
    return BatchCurve(
        reconstructed=reconstructed, server=server, disagreement_ratio=_disagreement(reconstructed, server)
    )


def batch_of_gaps(window: Window, columns: Columns) -> tuple[Floats, Floats]:
    """Return, for the gaps in a window, the number of active streams at their midpoint, and their wall seconds.

    Of more than MAX_GAPS gaps, every second, third, ... is used.
    """
    streaming = columns.tokens > 1
    starts, ends = np.sort(columns.first_s[streaming]), np.sort(columns.last_s[streaming])
    stride = 1 + int(len(columns.gaps_s) // MAX_GAPS)
    batches, gaps = [np.zeros(0)], [np.zeros(0)]
    for chunk in columns.token_chunks(by_response=True):
        same = chunk.row[1:] == chunk.row[:-1]
        middle = ((chunk.time_s[1:] + chunk.time_s[:-1]) / 2)[same][::stride]
        gap = np.diff(chunk.time_s)[same][::stride]
        inside = (middle >= window.begin_s) & (middle <= window.end_s)
        active = np.searchsorted(starts, middle, side="right") - np.searchsorted(ends, middle, side="left")
        batches.append(active[inside].astype(np.float64))
        gaps.append(gap[inside])
    return np.concatenate(batches), np.concatenate(gaps)


def batch_of_span_gaps(window: Window, columns: Columns, spans: TokenSpans) -> tuple[Floats, Weighted]:
    """Return the same for simulated requests: every gap is counted, by its weight."""
    streaming = columns.tokens > 1
    starts, ends = np.sort(columns.first_s[streaming]), np.sort(columns.last_s[streaming])
    gaps, middle = spans.gaps()
    inside = (middle >= window.begin_s) & (middle <= window.end_s)
    middle = middle[inside]
    active = np.searchsorted(starts, middle, side="right") - np.searchsorted(ends, middle, side="left")
    return active.astype(np.float64), Weighted(gaps.values[inside], gaps.weights[inside])


def _bins(largest: float) -> Floats:
    """Return the edges of the batch size bins, of equal ratio down from the largest; small sizes have one bin each.

    >>> [float(edge) for edge in _bins(16).round(1)]
    [0.5, 1.5, 2.5, 3.5, 4.5, 5.4, 6.8, 8.4, 10.6, 13.2, 16.5]
    """
    own = np.arange(0.5, min(OWN_BIN_BELOW, largest) + 1.0)
    if largest <= OWN_BIN_BELOW:
        return own
    count = 1 + int(np.log((largest + 0.5) / own[-1]) / np.log(BIN_RATIO))
    wider = (largest + 0.5) / BIN_RATIO ** np.arange(count)
    return _distinct(np.concatenate([own, wider]))


def _points_of_gaps(batches: Floats, gaps: Weighted) -> list[BatchPoint]:
    place = np.digitize(batches, _bins(float(batches.max())))
    order = np.argsort(place, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(place[order])) + 1)
    points = []
    for group in groups:
        own = Weighted(gaps.values[group], gaps.weights[group])
        count = int(own.weights.sum())
        if count >= MIN_GAPS:
            p50, p95 = bootstrap.quantiles_of_weighted(own.sorted(), [0.5, 0.95])
            mean, batch = np.average(own.values, weights=own.weights), np.average(batches[group], weights=own.weights)
            points.append(BatchPoint(batch=float(batch), count=count, mean_s=float(mean), p50_s=p50, p95_s=p95))
    return points


def _steps(window: Window, samples: Samples, time_scale: float) -> tuple[Floats, Floats, Floats] | None:
    """Return, for each pair of samples of a page: batch size, iterations between them, engine seconds per iteration.

    An emulated engine reports the duration of its steps. For others, the time between the samples is divided by the
    iterations in it, if sequences were decoding at both: the engine was not idle then.
    """
    is_emulated = "emulated_step_s" in samples.values
    counter = samples.values.get("emulated_steps" if is_emulated else "iterations")
    decoding = samples.values.get("decoding")
    if counter is None or decoding is None:
        return None
    spent = samples.values["emulated_step_s"] if is_emulated else samples.t_s
    found = []
    for page in sorted(set(samples.page.tolist())):
        here = np.flatnonzero((samples.page == page) & (samples.t_s >= window.begin_s) & (samples.t_s <= window.end_s))
        here = here[np.isfinite(counter[here]) & np.isfinite(decoding[here])]
        found += _steps_of_page(counter[here], decoding[here], spent[here] / time_scale)
    if not found:
        return None
    batch, steps, each_s = np.array(found).T
    return batch, steps, each_s


def _steps_of_page(counter: Floats, decoding: Floats, spent_s: Floats) -> list[tuple[float, float, float]]:
    """Return batch size, iterations and seconds of each, over spans in which the engine was never idle.

    A span ends at the first sample with at least MIN_STEPS more iterations than its start: two samples within one
    iteration do not show its duration.
    """
    found, begin = [], 0
    for end in range(1, len(counter)):
        steps = counter[end] - counter[begin]
        if steps < 0 or decoding[end] <= 0:  # the server restarted, or was idle
            begin = end
        elif steps >= MIN_STEPS:
            if decoding[begin] > 0:
                batch = float(decoding[begin : end + 1].mean())
                found.append((batch, float(steps), float(spent_s[end] - spent_s[begin]) / float(steps)))
            begin = end
    return found


def _points_of_steps(batches: Floats, steps: Floats, each_s: Floats) -> list[BatchPoint]:
    place = np.digitize(batches, _bins(float(batches.max())))
    points = []
    for bin_ in sorted(set(place.tolist())):
        here = place == bin_
        weight = steps[here]
        points.append(
            BatchPoint(
                batch=float(np.average(batches[here], weights=weight)),
                count=float(weight.sum()),
                mean_s=float(np.average(each_s[here], weights=weight)),
            )
        )
    return points


def _disagreement(reconstructed: list[BatchPoint], server: list[BatchPoint]) -> float | None:
    """Return the difference between records and server, over the batch sizes that both have."""
    if not reconstructed or not server:
        return None
    known = [point.batch for point in reconstructed]
    shared = [point for point in server if known[0] - 0.5 <= point.batch <= known[-1] + 0.5]
    if not shared:
        return None
    means = np.interp([point.batch for point in shared], known, [point.mean_s for point in reconstructed])
    off = [abs(mean - point.mean_s) / point.mean_s for mean, point in zip(means, shared, strict=True)]
    return float(np.average(off, weights=[point.count for point in shared]))


def _distinct(values: Floats) -> Floats:
    """Return the sorted distinct values; `np.unique` would import masked arrays, 0.05 s."""
    ordered = np.sort(values)
    found: Floats = ordered[np.concatenate([[True], np.diff(ordered) > 0])]
    return found


def _weighted_percentile(values: Ints | Floats, weights: Floats, share: float) -> float:
    """Return the smallest value whose cumulative weight reaches this share."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    position = int(np.searchsorted(reached, share * reached[-1]))
    return float(values[order][min(position, len(values) - 1)])
