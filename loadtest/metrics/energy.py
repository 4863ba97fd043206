"""Energy of a measurement window: joules per token and per request, from readings of the GPUs or from a prediction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from loadtest.metrics.power_readings import Meter
from loadtest.metrics.steady_state import Window
from loadtest.metrics.summary import Energy
from loadtest.results import Floats, Kind

MIN_READINGS = 5  # of a power gauge in a window; a mean of fewer says little
# An exporter's page repeats a reading until its next collection: 30 s by default for DCGM's. A counter that moves less
# often than this many times in a window is off by up to a quarter of it.
MIN_UPDATES = 4
NO_METER = "no metrics page reports GPU power or energy; give a DCGM exporter's with --power-url"
NO_MODEL = (
    "no joules of the power model; it covers GPUs with a known board power, without speculative decoding, and an "
    "emulated engine states them on Triton's metrics page (--metrics-url)"
)


class _Watts(NamedTuple):
    watts: float
    method: str


def energy_of(
    meters: tuple[Meter, ...], window: Window, *, kind: Kind, time_scale: float, rates: Mapping[str, float | None]
) -> tuple[Energy | None, str | None]:
    """Return the energy of a window, or None and the reason why it is unknown.

    Args:
        kind: Of the run. A GPU's readings count in a measured run alone: a machine that emulates an engine may have a
            GPU, which serves nothing. The power model's count in the others.
        time_scale: Wall seconds per engine second.
        rates: Output tokens, input tokens and requests a second of the window, by their names in the summary.
    """
    is_modelled = kind != "measured"
    meters = tuple(each for each in meters if (each.quantity == "modelled_energy_j") == is_modelled)
    if not meters:
        return None, NO_MODEL if is_modelled else NO_METER
    found: list[_Watts] = []
    for gpu in sorted({each.gpu for each in meters}):
        of_gpu, reason = _watts_of([each for each in meters if each.gpu == gpu], window)
        if of_gpu is None:
            return None, f"{gpu}: {reason}" if kind == "measured" else reason
        found.append(of_gpu)
    power_w = sum(each.watts for each in found) * time_scale
    return (
        Energy(
            power_w=power_w,
            gpus=len(found) if kind == "measured" else None,
            j_per_output_token=_per(power_w, rates.get("output_tokens_per_s")),
            j_per_token=_per(power_w, _sum(rates.get("output_tokens_per_s"), rates.get("input_tokens_per_s"))),
            j_per_request=_per(power_w, rates.get("requests_per_s")),
            method=" and ".join(sorted({each.method for each in found})),
        ),
        None,
    )


def _watts_of(meters: list[Meter], window: Window) -> tuple[_Watts | None, str | None]:
    """Return a GPU's mean watts: from its energy counter if that covers the window, else from its power readings."""
    reason = None
    for meter in sorted(meters, key=lambda each: each.quantity == "gpu_power_w"):
        if meter.quantity == "gpu_power_w":
            watts, why = _mean_power(meter, window)
            method = "mean of power readings"
        else:
            watts, why = _counted(meter, window)
            method = "energy counter" if meter.quantity == "gpu_energy_j" else "power model"
        if watts is not None:
            return _Watts(watts, method), None
        reason = reason or why
    return None, reason


def _counted(meter: Meter, window: Window) -> tuple[float | None, str | None]:
    """Return the mean watts of an energy counter, read off linearly between its readings at both ends of a window."""
    t_s, joules = _updates(meter)
    inside = (t_s >= window.begin_s) & (t_s <= window.end_s)
    moved = int(inside.sum())
    if moved < MIN_UPDATES:
        needed = _needed(window, MIN_UPDATES, has_exporter=meter.quantity == "gpu_energy_j")
        return None, f"the energy counter moved {moved} time{'s' * (moved != 1)} in the window, {needed}"
    step_s = float(np.diff(t_s[inside]).max())
    if t_s[0] > window.begin_s + step_s or t_s[-1] < window.end_s - step_s:
        return None, "the energy counter was not read from the start of the window to its end"
    begin_s, end_s = max(window.begin_s, float(t_s[0])), min(window.end_s, float(t_s[-1]))
    if (np.diff(joules[(t_s >= begin_s - step_s) & (t_s <= end_s + step_s)]) < 0).any():
        return None, "the energy counter was reset within the window"
    begin_j, end_j = np.interp([begin_s, end_s], t_s, joules)
    return float((end_j - begin_j) / (end_s - begin_s)), None


def _mean_power(meter: Meter, window: Window) -> tuple[float | None, str | None]:
    """Return the time-weighted mean of the power readings in a window."""
    inside = (meter.t_s >= window.begin_s) & (meter.t_s <= window.end_s)
    t_s, watts = meter.t_s[inside], meter.values[inside]
    if not watts.any():
        return None, f"{len(t_s)} power readings in the window, none above zero"
    changed_s, _ = _updates(meter)
    fresh = int(((changed_s >= window.begin_s) & (changed_s <= window.end_s)).sum())
    if fresh < MIN_READINGS:
        return (
            None,
            f"{fresh} different power readings in the window, {_needed(window, MIN_READINGS, has_exporter=True)}",
        )
    joules = np.sum(np.diff(t_s) * (watts[1:] + watts[:-1]) / 2)  # numpy.trapezoid is not in NumPy 1
    return float(joules / (t_s[-1] - t_s[0])), None


def _updates(meter: Meter) -> tuple[Floats, Floats]:
    """Return the readings that differ from the one before."""
    is_new = np.diff(meter.values, prepend=np.nan) != 0
    return meter.t_s[is_new], meter.values[is_new]


def _needed(window: Window, required: int, *, has_exporter: bool) -> str:
    often = (
        f", or let the exporter collect at least every {window.length_s / (required + 1):.3g} s (DCGM's: "
        "--collect-interval, in ms)"
    )
    return f"at least {required} are needed: measure for longer{often if has_exporter else ''}"


def _per(power_w: float, rate_per_s: float | None) -> float | None:
    return power_w / rate_per_s if rate_per_s else None


def _sum(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first + second
