"""Power and energy readings of each GPU, from a run's samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from loadtest.results import Floats, Sample, meanings_of, parse_series

QUANTITIES = ("gpu_energy_j", "gpu_power_w", "modelled_energy_j")
DCGM_BLANK = 2.0**62  # DCGM writes 2**63 - 16 and its neighbours for what a GPU does not support
_UUID_LABELS = ("UUID", "gpu_uuid")  # DCGM's exporter, Triton


class Meter(NamedTuple):
    """One series of readings of one GPU.

    Attributes:
        gpu: Its UUID; of a page without UUIDs, the page and the series.
        quantity: `gpu_energy_j` (a counter), `gpu_power_w`, or `modelled_energy_j` (predicted, emulated).
        t_s: Times of the readings; shape (readings,), as `values`.
    """

    gpu: str
    quantity: str
    t_s: Floats
    values: Floats


def meters_of(samples: Sequence[Sample], t_s: Floats) -> tuple[Meter, ...]:
    """Return the readings of each GPU.

    Several pages may show the same GPU, and a page may show it once for each of its slices: it is one meter for each
    quantity, the one with the most readings.

    Args:
        t_s: Time of each sample.
    """
    known: dict[str, tuple[str, float] | None] = {}
    rows: dict[tuple[int, str], tuple[list[float], list[float]]] = {}
    for sample, at_s in zip(samples, t_s.tolist(), strict=True):
        for series in sample.values.keys() - known.keys():
            known[series] = _meaning(series)
        for series, value in sample.values.items():
            meaning = known[series]
            if meaning is not None and np.isfinite(value) and value < DCGM_BLANK:
                times, values = rows.setdefault((sample.page, series), ([], []))
                times.append(at_s)
                values.append(value * meaning[1])
    best: dict[tuple[str, str], Meter] = {}
    for (page, series), (times, values) in sorted(rows.items()):
        meaning = known[series]
        assert meaning is not None
        meter = Meter(_gpu(page, series), meaning[0], np.array(times), np.array(values))
        other = best.get((meter.gpu, meter.quantity))
        if other is None or len(meter.t_s) > len(other.t_s):
            best[meter.gpu, meter.quantity] = meter
    return tuple(best.values())


def _meaning(series: str) -> tuple[str, float] | None:
    """Return the quantity and factor of a series of power or energy; None for any other."""
    meaning = meanings_of([series]).get(series)
    return None if meaning is None or meaning.quantity not in QUANTITIES else (meaning.quantity, meaning.factor)


def _gpu(page: int, series: str) -> str:
    parsed = parse_series(series)
    labels = {} if parsed is None else parsed[1]
    uuid = next((labels[name] for name in _UUID_LABELS if labels.get(name)), None)
    return uuid or f"page {page}: {series.partition('{')[2]}"
