"""`autoscaling.json`: the control law that a plan simulated; `start.json`: the start time it was simulated with."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from engines.files import Document, Strict, one_line, require_schema
from engines.manifest import EngineManifest

# in_flight: requests in a server, its queue included; queue: of those, not yet in the batch; kv_used: share of the KV
# blocks in use; ttft_p95: 95th percentile of the time to first token, in seconds.
Signal = Literal["in_flight", "queue", "kv_used", "ttft_p95"]
Controller = Literal["hpa", "keda"]
START_NAME = "start.json"
AUTOSCALING_SCHEMA = 3  # 1 had no `engine`, 2 only its number of parameters
# Of a vocabulary, either way: tokens added by fine-tuning. The output projection is 4 to 16 % of the weights that each
# step of an FP8 model of 6 to 14 billion parameters reads, a third with SmolLM2: a step changes by 2 % at most.
VOCABULARY_RATIO = 0.05
PLAN_AGAIN = "plan again: plan-capacity DEMAND --force"
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Replicas = Annotated[int, Field(ge=1, le=2**31 - 1)]  # Kubernetes' int32
# Kubernetes' default is 15 s. Simulations step by 15 or 5 s.
SyncSeconds = Annotated[float, Field(ge=5, le=300, multiple_of=5)]


class Policy(Strict):
    """One limit on how fast the number of replicas changes, as in autoscaling/v2.

    Attributes:
        value: Replicas, or per cent of those at the start of the period.
        period_s: The API allows 1 to 1800.
    """

    type: Literal["Pods", "Percent"]
    value: Replicas
    period_s: Annotated[int, Field(ge=1, le=1800)]


class ScalingRules(Strict):
    """Limits in one direction, as in autoscaling/v2.

    Attributes:
        stabilization_s: Window whose recommendations count: the lowest for scaling up, the highest for scaling down.
            The API allows 0 to 3600.
        select: Whether the policy that allows the most change applies, or the least.
    """

    stabilization_s: Annotated[int, Field(ge=0, le=3600)]
    policies: Annotated[tuple[Policy, ...], Field(min_length=1)]
    select: Literal["Max", "Min", "Disabled"] = "Max"


# Defaults of autoscaling/v2: kubernetes/pkg/apis/autoscaling/v2/defaults.go.
DEFAULT_UP = ScalingRules(
    stabilization_s=0,
    policies=(Policy(type="Pods", value=4, period_s=15), Policy(type="Percent", value=100, period_s=15)),
)
DEFAULT_DOWN = ScalingRules(stabilization_s=300, policies=(Policy(type="Percent", value=100, period_s=15),))


class ColdStart(Strict):
    """Seconds from a new pod to its first request, by phase.

    Attributes:
        pending_s: Machine and image: the pod is pending.
        loading_s: Weights and engine: the pod runs and publishes no metrics of its engine yet.
        source: `measured`, or where the figures are from.
    """

    pending_s: NotNegative
    loading_s: NotNegative
    source: str

    @property
    def total_s(self) -> float:
        """Seconds until the first request."""
        return self.pending_s + self.loading_s


class ServerStart(Document):
    """`start.json` in a model repository: how long the latest start of its server took.

    Attributes:
        kind: `measured`: of a real engine; `emulated`: of a real Triton around an emulated engine, without its weights.
        loading_s: From the launch of Triton until it had answered a request: every model loaded, the engine among them.
        started_on: Day of the start, UTC.
    """

    kind: Literal["measured", "emulated"]
    loading_s: Positive
    started_on: date
    triton_version: str
    model: str
    gpu: str
    precision: str
    tensor_parallel: Annotated[int, Field(ge=1)]


class ScalingLaw(Strict):
    """A control law: what an autoscaler follows, and how.

    Attributes:
        controller: `hpa`: a Pods metric per replica, from prometheus-adapter. `keda`: an external metric, summed over
            the replicas by Prometheus; KEDA hands it to an HPA of its own.
        target: The signal's mean per replica past which one is added; for `ttft_p95`, of all replicas together.
        tolerance: Relative deviation from the target that changes nothing: a flag of the kube-controller-manager.
        sync_s: Time between two evaluations: likewise a flag.
    """

    controller: Controller
    signal: Signal
    target: Positive
    min_replicas: Replicas
    max_replicas: Replicas
    up: ScalingRules = DEFAULT_UP
    down: ScalingRules = DEFAULT_DOWN
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.1
    sync_s: SyncSeconds = 15.0

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas {self.max_replicas} is less than min_replicas {self.min_replicas}")
        return self


class SimulatedEngine(Strict):
    """The engine that a law was simulated with: what its target depends on.

    Attributes:
        model: For people; other weights of the same geometry cost the same.
        layers: From here to `vocab_size`, what decides the model's step times: see `Geometry`.
        kv_cache: Format of the KV cache.
        speculative: Method; None: one token a step.
    """

    model: str
    layers: int
    hidden_size: int
    intermediate_size: int
    mlp_matrices: int
    attention_heads: int
    kv_heads: int
    head_size: int
    vocab_size: Annotated[int, Field(ge=1, le=2**31 - 1)]
    gpu: str
    precision: str
    kv_cache: str
    tensor_parallel: int
    pipeline_parallel: int
    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    speculative: str | None = None

    def differences(self, other: Self) -> list[str]:
        """Return the keys in which another engine is not this one; vocabularies of almost the same size are equal."""
        mine, theirs = self.model_dump(exclude={"model"}), other.model_dump(exclude={"model"})
        different = [key for key, value in mine.items() if value != theirs[key]]
        if abs(other.vocab_size - self.vocab_size) <= VOCABULARY_RATIO * self.vocab_size:
            different = [key for key in different if key != "vocab_size"]
        return different

    def named(self, keys: list[str]) -> str:
        """Return some of its facts for a message; the model's, with its name."""
        texts = {key: f"{key} {one_line(getattr(self, key))}" for key in keys}
        of_model = [texts.pop(key) for key in keys if key in MODEL_KEYS]
        model = [f"{one_line(self.model)} with {', '.join(of_model)}"] if of_model else []
        return ", ".join([*model, *texts.values()])


MODEL_KEYS = (
    "layers", "hidden_size", "intermediate_size", "mlp_matrices",
    "attention_heads", "kv_heads", "head_size", "vocab_size",
)  # fmt: skip


def simulated_engine(engine: EngineManifest) -> SimulatedEngine:
    """Return what a law states of its engine."""
    return SimulatedEngine(
        model=engine.model.name,
        **{key: getattr(engine.model, key) for key in MODEL_KEYS},
        gpu=engine.gpu.name,
        precision=engine.precision.name,
        kv_cache=engine.precision.kv_cache,
        tensor_parallel=engine.parallel.tensor,
        pipeline_parallel=engine.parallel.pipeline,
        max_batch_size=engine.limits.max_batch_size,
        max_num_tokens=engine.limits.max_num_tokens,
        max_seq_len=engine.limits.max_seq_len,
        speculative=None if engine.speculative is None else engine.speculative.method,
    )


class AutoscalingFile(Document):
    """`autoscaling.json`: the law a plan chose, with what it was simulated with.

    Attributes:
        engine: That of the row.
        row: The plan's row whose replicas it scales.
        simulated_minutes: Length of the day, or of the trace.
        missed_minutes: Of those, the minutes in which an objective was missed.
        gpu_hours: Of the same time.
        seeds: Of the simulated traffic.
    """

    schema_version: int = Field(default=AUTOSCALING_SCHEMA, alias="schema")
    law: ScalingLaw
    cold_start: ColdStart
    engine: SimulatedEngine
    row: str
    simulated_minutes: NotNegative
    missed_minutes: NotNegative
    gpu_hours: NotNegative
    seeds: tuple[int, ...]

    @model_validator(mode="before")
    @classmethod
    def _current(cls, values: Any) -> Any:
        if isinstance(values, dict) and "law" not in values:
            raise ValueError(
                "it contains no control law; plan-capacity writes it to autoscaling.json, beside capacity.json"
            )
        require_schema(values, AUTOSCALING_SCHEMA, again=PLAN_AGAIN)
        return values
