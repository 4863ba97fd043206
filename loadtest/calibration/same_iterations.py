"""What points would show near a simulated parameter vector, if the iterations stayed the same: no simulation needed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from loadtest.calibration.parameters import PARAMETERS, Array, Prior
from loadtest.calibration.posterior import FACTORS, TURN

# Parameters in which durations are linear, those of the requests' way as far as nothing is known against it.
LINEAR = FACTORS | np.isin([each.name for each in PARAMETERS], ["request_s", "latency_s", "stream_token_s"])
LEAST_RATIO = 1e-3  # of a duration to the simulated one


@dataclass(frozen=True, slots=True)
class SameIterations:
    """A model of the residuals, exact as long as the iterations are those of one simulated parameter vector.

    Durations are linear in the factors and host times, so their logarithms are not: a host time of any small size
    takes no time, and a large one takes all of it. Gauss-Newton steps, linear in the logarithms, know neither.

    Attributes:
        at: The simulated parameters; shape (P,).
        residuals: There, in standard deviations: three of each point; shape (points, 3).
        slopes: Derivatives of `residuals` by the parameters; shape (points, 3, P).
        noise: Standard deviations of the points' logarithms; shape (points, 3).
    """

    at: Array
    residuals: Array
    slopes: Array
    noise: Array
    prior: Prior

    def minimum(self, lower: Array, upper: Array) -> tuple[float, Array]:
        """Return the least cost between limits, as `soft_l1` has it, and its parameters."""
        from scipy.optimize import least_squares  # noqa: PLC0415 (an extra; `fit` says so if it is missing)

        found = least_squares(
            lambda logs: self._expected(logs)[0],
            np.clip(self.at, lower, upper),
            jac=lambda logs: self._expected(logs)[1],
            bounds=(lower, upper),
            x_scale=self.prior.spread,
            loss="soft_l1",
        )
        return float(found.cost), found.x

    def _expected(self, logs: Array) -> tuple[Array, Array]:
        """Return the residuals of points and prior, and their derivatives."""
        shift = logs - self.at
        times = np.exp(shift)
        unit = -TURN / self.noise  # a longer duration, in standard deviations
        shares = self.slopes * LINEAR / unit[:, :, None]
        longer = np.maximum(LEAST_RATIO, 1 + shares @ (times - 1))
        others = self.slopes * ~LINEAR
        residuals = self.residuals + unit * np.log(longer) + others @ shift
        slopes = unit[:, :, None] * shares * times / longer[:, :, None] + others
        spread = self.prior.spread
        return (
            np.concatenate([residuals.ravel(), (logs - self.prior.expected) / spread]),
            np.concatenate([slopes.reshape(-1, len(logs)), np.diag(1 / spread)]),
        )
