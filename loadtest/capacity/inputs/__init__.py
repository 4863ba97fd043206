"""TODO."""

from loadtest.capacity.inputs.demand import (
    Autoscaling,
    Availability,
    Demand,
    Described,
    MeasuredRun,
    Routing,
    Scale,
    least_tail,
    read_demand,
)
from loadtest.capacity.inputs.prices import HOURS_PER_MONTH, Price, prices_for, times

__all__ = [
    "HOURS_PER_MONTH",
    "Autoscaling",
    "Availability",
    "Demand",
    "Described",
    "MeasuredRun",
    "Price",
    "Routing",
    "Scale",
    "least_tail",
    "prices_for",
    "read_demand",
    "times",
]
