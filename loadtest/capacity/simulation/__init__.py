"""TODO."""

from loadtest.capacity.simulation.fleet_checks import Checked, FleetTask, What, check, ramp_of
from loadtest.capacity.simulation.max_rate import (
    Constraint,
    RateProbe,
    ReplicaCapacity,
    Task,
    figures_of,
    most_of,
    swept,
)
from loadtest.capacity.simulation.replica import NONE, Pessimism
from loadtest.capacity.simulation.traffic_sample import (
    LEAD_RATIO,
    SLOT_S,
    LengthProfile,
    RateCurve,
    busiest_window,
    curve_of,
    mean_turns,
    requests_needed,
    shape_of,
)

__all__ = [
    "LEAD_RATIO",
    "NONE",
    "SLOT_S",
    "Checked",
    "Constraint",
    "FleetTask",
    "LengthProfile",
    "Pessimism",
    "RateCurve",
    "RateProbe",
    "ReplicaCapacity",
    "Task",
    "What",
    "busiest_window",
    "check",
    "curve_of",
    "figures_of",
    "mean_turns",
    "most_of",
    "ramp_of",
    "requests_needed",
    "shape_of",
    "swept",
]
