"""Autoscalers simulated against the demand's day: control laws, the replicas' response, the comparison."""

from loadtest.capacity.autoscaling.comparison import (
    CheckedLaw,
    LawResult,
    ScalingComparison,
    ScalingInput,
    compare_laws,
    hardest_minutes,
)
from loadtest.capacity.autoscaling.fluid import MINUTE_STEPS, Followed
from loadtest.capacity.autoscaling.replay import Replayed, ReplayTask, replay
from loadtest.capacity.autoscaling.response import ReplicaResponse

__all__ = [
    "MINUTE_STEPS",
    "CheckedLaw",
    "Followed",
    "LawResult",
    "ReplayTask",
    "Replayed",
    "ReplicaResponse",
    "ScalingComparison",
    "ScalingInput",
    "compare_laws",
    "hardest_minutes",
    "replay",
]
