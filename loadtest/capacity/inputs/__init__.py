"""Inputs of a plan: demand and prices. May import `scenario` and the rooms below."""

from loadtest.capacity.inputs.accuracy import EvaluatedEngines, PlanObjectives
from loadtest.capacity.inputs.autoscaling import Autoscaling
from loadtest.capacity.inputs.demand import (
    SMALL_GPUS,
    Availability,
    Demand,
    Described,
    MeasuredRun,
    PriceChoices,
    Routing,
    Scale,
    read_demand,
    smallest_tail_share,
)
from loadtest.capacity.inputs.money import Owned, Spot
from loadtest.capacity.inputs.prices import (
    HOURS_PER_MONTH,
    SECONDS_PER_MONTH,
    SLICES,
    Price,
    old_prices,
    prices_for,
    slices_without_price,
    times,
)

__all__ = [
    "HOURS_PER_MONTH",
    "SECONDS_PER_MONTH",
    "SLICES",
    "SMALL_GPUS",
    "Autoscaling",
    "Availability",
    "Demand",
    "Described",
    "EvaluatedEngines",
    "MeasuredRun",
    "Owned",
    "PlanObjectives",
    "Price",
    "PriceChoices",
    "Routing",
    "Scale",
    "Spot",
    "old_prices",
    "prices_for",
    "read_demand",
    "slices_without_price",
    "smallest_tail_share",
    "times",
]
