"""Capacity planning: engine, replica count and cost for given traffic and objectives; verification of a plan."""

from loadtest.capacity.parallel import ResultCache, workers_of
from loadtest.capacity.plan import make_capacity
from loadtest.capacity.recalibrate import CALIBRATION_NAME, recalibrate, with_calibration
from loadtest.capacity.schema import PLAN_NAME, CapacityPlan
from loadtest.capacity.search import SearchOptions
from loadtest.capacity.sentences import impossible
from loadtest.capacity.verify import verify
from loadtest.capacity.what_if import COMPARED_NAME, Compared, WhatIf, compared, what_if

__all__ = [
    "CALIBRATION_NAME",
    "COMPARED_NAME",
    "PLAN_NAME",
    "CapacityPlan",
    "Compared",
    "ResultCache",
    "SearchOptions",
    "WhatIf",
    "compared",
    "impossible",
    "make_capacity",
    "recalibrate",
    "verify",
    "what_if",
    "with_calibration",
    "workers_of",
]
