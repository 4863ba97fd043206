"""The schema of `demand.yaml`: traffic, objectives, availability, limits, prices."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from engines.errors import UserError
from engines.files import Strict, read_yaml
from engines.planning import SpeculativeChoices
from engines.spec import (
    DEFAULT_ENGINE_PROFILE,
    Accelerator,
    is_accelerator_file,
    is_checkpoint_folder,
    read_accelerator,
)
from loadtest.capacity.inputs.accuracy import EvaluatedEngines, PlanObjectives
from loadtest.capacity.inputs.autoscaling import Autoscaling, with_recorded_start
from loadtest.capacity.inputs.money import Owned, Spot
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
    share_of,
)

Routing = Literal["round_robin", "least_outstanding", "least_kv", "prefix_aware"]
Auto = Literal["auto"]
PriceTerms = Literal["on_demand", "reserved", "spot"]
Ratio = Annotated[float, Field(ge=0, lt=1)]

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
# Default `max_tokens` of a reasoning model's clients: the reply length that Qwen3's model card recommends for most
# questions (https://huggingface.co/Qwen/Qwen3-8B, "Best Practices"), and that of DeepSeek-R1's own tests.
REASONING_MAX_TOKENS = 32_768
REASONING_MODELS = ("deepseek-r1", "qwen3", "qwq")
# Standard deviation of the per-minute rate about the hour's trend, divided by the trend, in Azure's conversation trace
# of 2023-11-16 (AzureLLMInferenceTrace_conv.csv); the share of a Poisson process is subtracted.
MINUTE_VARIATION = 0.13
MEAN_TAIL = 0.5  # a mean needs no more requests than a median


class Described(Strict):
    """Traffic described by its hourly rates.

    Attributes:
        rate_by_hour_per_s: Mean requests per second of each hour of the day from midnight; one number: the same all
            day. In conversations, every turn is a request.
        rate_per_s: One rate for the whole day, instead.
        minute_variation: Standard deviation of the per-minute rate about the hour's trend, divided by the trend.
            Replicas are sized for the busiest `peak_window_s` of the busiest hour, not for its mean.
        burstiness: Coefficient of variation of the gaps between requests; 1 is Poisson, larger is burstier.
        lengths: Of every request whose class states none; likewise `prefixes` and `conversation`.
        classes: Kinds of requests in the mix, each optionally with its own objectives.
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
        """Requests per second of each hour, or the single rate."""
        return self.rate_by_hour_per_s if self.rate_per_s is None else (self.rate_per_s,)

    def scenario(self, seed: int) -> Scenario:
        """Return the traffic as a scenario: the draws of a load test with the same seed."""
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
    """Spare capacity.

    Attributes:
        n_plus: Replicas that may be lost at the peak with every objective still met.
        zones: Zones over which replicas are spread evenly; with more than one, a whole zone may be lost.
        headroom: Share of a replica's capacity that is kept free.
    """

    n_plus: Annotated[int, Field(ge=0)] = 1
    zones: Annotated[int, Field(ge=1)] = 1
    headroom: Ratio = 0.1


class Limits(Strict):
    """Limits of the deployment.

    Attributes:
        gpus: GPU names, or files that describe the user's own accelerators. `any`: H100 and A100 with 80 GB, and
            smaller GPUs if one of them carries the whole demand.
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
    """A run folder of `run-load`, and the deployment it measured.

    Attributes:
        path: The run folder; its highest level that meets every objective is a replica's capacity.
    """

    path: str
    gpu: str
    precision: str
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    replicas: Annotated[int, Field(ge=1)] = 1


class CandidateChoices(Strict):
    """Sources of candidates, in addition to every precision on every allowed GPU.

    Attributes:
        step_time: `roofline`, `silicon`, or `auto`: the source with the lower held-out error for the GPU.
        engine_profile: Assumed overhead above the kernels for an engine without measurements.
        planned: Whether to plan an engine for every pair; if False, only engines and runs are candidates.
        max_batch_size: Batch limits to try; `auto` is the build planner's choice.
        max_num_tokens: Token budgets to try; `auto` likewise.
        scheduler_policy: `guaranteed_no_evict` reserves KV blocks for `max_tokens`; `max_utilization` reserves none,
            and evicts and recomputes as vLLM does; `auto` tries both where they differ.
        speculative: Speculative decoding to try, as in a recipe; `none` is one token a step.
        engines: Engine folders.
        calibrations: Files of `calibrate-engine`; each applies wherever its hardware and precision are planned.
        runs: Measured runs.
    """

    planned: bool = True
    step_time: Literal["roofline", "silicon"] | Auto = "auto"
    engine_profile: str = DEFAULT_ENGINE_PROFILE
    max_batch_size: Annotated[tuple[Annotated[int, Field(ge=1)] | Auto, ...], Field(min_length=1)] = ("auto",)
    max_num_tokens: Annotated[tuple[Annotated[int, Field(ge=1)] | Auto, ...], Field(min_length=1)] = ("auto", 2048)
    scheduler_policy: Literal["auto", "guaranteed_no_evict", "max_utilization"] = "auto"
    speculative: Annotated[tuple[Literal["none"] | SpeculativeChoices, ...], Field(min_length=1)] = ("none",)
    engines: tuple[str, ...] = ()
    calibrations: tuple[str, ...] = ()
    runs: tuple[MeasuredRun, ...] = ()


class Scale(Strict):
    """Ratios applied to traffic and prices, for what-if plans.

    Attributes:
        traffic: Applied to every rate.
        isl: Applied to every prompt length; `osl` to every reply length.
        price: Applied to every price.
    """

    traffic: Positive = 1.0
    isl: Positive = 1.0
    osl: Positive = 1.0
    price: Positive = 1.0


class PriceChoices(Strict):
    """The price of a GPU.

    Attributes:
        vendor: Vendor whose list prices to use from the price file.
        terms: Terms of those prices; a reservation commits to a year, a spot machine can be withdrawn at any time. A
            GPU without a price on these terms has no price.
        file: Your own price file. None: the one shipped, whose rows state source and date.
        usd_per_gpu_h: Your own prices by GPU; they override any file.
    """

    vendor: str = "hyperstack"
    terms: PriceTerms = "on_demand"
    file: str | None = None
    usd_per_gpu_h: dict[str, Positive] = Field(default_factory=dict)


class Demand(Strict):
    """`demand.yaml`: the complete input of a capacity plan.

    Attributes:
        name: Also the name of the plan's folder, so without a slash.
        model: A known name, or a folder with a config.json.
        growth_per_month: Growth of the traffic, compounded: 0.05 is 5 %.
        horizon_months: How far ahead the plan must still meet the objectives.
        peak_window_s: Replicas are sized for the busiest period of this length: of a trace, or of a described day's
            busiest hour.
        max_tokens: Most tokens that a reply may have, unless its class's lengths or a trace's row state it. None:
            the longest reply of its class; for a reasoning model, 32,768.
        objectives: Over all requests together.
        accuracy: Engines whose accuracy was measured; their losses stand beside cost and latency.
        owned: GPUs bought, compared with the rented ones of the plan; `spot` likewise, machines that can be withdrawn.
    """

    name: str
    model: str = "deepseek-r1-0528-qwen3-8b"
    traffic: Traffic
    growth_per_month: Annotated[float, Field(gt=-1, le=10)] = 0.0
    horizon_months: NotNegative = 0.0
    peak_window_s: Positive = 600.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    objectives: PlanObjectives
    availability: Availability = Availability()
    autoscaling: Autoscaling = Autoscaling()
    routing: Routing = "least_outstanding"
    limits: Limits = Limits()
    candidates: CandidateChoices = CandidateChoices()
    prices: PriceChoices = PriceChoices()
    accuracy: EvaluatedEngines | None = None
    owned: Owned | None = None
    spot: Spot | None = None
    scale: Scale = Scale()
    seed: int = 0

    @field_validator("traffic", mode="before")
    @classmethod
    def _names_its_kind(cls, traffic: object) -> object:
        """Explain the kinds of traffic where none is given, or a scenario's arrival process such as `poisson`."""
        process = traffic.get("process", "") if isinstance(traffic, dict) else "described"
        if process in ("described", "trace"):
            return traffic
        raise PydanticCustomError(
            "kind_of_traffic",
            "'process' must be one of 'described', 'trace'{given}",
            {
                "given": f", not '{process}'" if process else "; it is missing",
                "hint": ("did you mean 'described'? It" if process else "'described'")
                + " draws random arrivals at rate_per_s or rate_by_hour_per_s (burstiness 1 is Poisson); 'trace' "
                "replays those of a file",
            },
        )

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not name.strip() or "/" in name or name in (".", ".."):
            raise ValueError("the plan's folder gets this name: it needs a letter or a digit, and no slash")
        return name

    @property
    def growth(self) -> float:
        """Ratio of the planned traffic to today's."""
        return float((1 + self.growth_per_month) ** self.horizon_months) * self.scale.traffic

    def max_tokens_for(self, longest_osl: int) -> int:
        """Return the default `max_tokens` of a request, given its class's longest reply."""
        return self.max_tokens or default_max_tokens(self.model, longest_osl)

    @property
    def classes(self) -> tuple[TrafficClass, ...]:
        """The classes of a described mix; empty if all requests are of one kind."""
        return self.traffic.classes if isinstance(self.traffic, Described) else ()

    @property
    def own_accelerators(self) -> list[Accelerator]:
        """The accelerators that files of the limits and of measured runs describe."""
        named = [*self.limits.gpu_names, *(run.gpu for run in self.candidates.runs)]
        return [read_accelerator(Path(gpu)) for gpu in dict.fromkeys(named) if is_accelerator_file(gpu)]

    @property
    def scopes(self) -> tuple[ObjectiveScope, ...]:
        """The objectives over all requests, and those of each class."""
        of_classes = [
            ObjectiveScope(each.objectives, each.name) for each in self.classes if each.objectives is not None
        ]
        return (ObjectiveScope(self.objectives), *of_classes)

    @property
    def all_objectives(self) -> dict[str, Objectives]:
        """Objectives by class; the empty name is all requests together."""
        return {"": self.objectives} | {
            each.name: each.objectives for each in self.classes if each.objectives is not None
        }

    @model_validator(mode="after")
    def _supportable(self) -> Self:
        if self.objectives.max_accuracy_loss is not None and self.accuracy is None:
            raise ValueError(
                "objectives.max_accuracy_loss needs the results of evaluate-engine: name the engines in "
                "accuracy.baseline and accuracy.engines"
            )
        for objectives in self.all_objectives.values():
            for quantity in ("ttft_s", "itl_s", "tpot_s", "e2e_s"):
                if "max" in getattr(objectives, quantity):
                    raise ValueError(
                        f"objectives.{quantity}: a maximum grows with the length of a run, so no plan can promise it; "
                        "p999 can be promised"
                    )
        return self


def read_demand(path: Path) -> Demand:
    """Read a demand; relative paths in it start at the demand's folder.

    Paths of accelerators and models are resolved here, and a recorded start is read; the others where they are needed.

    Raises:
        MissingError, UserError: As `files.read_yaml` does.
    """
    demand = read_yaml(path, Demand)
    limits, chosen = demand.limits, demand.candidates
    runs = tuple(run.model_copy(update={"gpu": _beside(path, run.gpu)}) for run in chosen.runs)
    changed: dict[str, object] = {
        "limits": limits.model_copy(update={"gpus": tuple(_beside(path, gpu) for gpu in limits.gpus)}),
        "candidates": chosen.model_copy(update={"runs": runs}),
        "autoscaling": with_recorded_start(demand.autoscaling, path.parent),
    }
    if is_checkpoint_folder(demand.model, within=path.parent):
        changed |= {"model": str(path.parent / demand.model)}
    return demand.model_copy(update=changed)


def _beside(path: Path, gpu: str) -> str:
    """Return a GPU's name unchanged, and an accelerator file's path relative to the demand's folder."""
    return str(path.parent / gpu) if is_accelerator_file(gpu) else gpu


def default_max_tokens(model: str, longest_osl: int) -> int:
    """Return the default `max_tokens` of a request.

    For a reasoning model it is `REASONING_MAX_TOKENS`, since the length of its reasoning is not known in advance. For
    others it is the class's longest reply: replies end there because the client's `max_tokens` cuts them.

    >>> default_max_tokens("llama-3-8b", 1500), default_max_tokens("deepseek-r1-0528-qwen3-8b", 1500)
    (1500, 32768)
    """
    reasons = Path(model).name.lower().startswith(REASONING_MODELS)
    return max(longest_osl, REASONING_MAX_TOKENS) if reasons else longest_osl


def smallest_tail_share(objectives: Objectives) -> float:
    """Return the smallest share of requests (or gaps) that an objective allows beyond its limit.

    >>> smallest_tail_share(Objectives(ttft_s={"p95": 1.0}, itl_s={"p99": 0.05}))
    0.01
    """
    tails = [
        _tail(statistic)
        for quantity in ("ttft_s", "itl_s", "tpot_s", "e2e_s")
        for statistic in getattr(objectives, quantity)
    ]
    if objectives.goodput is not None:
        if objectives.goodput.share >= 1:
            raise UserError("objectives.goodput.share 1: no finite run can prove it", hint="0.99, or 0.999")
        tails.append(1 - objectives.goodput.share)
    return min(tails)


def _tail(statistic: str) -> float:
    """Return the share of values beyond a statistic."""
    share = share_of(statistic)
    if share is None:
        assert statistic == "mean"  # a demand refuses `max`
        return MEAN_TAIL
    return round(1 - share, 6)
