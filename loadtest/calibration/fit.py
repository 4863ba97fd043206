"""Fits a deployment's parameters to its measured points, by least squares over simulations of the points."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from engines.errors import MissingError
from loadtest.calibration.measured_points import Point
from loadtest.calibration.parameters import PARAMETERS, Array
from loadtest.calibration.posterior import mean_logs
from loadtest.calibration.trial import FitContext, Trial, differences_of

# Assumed measurement noise of tokens/s, ITL and TTFT, as standard deviations of the logarithm.
SIGMA = (0.03, 0.03, 0.12)
MOVED_RATIO = 0.1  # of the prior's spread: differences are computed again after a parameter has moved this far
# Half the sum of squared residuals, in standard deviations. A fit ends when its next step would gain less than this: no
# parameter would move by more than a third (the square root of 2 * 0.05) of its own standard deviation.
NEGLIGIBLE_GAIN = 0.05
# A fit also ends after this many trials in a row that gained less: figures jump by whole iterations.
FRUITLESS_TRIALS = 3
MAX_STDDEVS = 4.0  # standard deviations from the prior's mean; beyond this is not physical


class Fitted(NamedTuple):
    """The result of a fit.

    Attributes:
        logs: Logarithms of the most probable parameters; shape (P,).
        covariance: Covariance of `logs`; shape (P, P).
        cost: Half the sum of squared residuals, with large ones damped.
        seen: Logarithms of the points' predicted tokens/s, ITL and TTFT; shape (points, 3).
        slopes: Their derivatives for the same iterations; shape (points, 3, P).
        stated: Logarithms of the parameters that a calibration states and predicts with; see `mean_logs`.
    """

    logs: Array
    covariance: Array
    cost: float
    seen: Array
    slopes: Array
    stated: Array


def fit(
    context: FitContext,
    points: Sequence[Point],
    *,
    trials: int = 15,
    start: Array | None = None,
    known: Known | None = None,
    cost_to_beat: float = math.inf,
) -> Fitted:
    """Find the parameters that explain the points best, and the means of all that explain them.

    Args:
        start: Starting point. None: the prior's mean.
        known: A fit of the same context, whose points are not simulated again with its result.
        trials: Maximum number of parameter vectors.
        cost_to_beat: The fit ends, already before its first step, where even twice the next step's expected gain would
            not reach this cost.

    Raises:
        MissingError: SciPy is not installed.
    """
    try:
        from scipy.optimize import least_squares  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise MissingError("calibration needs scipy", hint="pip install 'engine-to-capacity[load]'") from error
    work, prior = _Work(context, points, known), context.prior
    upper = np.log([parameter.upper for parameter in PARAMETERS])

    def residuals(shift: Array) -> Array:
        found = work.residuals(prior.expected + shift)
        if work.is_fruitless():
            raise StopIteration
        return found

    def stop_early(intermediate_result: Any) -> None:
        gain = work.expected_gain(prior.expected + intermediate_result.x)
        if gain < NEGLIGIBLE_GAIN or intermediate_result.cost - 2 * gain > cost_to_beat:
            raise StopIteration

    begin = np.zeros_like(prior.expected) if start is None else start - prior.expected
    with contextlib.suppress(StopIteration):
        residuals(begin)
        if work.trials[0][0] - 2 * work.expected_gain(prior.expected + begin) > cost_to_beat:
            raise StopIteration
        least_squares(
            residuals,
            begin,
            jac=lambda shift: work.jacobian(prior.expected + shift),
            bounds=(-MAX_STDDEVS * prior.spread, np.minimum(MAX_STDDEVS * prior.spread, upper - prior.expected)),
            x_scale=prior.spread,
            loss="soft_l1",
            max_nfev=trials,
            callback=stop_early,
        )
    cost, logs = min(work.trials, key=lambda trial: trial[0])
    slope = work.jacobian(logs)
    covariance = np.asarray(np.linalg.inv(slope.T @ slope), dtype=np.float64) * max(1.0, work.misfit(logs))
    stated = mean_logs(logs, work.residuals(logs), slope, np.array(SIGMA))
    return Fitted(logs, covariance, cost, work.seen(logs), work.own_slopes(logs), stated)


class Known(NamedTuple):
    """A finished fit, and its points."""

    points: Sequence[Point]
    fitted: Fitted


def load_key(point: Point) -> tuple[object, ...]:
    """Return what the simulation of a point depends on."""
    return point.offered, point.arrivals_s


def load_places(points: Sequence[Point]) -> dict[tuple[object, ...], int]:
    """Return the place of each load, by its key, among the different loads of points, in their order."""
    return {key: place for place, key in enumerate(dict.fromkeys(map(load_key, points)))}


@dataclass(slots=True)
class _Work:
    """Residuals of points and prior; each parameter vector is simulated once, and points of the same load together.

    Attributes:
        trials: Cost and parameters of each vector tried: half the sum of squares, with large ones damped (soft_l1).
    """

    context: FitContext
    points: Sequence[Point]
    known: Known | None = None
    trials: list[tuple[float, Array]] = field(default_factory=list)
    _loads: list[Point] = field(init=False)  # one point of each load
    _load_of: list[int] = field(init=False)  # by point, its place there
    _known_as: dict[int, int] = field(init=False)  # by load, a known point of that load
    _seen: dict[bytes, Array] = field(default_factory=dict)
    _own_slopes: dict[bytes, Array] = field(default_factory=dict)
    _slopes: dict[bytes, Array] = field(default_factory=dict)
    _simulated: tuple[bytes, dict[int, Trial]] = (b"", {})  # the latest vector, and by load its simulations
    _latest: tuple[Array, Array] | None = None

    def __post_init__(self) -> None:
        """Find the points that were measured under the same load, and the loads that are known."""
        keys, places = [load_key(point) for point in self.points], load_places(self.points)
        self._load_of = [places[key] for key in keys]
        self._loads = [self.points[keys.index(key)] for key in places]
        known = enumerate(map(load_key, self.known.points if self.known is not None else ()))
        self._known_as = {places[key]: number for number, key in known if key in places}

    def residuals(self, logs: Array) -> Array:
        """Return residuals in standard deviations: of the points, then of the prior."""
        is_new = logs.tobytes() not in self._seen
        found = self._residuals(logs)
        if is_new:
            self.trials.append((float(np.sum(np.sqrt(1 + found**2) - 1)), logs.copy()))
        return found

    def is_fruitless(self) -> bool:
        """Whether the latest trials gained next to nothing over those before them."""
        before = self.trials[:-FRUITLESS_TRIALS]
        costs = [min(cost for cost, _ in trials) for trials in (before, self.trials) if trials]
        return len(costs) > 1 and costs[0] - costs[1] < NEGLIGIBLE_GAIN

    def jacobian(self, logs: Array) -> Array:
        """Return the residuals' derivatives."""
        key = logs.tobytes()
        if key not in self._slopes:
            slopes = self.own_slopes(logs) + self._differenced(logs)
            self._slopes[key] = np.nan_to_num(self._mask()[:, :, None] * slopes / np.array(SIGMA)[:, None])
        return np.concatenate([self._slopes[key].reshape(-1, len(logs)), np.diag(1 / self.context.prior.spread)])

    def expected_gain(self, logs: Array) -> float:
        """Return by how much a whole Gauss-Newton step from here would reduce the cost, were all residuals linear."""
        residuals, slopes = self._residuals(logs), self.jacobian(logs)
        weights = 1 / np.sqrt(1 + residuals**2)  # of soft_l1
        gradient = slopes.T @ (weights * residuals)
        return float(gradient @ np.linalg.solve(slopes.T @ (weights[:, None] * slopes), gradient)) / 2

    def seen(self, logs: Array) -> Array:
        """Return the points' predictions; shape (points, 3)."""
        key = logs.tobytes()
        if key not in self._seen:
            self._seen[key] = self._of_loads(logs, Trial.logs, lambda fitted: fitted.seen)
        return self._seen[key]

    def own_slopes(self, logs: Array) -> Array:
        """Return the predictions' derivatives for the same iterations; shape (points, 3, P)."""
        key = logs.tobytes()
        if key not in self._own_slopes:
            self._own_slopes[key] = self._of_loads(logs, Trial.slopes, lambda fitted: fitted.slopes)
        return self._own_slopes[key]

    def _of_loads(self, logs: Array, of_trial: Callable[[Trial], Array], of_points: Callable[[Fitted], Array]) -> Array:
        """Return a quantity by point: a known point's, or that of its load's simulation."""
        trials = self._trials(logs)
        known = () if self.known is None else of_points(self.known.fitted)
        rows = [
            of_trial(trials[place]) if place in trials else known[self._known_as[place]]
            for place in range(len(self._loads))
        ]
        return np.array(rows)[self._load_of]

    def _trials(self, logs: Array) -> dict[int, Trial]:
        """Return the simulations of the loads that are not known, by load; only the latest are kept."""
        key = logs.tobytes()
        if self._simulated[0] != key:
            is_known = self.known is not None and key == self.known.fitted.logs.tobytes()
            known = self._known_as if is_known else {}
            self._simulated = b"", {}  # not two at a time
            self._simulated = (
                key,
                {
                    place: Trial(self.context, point, logs, keep_steps=True)
                    for place, point in enumerate(self._loads)
                    if place not in known
                },
            )
        return self._simulated[1]

    def _differenced(self, logs: Array) -> Array:
        """Return the derivatives that need further simulations; cached until the parameters have moved enough."""
        if self._latest is None or np.any(np.abs(logs - self._latest[0]) > MOVED_RATIO * self.context.prior.spread):
            seen = self.seen(logs)
            rows = [
                differences_of(self.context, point, logs, seen[self._load_of.index(place)])
                for place, point in enumerate(self._loads)
            ]
            self._latest = logs.copy(), np.array(rows)[self._load_of]
        return self._latest[1]

    def _residuals(self, logs: Array) -> Array:
        prior = self.context.prior
        return np.concatenate([self._of_points(logs), (logs - prior.expected) / prior.spread])

    def misfit(self, logs: Array) -> float:
        """Return the mean squared residual of the points, with large ones damped."""
        squares = self._of_points(logs) ** 2
        return float(np.sum(2 * (np.sqrt(1 + squares) - 1)) / max(1, np.count_nonzero(squares)))

    def _of_points(self, logs: Array) -> Array:
        wanted = np.array([point.logs for point in self.points])
        return np.asarray(np.nan_to_num((self.seen(logs) - wanted) / np.array(SIGMA)).ravel())

    def _mask(self) -> Array:
        return np.where(np.isnan([point.logs for point in self.points]), 0.0, 1.0)
