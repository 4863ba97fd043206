"""What is asked of a capacity plan: traffic, objectives, availability, limits, prices. The schema of `demand.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from engines.errors import UserError
from engines.files import Strict, read_yaml
from engines.spec import DEFAULT_ENGINE_PROFILE
from loadtest.scenario import (
    Conversations,
    Lengths,
    NotNegative,
    Objectives,
    ObjectiveScope,
    Positive,
    Prefixes,
    Scenario,
    Trace,
    TrafficClass,
)

Routing = Literal["round_robin", "least_outstanding", "least_kv", "prefix_aware"]
Auto = Literal["auto"]
Ratio = Annotated[float, Field(ge=0, lt=1)]

# Percentiles that a finite run can support; `max` grows for as long as one looks.
HOURS = 24
TAILS = {"mean": 0.5, "p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01, "p999": 0.001}


class Described(Strict):
    """Traffic by its hours.

    Attributes:
        rate_by_hour_per_s: Requests a second, mean of each hour of the day from midnight; one number: all day alike. Of
            conversations, every turn is a request.
        burstiness: Coefficient of variation of the gaps between requests; 1 is Poisson, above it bursts.
        lengths: Of every request, or of those whose class states none; so are `prefixes` and `conversation`.
        classes: Kinds of requests that come mixed, each with objectives of its own where it has some.
    """

    process: Literal["described"] = "described"
    rate_by_hour_per_s: Annotated[tuple[NotNegative, ...], Field(min_length=1, max_length=24)]
    burstiness: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    lengths: Lengths = Lengths()
    prefixes: Prefixes | None = None
    conversation: Conversations | None = None
    classes: tuple[TrafficClass, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if len(self.rate_by_hour_per_s) not in (1, HOURS):
            raise ValueError(f"{len(self.rate_by_hour_per_s)} hours are stated; give 24, or one rate for all day")
        if not max(self.rate_by_hour_per_s) > 0:
            raise ValueError("no hour has any traffic")
        if any(kind.has_file for kind in self.scenario(0).kinds):
            raise ValueError("prompts come from a file; a plan needs their lengths: lengths.pairs, or isl and osl")
        return self

    def scenario(self, seed: int) -> Scenario:
        """Return who says what, as a load test would: the same draws from the same seed."""
        return Scenario(
            lengths=self.lengths,
            prefixes=self.prefixes,
            conversation=self.conversation,
            classes=self.classes,
            prompts="random",
            seed=seed,
        )


Traffic: TypeAlias = Annotated[Described | Trace, Field(discriminator="process")]


class Availability(Strict):
    """What may fail, and what is kept free.

    Attributes:
        n_plus: Replicas that may be lost at the peak with every objective still kept.
        zones: Zones the replicas are spread over evenly; with more than one, a whole zone may be lost.
        headroom: Share of what a replica can carry that is not planned with.
    """

    n_plus: Annotated[int, Field(ge=0)] = 1
    zones: Annotated[int, Field(ge=1)] = 1
    headroom: Ratio = 0.1


class Autoscaling(Strict):
    """How replicas follow the day.

    Attributes:
        start_up_s: From asking for a replica to its first request: machine, image, engine.
        interval_s: How often the rate is looked at.
        scale_down_after_s: How long fewer replicas must have been enough before one is given back.
    """

    start_up_s: Positive = 300.0
    interval_s: Positive = 60.0
    scale_down_after_s: NotNegative = 900.0


class Limits(Strict):
    """What may be used.

    Attributes:
        max_replicas: Of the whole deployment.
        budget_usd_per_month: None: no limit.
    """

    gpus: Annotated[tuple[str, ...], Field(min_length=1)] = ("h100-sxm-80gb", "a100-sxm-80gb")
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] = ("fp8", "int8_sq", "bf16")
    tensor_parallel: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1)] = (1,)
    max_replicas: Annotated[int, Field(ge=1)] = 512
    budget_usd_per_month: Positive | None = None


class MeasuredRun(Strict):
    """A run folder of `run-load`, and what it ran on.

    Attributes:
        path: The run folder; its highest level that kept every objective is what a replica carries.
    """

    path: str
    gpu: str
    precision: str
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    replicas: Annotated[int, Field(ge=1)] = 1


class CandidateChoices(Strict):
    """Where candidates come from, beside every precision on every GPU of the limits.

    Attributes:
        step_time: Data sheets, measured kernels, or `auto`: what held-out rows favour for a GPU.
        engine_profile: What is expected above the kernels of an engine nobody has measured.
        planned: Whether to plan an engine for every pair; with False only engines and runs are candidates.
        max_batch_size: Batch limits to try; `auto` is the build planner's choice.
        max_num_tokens: Token budgets of an iteration to try, likewise.
        engines: Engine folders.
        calibrations: Files of `calibrate-engine`; each is used wherever its hardware and precision are planned.
        runs: Measured runs.
    """

    planned: bool = True
    step_time: Literal["roofline", "silicon"] | Auto = "auto"
    engine_profile: str = DEFAULT_ENGINE_PROFILE
    max_batch_size: Annotated[tuple[Annotated[int, Field(ge=1)] | Auto, ...], Field(min_length=1)] = ("auto",)
    max_num_tokens: Annotated[tuple[Annotated[int, Field(ge=1)] | Auto, ...], Field(min_length=1)] = ("auto", 2048)
    engines: tuple[str, ...] = ()
    calibrations: tuple[str, ...] = ()
    runs: tuple[MeasuredRun, ...] = ()


class Scale(Strict):
    """Ratios laid over the traffic and the prices: what if there were more, or longer.

    Attributes:
        traffic: On every rate.
        isl: On every prompt's length; `osl` on every reply's.
        price: On every price.
    """

    traffic: Positive = 1.0
    isl: Positive = 1.0
    osl: Positive = 1.0
    price: Positive = 1.0


class PriceChoices(Strict):
    """What a GPU costs.

    Attributes:
        vendor: Whose list prices to take from the price file.
        file: The user's own price file; None takes the one that ships, whose rows say source and date.
        usd_per_gpu_h: The user's own prices by GPU, over any file.
    """

    vendor: str = "hyperstack"
    file: str | None = None
    usd_per_gpu_h: dict[str, Positive] = Field(default_factory=dict)


class Demand(Strict):
    """`demand.yaml`: all that a capacity plan is asked.

    Attributes:
        growth_per_month: Growth of the traffic, compounded: 0.05 for 5 %.
        horizon_months: How far ahead the plan must still hold.
        peak_window_s: The busiest stretch of this length is what the replicas are sized for (of a trace; a described
            day is sized for its busiest hour).
        objectives: Of all requests together.
    """

    name: str
    model: str = "deepseek-r1-0528-qwen3-8b"
    traffic: Traffic
    growth_per_month: Annotated[float, Field(gt=-1, le=10)] = 0.0
    horizon_months: NotNegative = 0.0
    peak_window_s: Positive = 600.0
    objectives: Objectives
    availability: Availability = Availability()
    autoscaling: Autoscaling = Autoscaling()
    routing: Routing = "least_outstanding"
    limits: Limits = Limits()
    candidates: CandidateChoices = CandidateChoices()
    prices: PriceChoices = PriceChoices()
    scale: Scale = Scale()
    seed: int = 0

    @property
    def growth(self) -> float:
        """How many times today's traffic the plan is for."""
        return float((1 + self.growth_per_month) ** self.horizon_months) * self.scale.traffic

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        """The classes of a described mix; empty where all requests are of one kind."""
        return self.traffic.classes if isinstance(self.traffic, Described) else ()

    @property
    def scopes(self) -> tuple[ObjectiveScope, ...]:
        """The objectives of all requests, and those of each class."""
        of_classes = [
            ObjectiveScope(each.objectives, each.name) for each in self.classes if each.objectives is not None
        ]
        return (ObjectiveScope(self.objectives), *of_classes)

    @property
    def all_objectives(self) -> dict[str, Objectives]:
        """Objectives by class; those of all requests together under an empty name."""
        return {"": self.objectives} | {
            each.name: each.objectives for each in self.classes if each.objectives is not None
        }

    @model_validator(mode="after")
    def _supportable(self) -> Self:
        for objectives in self.all_objectives.values():
            for quantity in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
                if "max" in getattr(objectives, quantity):
                    raise ValueError(
                        f"objectives.{quantity}: a maximum grows for as long as one looks, so no plan can promise it; "
                        "p999 can be promised"
                    )
        return self


def read_demand(path: Path) -> Demand:
    """Read a demand; a trace's, price file's, engine's and run's relative path begins at the demand's folder.

    Raises:
        MissingError, UserError: As `files.read_yaml`.
    """
    return read_yaml(path, Demand)


def least_tail(objectives: Objectives) -> float:
    """Return the smallest share of requests (or gaps) that an objective leaves beyond its limit.

    >>> least_tail(Objectives(ttft_s={"p95": 1.0}, itl_s={"p99": 0.05}))
    0.01
    """
    tails = [
        TAILS[statistic]
        for quantity in ("ttft_s", "itl_s", "tpot_s", "e2e_s")
        for statistic in getattr(objectives, quantity)
    ]
    if objectives.goodput is not None:
        if objectives.goodput.share >= 1:
            raise UserError("objectives.goodput.share 1: no finite run shows that", hint="0.99, or 0.999")
        tails.append(1 - objectives.goodput.share)
    return min(tails)
