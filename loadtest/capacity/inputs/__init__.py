"""TODO."""

from loadtest.capacity.inputs.demand import (
    SMALL_GPUS,
    Autoscaling,
    Availability,
    Demand,
    Described,
    MeasuredRun,
    Routing,
    Scale,
    default_max_tokens,
    least_tail,
    read_demand,
)
from loadtest.capacity.inputs.prices import HOURS_PER_MONTH, Price, prices_for, times

__all__ = [
    "HOURS_PER_MONTH",
    "SMALL_GPUS",
    "Autoscaling",
    "Availability",
    "Demand",
    "Described",
    "MeasuredRun",
    "Price",
    "Routing",
    "Scale",
    "default_max_tokens",
    "least_tail",
    "prices_for",
    "read_demand",
    "times",
]
