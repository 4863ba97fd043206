"""`capacity.json`: the plan of a demand, and the facts of its traffic."""

from __future__ import annotations

from engines.files import Document, Strict
from engines.manifest import EngineManifest
from loadtest.capacity.autoscaler import Day
from loadtest.capacity.decision import Row
from loadtest.capacity.inputs import Demand
from loadtest.capacity.pareto import Point
from loadtest.capacity.sensitivity import Case
from loadtest.capacity.simulation import Checked, RateProbe

PLAN_NAME = "capacity.json"


class TrafficFacts(Strict):
    """What the demand's traffic is, in numbers.

    Attributes:
        peak_per_s: Today's, mean of the busiest `peak_window_s`; `planned_peak_per_s` grown to the horizon, and
            `hour_per_s` today's mean of the busiest hour.
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
        recommended: Name of a row; None where nothing possible was found, and `nearest` says what would be.
        fleets: The recommended replicas simulated together; empty where the row is a measured run.
        day: Replicas over the day by an autoscaler, of the recommended row.
        autoscaled_usd_per_month: What they cost; None where the traffic is no whole day.
        sweep: The recommended replica at lower and higher loads.
        max_queue_size: Requests that may wait on each replica, as deployed and as simulated; 0: no limit.
        warnings: Of prices that are old.
        max_tokens_note: What a lower `max_tokens` would buy; None where nothing.
        smaller_gpu: A cheaper GPU outside the demand's limits that would hold it; None where there is none.
        operating_per_s: What each replica has to carry at the peak with the spares lost; `operating` what it shows
            there at the unfavourable end of the prediction, `operating_middle` at its middle.
        engine: Manifest of the recommended engine; None of a measured run.
    """

    demand: Demand
    traffic: TrafficFacts
    rows: list[Row]
    recommended: str | None
    sentence: str | None
    nearest: str | None
    fleets: tuple[Checked, ...] = ()
    day: Day | None = None
    autoscaled_usd_per_month: float | None = None
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

    @property
    def chosen(self) -> Row | None:
        """The recommended row."""
        return next((row for row in self.rows if row.name == self.recommended), None)
