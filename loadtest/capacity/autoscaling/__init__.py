"""Autoscalers simulated against the demand's day: control laws, the replicas' response, the comparison."""

from loadtest.capacity.autoscaling.comparison import (
    CheckedLaw,
    LawResult,
    ScalingComparison,
    ScalingInput,
    compare_laws,
    hardest_minutes,
)
from loadtest.capacity.autoscaling.fluid import Followed
from loadtest.capacity.autoscaling.replay import Replayed, ReplayTask, replay
from loadtest.capacity.autoscaling.response import ReplicaResponse

__all__ = [
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
