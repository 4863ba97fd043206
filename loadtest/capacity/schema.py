"""The schema of `capacity.json`: the plan of a demand and the facts of its traffic."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from engines.autoscaling import PLAN_AGAIN
from engines.files import Document, Strict, require_schema
from engines.manifest import EngineManifest
from loadtest.capacity.autoscaling import ScalingComparison
from loadtest.capacity.day import Day
from loadtest.capacity.decision import Row
from loadtest.capacity.inputs import Demand
from loadtest.capacity.money import Money
from loadtest.capacity.pareto import Point
from loadtest.capacity.payoff import SpeculationPayoff
from loadtest.capacity.sensitivity import Case
from loadtest.capacity.simulation import Checked, RateProbe

PLAN_NAME = "capacity.json"
# 3 wrote kv_most, most_replicas and is_least for kv_max, max_replicas and is_lower_bound. 2 had the day of an
# autoscaler that followed the request rate, and a fleet on its steepest ramp.
PLAN_SCHEMA = 4


class TrafficFacts(Strict):
    """The demand's traffic in numbers.

    Attributes:
        peak_per_s: Today's peak, mean of the busiest `peak_window_s`; `planned_peak_per_s` is grown to the horizon,
            `hour_per_s` is today's mean of the busiest hour.
        is_day: Whether the curve covers a whole day.
    """

    peak_per_s: float
    hour_per_s: float
    planned_peak_per_s: float
    mean_per_s: float
    growth: float
    is_day: bool
    mean_isl: float
    mean_osl: float
    longest_isl: int
    longest_osl: int
    max_tokens: int
    tokens_per_month: float


class CapacityPlan(Document):
    """`capacity.json`.

    Attributes:
        recommended: Name of a row; None if no row is possible, and `nearest` states what would be.
        fleets: Simulations of the recommended replicas together; empty if the row is a measured run.
        day: Rates of the planned day, and the recommended row's replicas that carry them.
        scaling: Control laws of an autoscaler, compared for the recommended row; None if one replica carries all, or if
            the row is a measured run.
        autoscaled_usd_per_month: Cost of the recommended law's replicas; None without a law or a price, or if the
            traffic does not cover a whole day.
        sweep: The recommended replica at lower and higher loads.
        max_queue_size: Maximum queued requests per replica, as deployed and as simulated; 0: no limit.
        warnings: Old prices, and smaller GPUs that were not tried because they have no price.
        max_tokens_note: Effect of a lower `max_tokens`; None if none was tried, or its replica carries no load.
        smaller_gpu: A cheaper GPU outside the demand's limits that would carry the demand, if any.
        operating_per_s: Load of each replica at the peak with the spares lost; `operating` has its figures there at the
            unfavourable end of the prediction, `operating_middle` at its middle.
        engine: Manifest of the recommended engine; None for a measured run.
        speculation: Up to which batch size each kind of speculation pays; empty if none is a candidate.
        money: Energy and money of the recommended row; None in plans of earlier versions.
    """

    schema_version: int = Field(default=PLAN_SCHEMA, alias="schema")
    demand: Demand
    traffic: TrafficFacts
    rows: list[Row]
    recommended: str | None
    sentence: str | None
    nearest: str | None
    fleets: tuple[Checked, ...] = ()
    day: Day | None = None
    autoscaled_usd_per_month: float | None = None
    scaling: ScalingComparison | None = None
    sweep: tuple[RateProbe, ...] = ()
    frontier: tuple[Point, ...] = ()
    sensitivity: tuple[Case, ...] = ()
    max_queue_size: int = 0
    warnings: tuple[str, ...] = ()
    max_tokens_note: str | None = None
    smaller_gpu: str | None = None
    operating_per_s: float | None = None
    operating: RateProbe | None = None
    operating_middle: RateProbe | None = None
    engine: EngineManifest | None = None
    speculation: tuple[SpeculationPayoff, ...] = ()
    money: Money | None = None

    @model_validator(mode="before")
    @classmethod
    def _current(cls, values: Any) -> Any:
        require_schema(values, PLAN_SCHEMA, again=PLAN_AGAIN)
        return values

    @property
    def chosen(self) -> Row | None:
        """The recommended row."""
        return next((row for row in self.rows if row.name == self.recommended), None)
