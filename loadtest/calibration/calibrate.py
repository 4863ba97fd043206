"""Calibration: the fit to all points, its confidence, and the errors on shapes held out of it."""

from __future__ import annotations

import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, as_completed
from contextlib import closing
from typing import Any

import numpy as np

from engines.calibration import (
    QUANTITIES,
    Alternative,
    Calibration,
    EngineLimits,
    FittedParameter,
    HeldOut,
    PointResidual,
    Quantity,
)
from engines.console import time_left_text
from engines.errors import UserError
from engines.files import Document
from engines.spec import SPLIT, Waves
from engines.worker_pool import WorkerPool
from loadtest.calibration.fit import SIGMA, Fitted
from loadtest.calibration.measured_points import Point
from loadtest.calibration.parameters import (
    PARAMETERS,
    UNIDENTIFIED_RATIO,
    Array,
    Prior,
    factors_of,
    host_of,
)
from loadtest.calibration.structures import Request, Structure, fit_best, predicted_logs

MIN_POINTS = 6
_CONFIDENCE_95 = 1.96


def calibrate(
    request: Request,
    *,
    head: Document,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> Calibration:
    """Return the calibration of a deployment.

    Raises:
        UserError: There are too few points.
        MissingError: SciPy, or the step-time source's tables, are not installed.
    """
    points = request.points
    if len(points) < MIN_POINTS:
        raise UserError(
            f"{len(points)} measured points; at least {MIN_POINTS} are needed",
            hint="measure more levels of concurrency, preferably with two or more prompt lengths",
        )
    shapes = _shapes_to_hold(points)
    again = f", and {len(shapes)} times with one shape of prompt and reply left out" if shapes else ""
    progress(f"{len(points)} points; fitting them{again}")
    began_s = clock()
    with closing(WorkerPool(os.cpu_count() or 1, method="fork")) as pool:
        whole = pool.submit(fit_best, request, points)
        fits_without = {shape: pool.submit(_fit_without, request, shape) for shape in shapes}
        fits: list[Future[Any]] = [whole, *fits_without.values()]
        for done, _ in enumerate(as_completed(fits), start=1):
            progress(f"{done} of {len(fits)} fits done{time_left_text(done, len(fits), clock() - began_s)}")
        best, fitted, tried = whole.result()
        held_errors = {shape: found.result() for shape, found in fits_without.items()}
    progress(f"best: {best.words}")
    return _document(request, head, best, tried, fitted, held_errors)


def errors_of(seen: Array, points: Sequence[Point]) -> Array:
    """Return relative errors, predicted / measured - 1; shape (points, 3); nan where nothing was measured."""
    return np.asarray(np.expm1(seen - np.array([point.logs for point in points])))


def _fit_without(request: Request, shape: tuple[int, int]) -> Array:
    """Return errors on the points of one shape, predicted by a fit to all others that chooses its own structure."""
    kept = [point for point in request.points if point.shape != shape]
    best, found, _ = fit_best(request, kept)
    left_out = [point for point in request.points if point.shape == shape]
    return errors_of(predicted_logs(request, best, found.stated, left_out), left_out)


def _shapes_to_hold(points: Sequence[Point]) -> list[tuple[int, int]]:
    """Return the shapes to hold out in turn: those whose absence leaves another shape and enough points."""
    shapes = sorted({point.shape for point in points})
    if len(shapes) == 1:
        return []
    return [shape for shape in shapes if sum(point.shape != shape for point in points) >= MIN_POINTS]


def _document(
    request: Request,
    head: Document,
    best: Structure,
    tried: dict[Structure, Fitted],
    fitted: Fitted,
    held_out_logs: dict[tuple[int, int], Array],
) -> Calibration:
    manifest, points = request.manifest, request.points
    errors = errors_of(predicted_logs(request, best, fitted.stated, points), points)
    prior = request.prior(best.waves)
    parameters = _parameters(fitted, request, best.waves)
    basis = np.concatenate(list(held_out_logs.values())) if held_out_logs else errors
    host = host_of(fitted.stated)
    drift = drift_between_repeats(points)
    return Calibration(
        made_by=head.made_by,
        made_from=head.made_from,
        measured_on="emulated" if request.measured_on == "emulated" else "measured",
        model=manifest.model.name,
        gpu=manifest.gpu.name,
        precision=manifest.precision.name,
        kv_cache=manifest.precision.kv_cache,
        tensor_parallel=manifest.parallel.tensor,
        source=manifest.step_time.source,
        kernels=best.kernels,
        engine=EngineLimits(
            max_batch_size=manifest.limits.max_batch_size,
            max_num_tokens=best.max_num_tokens,
            usable_kv_ratio=math.exp(fitted.stated[-1]),
        ),
        generator=request.generator,
        factors=factors_of(fitted.stated, best.waves, request.mixed_kv_reads),
        host=host,
        parameters=parameters,
        log_error=_with_drift(_log_error(basis, floor=(0.0, 0.0, 0.0) if held_out_logs else SIGMA), drift),
        log_error_of="held-out shapes" if held_out_logs else "fitted points",
        drift=drift,
        held_out=[_held_out(shape, found) for shape, found in held_out_logs.items()],
        points=[_residual(point, error) for point, error in zip(points, errors.tolist(), strict=True)],
        alternatives=[
            Alternative(
                max_num_tokens=each.max_num_tokens,
                wave_sequences=each.waves.sequences,
                wave_tail=factors_of(found.stated, each.waves).wave_tail,
                wave_reads=each.waves.reads,
                kernels=each.kernels,
                cost=found.cost,
            )
            for each, found in tried.items()
        ],
        prior=None if request.profile is None else request.profile.name,
        warnings=_warnings(request, parameters, _at_limit(fitted, prior), held_out_logs, tried),
    )


def _parameters(fitted: Fitted, request: Request, waves: Waves) -> list[FittedParameter]:
    """Return every parameter that has an effect, with its confidence interval."""
    prior = request.prior(waves)
    without = {"wave_tail"} if waves == SPLIT else set()
    without |= {"measured_rounds"} if request.generator.start == "staggered" else set()
    deviations = np.sqrt(np.diag(fitted.covariance))
    left = (deviations / prior.spread).tolist()
    expected = np.exp(prior.expected).tolist()
    stated = np.exp(fitted.stated).tolist()
    rows = zip(PARAMETERS, stated, fitted.logs.tolist(), deviations.tolist(), left, expected, strict=True)
    return [
        FittedParameter(
            name=parameter.name,
            value=value,
            low=math.exp(x - _CONFIDENCE_95 * deviation),
            high=math.exp(x + _CONFIDENCE_95 * deviation),
            expected=expected_value,
            identified=left < UNIDENTIFIED_RATIO,
            meaning=parameter.meaning,
        )
        for parameter, value, x, deviation, left, expected_value in rows
        if parameter.name not in without
    ]


def _log_error(errors: Array, *, floor: tuple[float, float, float]) -> dict[Quantity, float]:
    """Return the root mean square of ln(predicted / measured) for each measured quantity.

    Args:
        floor: Lower limits: with hardly more points than parameters, a fit's own residuals are too small.
    """
    logs = np.log1p(errors)
    return {
        name: max(floor[place], float(np.sqrt(np.nanmean(logs[:, place] ** 2))))
        for place, name in enumerate(QUANTITIES)
        if not np.all(np.isnan(logs[:, place]))
    }


def drift_between_repeats(points: Sequence[Point]) -> dict[Quantity, float]:
    """Return the standard deviation of ln(later / earlier) between measurements of the same load, by quantity.

    Two measurements of one load differ by twice the variance of either, sampling error and drift of the machine alike;
    the variances of all repeated loads are pooled. Empty if no load was measured more than once.
    """
    repeats: dict[tuple[str, int, int, int, float], list[tuple[float, float, float]]] = defaultdict(list)
    for point in points:
        repeats[point.offered].append(point.logs)
    groups = [np.array(each) for each in repeats.values() if len(each) > 1]
    found: dict[Quantity, float] = {}
    for place, name in enumerate(QUANTITIES):
        columns = [group[:, place][~np.isnan(group[:, place])] for group in groups]
        freedom = sum(max(0, len(column) - 1) for column in columns)
        if freedom:
            squares = sum(float(np.sum((column - column.mean()) ** 2)) for column in columns if len(column))
            found[name] = math.sqrt(2 * squares / freedom)
    return found


def _with_drift(log_error: dict[Quantity, float], drift: dict[Quantity, float]) -> dict[Quantity, float]:
    return {name: math.hypot(error, drift.get(name, 0.0)) for name, error in log_error.items()}


def _held_out(shape: tuple[int, int], errors: Array) -> HeldOut:
    size = np.abs(errors)
    means = [None if np.all(np.isnan(column)) else float(np.nanmean(column)) for column in size.T]
    ttft = None if means[2] is None else float(np.nanmedian(size[:, 2]))
    return HeldOut(isl=shape[0], osl=shape[1], points=len(errors), tokens_per_s=means[0], itl_s=means[1], ttft_s=ttft)


def _residual(point: Point, errors: Sequence[float]) -> PointResidual:
    tokens, itl, ttft = (None if math.isnan(error) else error for error in errors)
    return PointResidual(
        where=point.where,
        load=point.load,
        isl=point.isl,
        osl=point.osl,
        concurrency=point.concurrency,
        tokens_per_s_error=tokens,
        itl_s_error=itl,
        ttft_s_error=ttft,
    )


def _at_limit(fitted: Fitted, prior: Prior) -> set[str]:
    """Return the parameters whose most probable value is as far from what is expected as a fit may go."""
    far = np.abs(fitted.logs - prior.expected) > 3.9 * prior.spread
    return {parameter.name for parameter, is_far in zip(PARAMETERS, far.tolist(), strict=True) if is_far}


def _warnings(
    request: Request,
    parameters: Sequence[FittedParameter],
    at_limit: set[str],
    held_out_logs: dict[tuple[int, int], Array],
    tried: dict[Structure, Fitted],
) -> list[str]:
    unknown = [each.name for each in parameters if not each.identified]
    found = []
    if unknown:
        found.append(
            f"{len(unknown)} of {len(parameters)} parameters are not identified by the points: values come mostly "
            f"from what is expected ({', '.join(unknown)})"
        )
    found += [
        f"{each.name}: {each.value:.3g} is at its physical limit; the model lacks something this deployment does"
        for each in parameters
        if each.name in at_limit
    ]
    if not held_out_logs:
        found.append(
            f"no shape could be held out, which takes {MIN_POINTS} points of other shapes: error bars come from the "
            "fitted points and may be too narrow"
        )
    ranked = sorted(each.cost for each in tried.values())
    if len(ranked) > 1 and ranked[1] < ranked[0] * 1.05:
        found.append("another structure explains the points almost as well; see alternatives")
    if request.measured_on == "emulated":
        found.append("measured on an emulated engine: suitable for trials, not for capacity plans")
    return found
