"""What is asked of a capacity plan: traffic, objectives, availability, limits, prices. The schema of `demand.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from engines.errors import UserError
from engines.files import Strict, read_yaml
from engines.spec import (
    DEFAULT_ENGINE_PROFILE,
    Accelerator,
    is_accelerator_file,
    is_checkpoint_folder,
    read_accelerator,
)
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
PriceTerms = Literal["on_demand", "reserved", "spot"]
Ratio = Annotated[float, Field(ge=0, lt=1)]

# Percentiles that a finite run can support; `max` grows for as long as one looks.
HOURS = 24
USUAL_GPUS = ("h100-sxm-80gb", "a100-sxm-80gb")
SMALL_GPUS = (
    "l4-24gb",
    "l40s-48gb",
    "a100-sxm-40gb",
    "a100-pcie-40gb",
    "a100-pcie-80gb",
    "h100-sxm-80gb-mig-2g.20gb",
    "h100-sxm-80gb-mig-3g.40gb",
)
# What clients of a reasoning model ask for where nobody says otherwise: the reply length that Qwen3's model card
# recommends for most questions (https://huggingface.co/Qwen/Qwen3-8B, "Best Practices"), and DeepSeek-R1's own tests.
REASONING_MAX_TOKENS = 32_768
REASONING_MODELS = ("deepseek-r1", "qwen3", "qwq")
# Standard deviation of the rate from minute to minute about the hour's trend, over the trend, in Azure's conversation
# trace of 2023-11-16 (AzureLLMInferenceTrace_conv.csv; that of a Poisson process taken off).
MINUTE_VARIATION = 0.13
TAILS = {"mean": 0.5, "p50": 0.5, "p90": 0.1, "p95": 0.05, "p99": 0.01, "p999": 0.001}


class Described(Strict):
    """Traffic by its hours.

    Attributes:
        rate_by_hour_per_s: Requests a second, mean of each hour of the day from midnight; one number: all day alike. Of
            conversations, every turn is a request.
        rate_per_s: The same rate all day, instead.
        minute_variation: Standard deviation of the rate from minute to minute about the hour's trend, over the trend.
            Replicas are sized for the busiest `peak_window_s` of the busiest hour, not for its mean.
        burstiness: Coefficient of variation of the gaps between requests; 1 is Poisson, above it bursts.
        lengths: Of every request, or of those whose class states none; so are `prefixes` and `conversation`.
        classes: Kinds of requests that come mixed, each with objectives of its own where it has some.
    """

    process: Literal["described"] = "described"
    rate_by_hour_per_s: Annotated[tuple[NotNegative, ...], Field(max_length=24)] = ()
    rate_per_s: Positive | None = None
    minute_variation: Annotated[float, Field(ge=0, le=2)] = MINUTE_VARIATION
    burstiness: Annotated[float, Field(ge=0.01, le=10)] = 1.0
    lengths: Lengths = Lengths()
    prefixes: Prefixes | None = None
    conversation: Conversations | None = None
    classes: tuple[TrafficClass, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if bool(self.rate_by_hour_per_s) == (self.rate_per_s is not None):
            raise ValueError("give rate_per_s, or rate_by_hour_per_s with 24 rates")
        if len(self.hours) not in (1, HOURS):
            raise ValueError(f"{len(self.hours)} hours are stated; give 24, or one rate for all day")
        if not max(self.hours) > 0:
            raise ValueError("no hour has any traffic")
        if any(kind.has_file for kind in self.scenario(0).kinds):
            raise ValueError("prompts come from a file; a plan needs their lengths: lengths.pairs, or isl and osl")
        return self

    @property
    def hours(self) -> tuple[float, ...]:
        """Requests a second of each hour, or of all of them."""
        return self.rate_by_hour_per_s if self.rate_per_s is None else (self.rate_per_s,)

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
        gpus: By name, or files that describe accelerators of the user's own. `any`: H100 and A100 with 80 GB, and
            smaller ones where one of them holds the whole demand.
        max_replicas: Of the whole deployment.
        budget_usd_per_month: None: no limit.
    """

    gpus: Annotated[tuple[str, ...], Field(min_length=1)] = ("any",)
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] = ("fp8", "int8_sq", "bf16")
    tensor_parallel: Annotated[tuple[Annotated[int, Field(ge=1, le=8)], ...], Field(min_length=1)] = (1,)
    max_replicas: Annotated[int, Field(ge=1)] = 512
    budget_usd_per_month: Positive | None = None

    @property
    def is_any_gpu(self) -> bool:
        """Whether the demand leaves the GPU open."""
        return self.gpus == ("any",)

    @property
    def gpu_names(self) -> tuple[str, ...]:
        """The GPUs to plan for."""
        return USUAL_GPUS if self.is_any_gpu else self.gpus


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
        scheduler_policy: `guaranteed_no_evict` reserves KV blocks for `max_tokens`; `max_utilization` reserves none,
            and evicts and computes again, as vLLM does; `auto` tries both where they differ.
        engines: Engine folders.
        calibrations: Files of `calibrate-engine`; each is used wherever its hardware and precision are planned.
        runs: Measured runs.
    """

    planned: bool = True
    step_time: Literal["roofline", "silicon"] | Auto = "auto"
    engine_profile: str = DEFAULT_ENGINE_PROFILE
    max_batch_size: Annotated[tuple[Annotated[int, Field(ge=1)] | Auto, ...], Field(min_length=1)] = ("auto",)
    max_num_tokens: Annotated[tuple[Annotated[int, Field(ge=1)] | Auto, ...], Field(min_length=1)] = ("auto", 2048)
    scheduler_policy: Literal["auto", "guaranteed_no_evict", "max_utilization"] = "auto"
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
        terms: Of those prices; a reservation commits to a year, a spot machine can be taken away at any time. A GPU
            without a price on these terms has none.
        file: The user's own price file; None takes the one that ships, whose rows say source and date.
        usd_per_gpu_h: The user's own prices by GPU, over any file.
    """

    vendor: str = "hyperstack"
    terms: PriceTerms = "on_demand"
    file: str | None = None
    usd_per_gpu_h: dict[str, Positive] = Field(default_factory=dict)


class Demand(Strict):
    """`demand.yaml`: all that a capacity plan is asked.

    Attributes:
        model: A known name, or a folder with a config.json.
        growth_per_month: Growth of the traffic, compounded: 0.05 for 5 %.
        horizon_months: How far ahead the plan must still hold.
        peak_window_s: The busiest stretch of this length is what the replicas are sized for (of a trace; a described
            day is sized for its busiest hour).
        max_tokens: Reply tokens that a request asks for at most, where neither its class's lengths nor a trace's row
            say so. None: the longest reply of its class; of a model that reasons, 32,768.
        objectives: Of all requests together.
    """

    name: str
    model: str = "deepseek-r1-0528-qwen3-8b"
    traffic: Traffic
    growth_per_month: Annotated[float, Field(gt=-1, le=10)] = 0.0
    horizon_months: NotNegative = 0.0
    peak_window_s: Positive = 600.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
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

    def most_tokens(self, longest_osl: int) -> int:
        """Return how many reply tokens a request asks for at most, where it does not say, given its longest reply."""
        return self.max_tokens or default_max_tokens(self.model, longest_osl)

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        """The classes of a described mix; empty where all requests are of one kind."""
        return self.traffic.classes if isinstance(self.traffic, Described) else ()

    @property
    def own_accelerators(self) -> list[Accelerator]:
        """The accelerators that files of the limits and of measured runs describe."""
        asked = [*self.limits.gpu_names, *(run.gpu for run in self.candidates.runs)]
        return [read_accelerator(Path(gpu)) for gpu in dict.fromkeys(asked) if is_accelerator_file(gpu)]

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
    """Read a demand; a relative path in it begins at the demand's folder.

    Those of an accelerator and of a model are resolved here, the others where they are read.

    Raises:
        MissingError, UserError: As `files.read_yaml`.
    """
    demand = read_yaml(path, Demand)
    limits, chosen = demand.limits, demand.candidates
    runs = tuple(run.model_copy(update={"gpu": _beside(path, run.gpu)}) for run in chosen.runs)
    changed: dict[str, object] = {
        "limits": limits.model_copy(update={"gpus": tuple(_beside(path, gpu) for gpu in limits.gpus)}),
        "candidates": chosen.model_copy(update={"runs": runs}),
    }
    if is_checkpoint_folder(demand.model, within=path.parent):
        changed |= {"model": str(path.parent / demand.model)}
    return demand.model_copy(update=changed)


def _beside(path: Path, gpu: str) -> str:
    """Return a GPU's name as it is, and the path of an accelerator's file from the demand's folder."""
    return str(path.parent / gpu) if is_accelerator_file(gpu) else gpu


def default_max_tokens(model: str, longest_osl: int) -> int:
    """Return how many reply tokens a request asks for at most where nobody says so.

    Of a model that reasons, `REASONING_MAX_TOKENS`: nobody knows beforehand how long it thinks. Of others, its class's
    longest reply: what cuts replies there is the client's `max_tokens`.

    >>> default_max_tokens("llama-3-8b", 1500), default_max_tokens("deepseek-r1-0528-qwen3-8b", 1500)
    (1500, 32768)
    """
    reasons = Path(model).name.lower().startswith(REASONING_MODELS)
    return max(longest_osl, REASONING_MAX_TOKENS) if reasons else longest_osl


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
            raise UserError("objectives.goodput.share 1: no finite run can prove that", hint="0.99, or 0.999")
        tails.append(1 - objectives.goodput.share)
    return min(tails)
