"""Prediction intervals of uncalibrated predictions: the spread between deployments, applied to step and host times.

Queues are simulated with the slower or faster times and change accordingly; no factor is applied to a simulated TTFT.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from engines.manifest import StepTimeChoice
from engines.spec import EngineProfile, Host
from engines.steptime.scaled import uniform
from engines.steptime.shape import StepCost

INTERVAL_SHARE = 0.9
Z_95 = 1.645  # 95th percentile of the standard normal distribution: 90 % of it lies within as much on either side


class Slowdown(NamedTuple):
    """Ratios of actual to predicted durations, of an end of a prediction interval. Queueing is simulated.

    Attributes:
        step: Applied to everything that an iteration does on the GPU: kernels, the gaps between them, communication.
        host: Applied to host times of the engine's loop and its server, per iteration, request and token.
    """

    step: float = 1.0
    host: float = 1.0

    @property
    def is_uniform(self) -> bool:
        """Whether all parts slow down alike, so that a simulation of the middle serves it."""
        return self.step == self.host

    def parts(self, ratios: StepCost | None = None) -> StepCost:
        """Return the ratio on each part of a step's cost, times further ratios."""
        ratios = ratios or uniform(1.0)
        parts = StepCost._make([part * self.step for part in ratios])
        return parts._replace(host_s=ratios.host_s * self.host)

    def host_of(self, choice: StepTimeChoice) -> Host:
        """Return the slowed host times of an engine; zero if it has none."""
        return (choice.host or Host()).multiplied(self.host)


NONE = Slowdown()


class StepTimeInterval(NamedTuple):
    """The 90 % interval of a deployment's step and host times; 5 % lie beyond each end.

    Attributes:
        slow: The unfavourable end; `fast` is the favourable one.
        provenance: The basis of the interval, in one line.
    """

    slow: Slowdown
    fast: Slowdown
    provenance: str


def uncertainty(
    profile: EngineProfile, *, precision: str, load: Literal["served", "engine"] = "served"
) -> StepTimeInterval:
    """Return the interval of a deployment around an engine's profile."""
    spread = profile.spread(precision=precision, load=load)
    step, host = (math.exp(Z_95 * sd) for sd in (spread.step_log_sd, spread.host_log_sd))
    provenance = (
        f"spread of {spread.deployments} deployments of {spread.of or profile.name} "
        f"({spread.precision} weights, {spread.load}), each predicted from the others"
    )
    return StepTimeInterval(Slowdown(step, host), Slowdown(1 / step, 1 / host), provenance)
