"""Fits a deployment's parameters to its measured points, by least squares over simulations of the points."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np

from engines.errors import MissingError
from loadtest.calibration.measured_points import Point
from loadtest.calibration.parameters import PARAMETERS, Array
from loadtest.calibration.posterior import mean_logs
from loadtest.calibration.same_iterations import SameIterations
from loadtest.calibration.trial import FitContext, Observed, observe_smoothed

# Assumed measurement noise of tokens/s, ITL and TTFT, as standard deviations of the logarithm.
SIGMA = (0.03, 0.03, 0.12)
# Correlation between the errors of points of one shape: what a model lacks, it lacks at every load. By restricted
# maximum likelihood around fits to the two served tables; TTFT's, 0.06, is no better than none.
SHARED = (0.38, 0.47, 0.0)
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
        seen: Logarithms of the points' predicted tokens/s, ITL and TTFT; shape (points, 3); see `observe_smoothed`.
        slopes: Their derivatives; shape (points, 3, P).
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
        cost_to_beat: The fit ends, already before its first step, where neither twice the next step's expected gain
            nor half the cost expected after it would reach this cost.

    Raises:
        MissingError: SciPy is not installed.
    """
    if find_spec("scipy") is None:
        raise MissingError("calibration needs scipy", hint="pip install 'engine-to-capacity[load]'")
    work, prior = _Work(context, points, known), context.prior
    lower = prior.expected - MAX_STDDEVS * prior.spread
    upper = np.minimum(prior.expected + MAX_STDDEVS * prior.spread, np.log([each.upper for each in PARAMETERS]))
    logs = np.clip(prior.expected if start is None else start, lower, upper)
    costs: list[float] = []
    best, radius = logs, math.inf
    for _ in range(trials):
        costs.append(work.cost(logs))
        if costs[-1] == min(costs):
            best, radius = logs, 2 * radius
        else:  # the iterations have changed too much
            radius = float(np.max(np.abs(logs - best) / prior.spread)) / 2
        if _is_fruitless(costs):
            break
        reach = radius * prior.spread
        expected_cost, logs = work.model(best).minimum(np.maximum(lower, best - reach), np.minimum(upper, best + reach))
        gain = min(costs) - expected_cost
        if gain < NEGLIGIBLE_GAIN or max(expected_cost - gain, expected_cost / 2) > cost_to_beat:
            break
    slope = work.jacobian(best)
    covariance = np.asarray(np.linalg.inv(slope.T @ slope), dtype=np.float64) * max(1.0, work.misfit(best))
    stated = mean_logs(best, work.residuals(best), slope, work.noise.ravel())
    return Fitted(best, covariance, min(costs), *work.observed(best), stated)


def noise_of(points: Sequence[Point]) -> Array:
    """Return the noise of each point's tokens/s, ITL and TTFT, as standard deviations; shape (points, 3).

    It grows with the number of points of the same shape: together, n of them count as n / (1 + (n - 1) * `SHARED`). If
    there is no other shape, what the model lacks for this one is part of what the factors are to describe.
    """
    of_shape = Counter(point.shape for point in points)
    others = np.array([of_shape[point.shape] - 1 if len(of_shape) > 1 else 0 for point in points])
    return np.asarray(np.array(SIGMA) * np.sqrt(1 + others[:, None] * np.array(SHARED)))


def _is_fruitless(costs: list[float]) -> bool:
    """Whether the latest trials gained next to nothing over those before them."""
    before = costs[:-FRUITLESS_TRIALS]
    return bool(before) and min(before) - min(costs) < NEGLIGIBLE_GAIN


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
    """Residuals of points and prior; each parameter vector is simulated once, and points of the same load together."""

    context: FitContext
    points: Sequence[Point]
    known: Known | None = None
    noise: Array = field(init=False)
    _loads: list[Point] = field(init=False)  # one point of each load
    _load_of: list[int] = field(init=False)  # by point, its place there
    _known_as: dict[int, int] = field(init=False)  # by load, a known point of that load
    _observed: dict[bytes, Observed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the points that were measured under the same load, and the loads that are known."""
        self.noise = noise_of(self.points)
        keys, places = [load_key(point) for point in self.points], load_places(self.points)
        self._load_of = [places[key] for key in keys]
        self._loads = [self.points[keys.index(key)] for key in places]
        known = enumerate(map(load_key, self.known.points if self.known is not None else ()))
        self._known_as = {places[key]: number for number, key in known if key in places}

    def residuals(self, logs: Array) -> Array:
        """Return residuals in standard deviations: of the points, then of the prior."""
        prior = self.context.prior
        return np.concatenate([self._of_points(logs).ravel(), (logs - prior.expected) / prior.spread])

    def jacobian(self, logs: Array) -> Array:
        """Return the residuals' derivatives."""
        slopes = self._slopes_of_points(logs).reshape(-1, len(logs))
        return np.concatenate([slopes, np.diag(1 / self.context.prior.spread)])

    def cost(self, logs: Array) -> float:
        """Return half the sum of squared residuals, with large ones damped (soft_l1)."""
        return float(np.sum(np.sqrt(1 + self.residuals(logs) ** 2) - 1))

    def misfit(self, logs: Array) -> float:
        """Return the mean squared residual of the points, with large ones damped."""
        squares = self._of_points(logs) ** 2
        return float(np.sum(2 * (np.sqrt(1 + squares) - 1)) / max(1, np.count_nonzero(squares)))

    def model(self, logs: Array) -> SameIterations:
        """Return what to expect near a parameter vector."""
        return SameIterations(logs, self._of_points(logs), self._slopes_of_points(logs), self.noise, self.context.prior)

    def observed(self, logs: Array) -> Observed:
        """Return the points' predictions and derivatives; shapes (points, 3) and (points, 3, P)."""
        key = logs.tobytes()
        if key not in self._observed:
            known = self.known.fitted if self.known is not None and key == self.known.fitted.logs.tobytes() else None
            rows = [
                observe_smoothed(self.context, point, logs)
                if known is None or place not in self._known_as
                else Observed(known.seen[self._known_as[place]], known.slopes[self._known_as[place]])
                for place, point in enumerate(self._loads)
            ]
            seen, slopes = (np.array(each)[self._load_of] for each in zip(*rows, strict=True))
            self._observed[key] = Observed(seen, slopes)
        return self._observed[key]

    def _of_points(self, logs: Array) -> Array:
        wanted = np.array([point.logs for point in self.points])
        return np.asarray(np.nan_to_num((self.observed(logs).logs - wanted) / self.noise))

    def _slopes_of_points(self, logs: Array) -> Array:
        is_measured = ~np.isnan([point.logs for point in self.points])
        slopes = self.observed(logs).slopes / self.noise[:, :, None]
        return np.where(is_measured[:, :, None], np.nan_to_num(slopes), 0.0)
