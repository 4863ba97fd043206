"""Fitting the constants of a power prior, and predicting cases that the fit has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import least_squares

from engines.spec import PowerPrior, power_prior
from validation.energy.cases import EnergyCase, Measured, predicted_rates, watts

NAMES = ("base_ratio", "byte_j", "token_flops")
START = np.log([0.2, 1.0e-10, 5.0e10])
LOSS_SCALE = 0.1  # ln; beyond it a point counts linearly: two published points lie 25 % off all others


class Compared(NamedTuple):
    """A case with its watts, predicted by fits to other cases.

    Attributes:
        model_w: By the fit without the case's model.
        gpu_w: By the fit without the case's GPU.
        chain_w: As `model_w`, but with the step times of `predict-load`; None where those are not predicted.
        rates_per_s: Those tokens a second.
    """

    measured: Measured
    model_w: list[float]
    gpu_w: list[float]
    chain_w: list[float] | None
    rates_per_s: list[float] | None


def fitted(cases: Sequence[Measured]) -> PowerPrior:
    """Return the shipped prior with the constants that fit these cases best."""
    shipped = power_prior()

    def of(logs: np.ndarray) -> PowerPrior:
        return shipped.model_copy(update=dict(zip(NAMES, np.exp(logs).tolist(), strict=True)))

    def residuals(logs: np.ndarray) -> np.ndarray:
        prior = of(logs)
        return np.concatenate([errors(each, watts(each.case, each.points, prior)) for each in cases])

    return of(least_squares(residuals, START, loss="soft_l1", f_scale=LOSS_SCALE).x)


def errors(measured: Measured, predicted_w: Sequence[float]) -> np.ndarray:
    """Return ln(predicted / measured) watts of each point."""
    return np.log(np.asarray(predicted_w) / [point.power_w for point in measured.points])


def compare(cases: Sequence[Measured]) -> list[Compared]:
    """Return every case, predicted without its model and without its GPU."""
    by_model = _fits(cases, lambda case: case.model)
    by_gpu = _fits(cases, lambda case: case.gpu)
    return [_compared(each, by_model[each.case.model], by_gpu[each.case.gpu]) for each in cases]


def _fits(cases: Sequence[Measured], key: Callable[[EnergyCase], str]) -> dict[str, PowerPrior]:
    kept = {key(each.case) for each in cases}
    return {name: fitted([each for each in cases if key(each.case) != name]) for name in sorted(kept)}


def _compared(measured: Measured, without_model: PowerPrior, without_gpu: PowerPrior) -> Compared:
    case, points = measured.case, measured.points
    rates = predicted_rates(case)
    chain_w, rates_per_s = None, None
    if rates:
        near = [min(rates, key=lambda load, batch=point.batch: abs(load - batch)) for point in points]  # type: ignore[misc]
        rates_per_s = [rates[load] for load in near]
        moved = [point._replace(tokens_per_s=rate) for point, rate in zip(points, rates_per_s, strict=True)]
        chain_w = watts(case, moved, without_model)
    return Compared(
        measured, watts(case, points, without_model), watts(case, points, without_gpu), chain_w, rates_per_s
    )
