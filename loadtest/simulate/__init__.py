"""TODO."""

from loadtest.simulate.predict import at_once, bare, calibrated, like, predict, with_intervals, write_prediction
from loadtest.simulate.virtual_server import TURNAROUND_S, Arrivals, Ended, Sent, Users, VirtualServer

__all__ = [
    "TURNAROUND_S",
    "Arrivals",
    "Ended",
    "Sent",
    "Users",
    "VirtualServer",
    "at_once",
    "bare",
    "calibrated",
    "like",
    "predict",
    "with_intervals",
    "write_prediction",
]
