"""The parameters that a calibration states: means over all that its points leave possible.

A fit finds the most probable parameters. Durations are linear in the factors, so the mean of a duration over all
factors that explain the points is the duration by their means. Where the points leave the logarithm of a factor a
standard deviation of 1, its mean is 1.6 times its most probable value. Factors of which only a sum is known move
together, so that the sum stays.
"""

from __future__ import annotations

import numpy as np

from loadtest.calibration.parameters import PARAMETERS, Array

FACTORS = np.array([parameter.step and parameter.name != "wave_tail" for parameter in PARAMETERS])
# Durations are not linear in these: requests wait for each other. Waves and the cache's size keep their shape.
PATH = np.isin(
    [parameter.name for parameter in PARAMETERS], ["request_s", "latency_s", "stream_token_s", "measured_rounds"]
)
TURN = np.array([1.0, -1.0, -1.0])  # tokens/s are inverse to a duration; ITL and TTFT are durations


def mean_logs(logs: Array, residuals: Array, jacobian: Array, noise: Array) -> Array:
    """Return the logarithms of the factors' posterior means, and of the most probable path of requests given those.

    To second order around the most probable parameters. The second derivatives need no simulation: they follow from
    durations being linear in the factors.

    Args:
        logs: The most probable parameters; shape (P,).
        residuals: In standard deviations: three of each point, then the prior's; shape (3 points + P,).
        jacobian: Their derivatives by the parameters; shape (3 points + P, P).
        noise: Standard deviations of the logarithms of the points' tokens/s, ITL and TTFT; shape (3 points,).
    """
    measured, turn = slice(len(noise)), np.tile(TURN, len(noise) // 3)
    weights = 1 / np.sqrt(1 + residuals**2)  # of soft_l1
    slopes = jacobian[:, FACTORS]
    covariance = np.linalg.inv(slopes.T @ (weights[:, None] * slopes))
    slopes = slopes[measured]
    spread = slopes @ covariance
    own = turn * noise * np.sum(spread * slopes, axis=1)
    # A residual with derivatives s has the second derivatives diag(s) + turn * noise * s s^T; by them, the gradient of
    # the expected cost.
    gradient = weights[measured] @ (
        slopes * (slopes @ np.diag(covariance) + own)[:, None] + 2 * slopes * (spread + own[:, None])
    )
    shift = np.zeros_like(logs)
    shift[FACTORS] = (np.diag(covariance) - covariance @ gradient) / 2
    moved = residuals + jacobian @ shift
    longer = -turn * noise * (slopes @ np.expm1(shift[FACTORS]))  # durations, relative
    moved[measured] = residuals[measured] - turn * np.log1p(longer) / noise
    path, weights = jacobian[:, PATH], 1 / np.sqrt(1 + moved**2)
    shift[PATH] = -np.linalg.solve(path.T @ (weights[:, None] * path), path.T @ (weights * moved))
    return logs + shift
