"""A run in virtual time: the virtual server and its predictions. May import `metrics`, `traffic` and below."""

from loadtest.simulate.energy import EnergyMeter, with_power_range
from loadtest.simulate.intervals import profile_ends, with_ends, with_intervals
from loadtest.simulate.predict import Prediction, at_once, bare, calibrated, like, predict, write_prediction
from loadtest.simulate.virtual_server import (
    TURNAROUND_S,
    Arrivals,
    Contents,
    Ended,
    Sent,
    Traffic,
    Users,
    VirtualServer,
)

__all__ = [
    "TURNAROUND_S",
    "Arrivals",
    "Contents",
    "Ended",
    "EnergyMeter",
    "Prediction",
    "Sent",
    "Traffic",
    "Users",
    "VirtualServer",
    "at_once",
    "bare",
    "calibrated",
    "like",
    "predict",
    "profile_ends",
    "with_ends",
    "with_intervals",
    "with_power_range",
    "write_prediction",
]
