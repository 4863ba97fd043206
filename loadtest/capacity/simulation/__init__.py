"""Simulation of replicas and fleets under the demand's traffic, in virtual time."""

from loadtest.capacity.simulation.demand_requests import mean_turns
from loadtest.capacity.simulation.fleet import Fleet, Replica, Router, hand_over, new_replica
from loadtest.capacity.simulation.fleet_checks import (
    Checked,
    FleetSize,
    FleetTask,
    FleetVerdict,
    SizeTask,
    What,
    check,
    minutes_of,
    smallest_fleet,
)
from loadtest.capacity.simulation.length_profile import LengthProfile, shape_of
from loadtest.capacity.simulation.load_bench import Interval, LoadBench, Task, steady_state
from loadtest.capacity.simulation.max_rate import (
    Carried,
    Constraint,
    RateProbe,
    ReplicaCapacity,
    figures_of,
    max_rate_of,
    relieved,
    sweep_rates,
)
from loadtest.capacity.simulation.observations import Observations
from loadtest.capacity.simulation.rate_curve import SLOT_S, RateCurve, busiest_window, curve_of
from loadtest.capacity.simulation.replica import sent_of
from loadtest.capacity.simulation.traffic_sample import LEAD_RATIO, TrafficSample, requests_needed

__all__ = [
    "LEAD_RATIO",
    "SLOT_S",
    "Carried",
    "Checked",
    "Constraint",
    "Fleet",
    "FleetSize",
    "FleetTask",
    "FleetVerdict",
    "Interval",
    "LengthProfile",
    "LoadBench",
    "Observations",
    "RateCurve",
    "RateProbe",
    "Replica",
    "ReplicaCapacity",
    "Router",
    "SizeTask",
    "Task",
    "TrafficSample",
    "What",
    "busiest_window",
    "check",
    "curve_of",
    "figures_of",
    "hand_over",
    "max_rate_of",
    "mean_turns",
    "minutes_of",
    "new_replica",
    "relieved",
    "requests_needed",
    "sent_of",
    "shape_of",
    "smallest_fleet",
    "steady_state",
    "sweep_rates",
]
