"""Prediction intervals of uncalibrated predictions: the spread between deployments, applied to step and host times.

Queues are simulated with the slower or faster times and change accordingly; no factor is applied to a simulated TTFT.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from engines.manifest import StepTimeChoice
from engines.spec import EngineProfile, Factors, Host

INTERVAL_SHARE = 0.9
Z_95 = 1.645  # 95th percentile of the standard normal distribution: 90 % of it lies within as much on either side
_SECONDS = ("iteration_s", "sequence_s", "prompt_s", "draft_pass_s", "verify_s", "draft_prompt_s", "tree_s")
_RATIOS = ("weights_ratio", "gemm_ratio", "kv_ratio", "attention_ratio")


class StepTimeInterval(NamedTuple):
    """The 90 % interval of a deployment's step and host times, as ratios to the prediction; 5 % lie beyond each end.

    Attributes:
        step_low: Step times at the fast end; `step_high` at the slow end.
        host_low: Host times likewise.
        provenance: The basis of the interval, in one line.
    """

    step_low: float
    step_high: float
    host_low: float
    host_high: float
    provenance: str


def uncertainty(
    profile: EngineProfile, *, precision: str, load: Literal["served", "engine"] = "served"
) -> StepTimeInterval:
    """Return the interval of a deployment around an engine's profile."""
    spread = profile.spread(precision=precision, load=load)
    step, host = (math.exp(Z_95 * sd) for sd in (spread.step_log_sd, spread.host_log_sd))
    provenance = (
        f"{profile.name}: spread between {spread.deployments} deployments "
        f"({spread.precision} weights, {spread.load}), each predicted by the others"
    )
    return StepTimeInterval(1 / step, step, 1 / host, host, provenance)


def with_time_ratios(choice: StepTimeChoice, *, step_ratio: float, host_ratio: float) -> StepTimeChoice:
    """Return a choice with its step times and host times multiplied by ratios."""
    factors = choice.factors or Factors()
    changed = {name: getattr(factors, name) * step_ratio for name in _RATIOS}
    changed |= {name: getattr(factors, name) * host_ratio for name in _SECONDS}
    return choice.model_copy(
        update={
            "factors": factors.model_copy(update=changed),
            "host": (choice.host or Host()).multiplied(host_ratio),
        }
    )
