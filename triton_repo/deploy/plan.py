"""The settings of a deployment, and what follows from them for the engine at hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from engines.autoscaling import AutoscalingFile
from engines.build import choices_of, serve_image, trtllm
from engines.errors import UserError
from engines.files import Document, MadeBy, Strict, source_of
from engines.manifest import EngineManifest
from engines.spec import GIB, PRECISIONS
from engines.steptime import StepShape, step_time_for
from triton_repo.server import across_ranks, rank_environment, serve_command_of, server_flags
from triton_repo.settings import REPOSITORY_NAME, RepositoryManifest, Variant, read_repository

NAME = r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$"
PROMETHEUS_URL = "http://prometheus-operated.monitoring.svc:9090"  # the Prometheus operator's governing service
ENDPOINT_S = 10  # a terminating pod still gets requests until every node has removed the endpoint
EXIT_S = 15  # Triton ends within its own time-out, or is killed
LOAD_BYTES_PER_S = 100e6  # network storage at its slowest; a probe that gives up too early restarts the load for ever
MIN_START_S = 600
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
FLAGS = ("--metrics-config=histogram_latencies=true",)  # a server older than the histogram (24.11) passes it over
BUSY_RATIO = 0.85  # of slots and of KV blocks: above it the autoscaler adds a server, before requests queue
SHM_BYTES_PER_RANK = GIB  # stubs of the Python backend share it with the server, and NCCL's ranks with each other


class Deployment(Strict):
    """Settings of a deployment.

    Attributes:
        name: Name of all deployed resources.
        image: Container image of the server; auto: NVIDIA's with the TensorRT-LLM that built the engine.
        claim: PersistentVolumeClaim with the folders `repository` and `engine`; auto: NAME-models.
        replicas: Initial and minimum number of replicas.
        max_replicas: Maximum number of replicas for the autoscaler.
        longest_reply_s: Seconds a request may take from its first token to its last; auto: predicted.
        ttft_objective_s: Alert if the 95th percentile of the time to first response exceeds this.
        drain_before_s: Seconds a terminating server keeps serving while load balancers stop routing to it.
        prometheus_url: Prometheus that KEDA queries.
    """

    name: Annotated[str, Field(pattern=NAME)]
    namespace: Annotated[str, Field(pattern=NAME)] = "inference"
    image: Annotated[str, Field(pattern=r"^[\w./:@-]+$")] = "auto"
    claim: Annotated[str, Field(pattern=rf"auto|{NAME}")] = "auto"
    replicas: Annotated[int, Field(ge=1, le=1000)] = 2
    max_replicas: Annotated[int, Field(ge=1, le=1000)] = 4
    longest_reply_s: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    ttft_objective_s: Annotated[float, Field(gt=0)] = 2.0
    drain_before_s: Annotated[int, Field(ge=0, le=120)] = ENDPOINT_S
    prometheus_url: Annotated[str, Field(pattern=r"^https?://[\w./:-]+$")] = PROMETHEUS_URL


class DeploymentPlan(Document):
    """`manifest.json` of a deployment folder: every value its files were rendered with.

    Attributes:
        kind: `built` or `emulated`; an emulated engine deploys without a GPU, to rehearse.
        variant: Set of TensorRT-LLM's models that Triton serves, or `trtllm_serve`. `llmapi` publishes no engine
            metrics.
        llm_api: Version whose metric names trtllm-serve uses: 1.2, 1.3 or 1.4rc; None: Triton serves.
        tensorrt_llm: TensorRT-LLM version that the container must have; None if none is needed.
        repository: The model repository on this machine.
        served_at: Its path in the container, which its models contain.
        engine: Folder of the engine on this machine, and in the container; None for an emulated engine.
        gpus: GPUs of each server.
        compute_capability: Compute capability of those GPUs; the engine runs on no other.
        longest_reply_s: Duration of the longest reply, in seconds.
        longest_reply_from: `flag`, or `predicted` by the engine's step-time model.
        termination_s: Seconds from SIGTERM to SIGKILL: announcing, the longest reply, exit.
        start_s: Seconds that a server may take to answer its first request.
        stages: Pipeline stages of the engine; each has its own batch in flight.
        slots: Slots of the engine: the batch limit of each stage.
        in_flight_per_replica: Requests in a server, its queue included, above which the autoscaler adds a server.
        queue_alarm: Requests in a server's queue above which an alert fires.
        command: The server's command line; `$key` and names that begin with `${` are variables of the script.
        environment: Environment variables that the server needs.
        scaling: The control law that a capacity plan simulated; None: the autoscaler's own targets.
    """

    deployment: Deployment
    kind: str
    variant: Variant = "inflight_batcher_llm"
    llm_api: str | None = None
    image: str
    tensorrt_llm: str | None
    repository: str
    served_at: str
    engine: str | None
    gpus: int
    compute_capability: str
    model: str
    max_batch_size: int
    shm_bytes: int
    memory_bytes: int
    cpus: int
    longest_reply_s: float
    longest_reply_from: Literal["flag", "predicted"]
    termination_s: int
    drain_within_s: int
    start_s: int
    stages: int
    slots: int
    in_flight_per_replica: int
    queue_alarm: int
    command: list[str]
    environment: dict[str, str]
    notices: list[str]
    scaling: AutoscalingFile | None = None

    @property
    def server(self) -> str:
        """Return the container's name."""
        return "trtllm-serve" if self.variant == "trtllm_serve" else "triton"

    @property
    def ports(self) -> dict[str, int]:
        """Return the ports it listens on, by name."""
        return {"http": PORTS["http"]} if self.variant == "trtllm_serve" else PORTS

    @property
    def metrics(self) -> tuple[str, str]:
        """Return the name of the port that publishes metrics, and their path."""
        return ("http", "/prometheus/metrics") if self.variant == "trtllm_serve" else ("metrics", "/metrics")

    @property
    def claim(self) -> str:
        """Return the claim's name."""
        return f"{self.deployment.name}-models" if self.deployment.claim == "auto" else self.deployment.claim


def plan_deployment(
    repository: Path,
    engine_folder: Path | None,
    deployment: Deployment,
    *,
    made_by: MadeBy,
    scaling: AutoscalingFile | None = None,
) -> DeploymentPlan:
    """Resolve a deployment for a repository.

    Args:
        engine_folder: Where the repository's `tensorrt_llm` model looks for its engine; None without one.
        scaling: A simulated control law, whose replicas the deployment's settings state.

    Raises:
        MissingError: No image is known with the engine's TensorRT-LLM.
        UserError: Fewer replicas at most than at least.
    """
    if deployment.max_replicas < deployment.replicas:
        raise UserError(
            f"--max-replicas {deployment.max_replicas} is less than --replicas {deployment.replicas}",
            hint=f"--max-replicas {deployment.replicas}, or more",
        )
    manifest = read_repository(repository)
    serve = manifest.variant == "trtllm_serve"
    if manifest.kind == "relayed":
        raise UserError(
            f"{repository}: it relays requests to a server on this machine, {manifest.relay and manifest.relay.url}",
            hint="serve it here with serve-repo, or build a repository of the engine itself",
        )
    if serve:
        _require_deployable(manifest)
    engine, built = manifest.engine, manifest.kind == "built"
    version = engine.versions.get("tensorrt_llm")
    ranks = engine.parallel.tensor * engine.parallel.pipeline
    longest_s = predicted_reply_s(manifest) if deployment.longest_reply_s == "auto" else deployment.longest_reply_s
    weights = engine.model.weights_bytes(PRECISIONS[engine.precision.name])
    within_s = math.ceil(longest_s)
    slots = engine.limits.max_batch_size * engine.parallel.pipeline
    return DeploymentPlan(
        made_by=made_by,
        made_from=[source_of(repository / REPOSITORY_NAME)],
        deployment=deployment,
        kind=manifest.kind,
        variant=manifest.variant,
        llm_api=choices_of(engine).version if serve else None,
        image=_image(manifest) if deployment.image == "auto" else deployment.image,
        tensorrt_llm=version if built else None,
        repository=str(repository.absolute()),
        served_at=manifest.served_at,
        engine=str(engine_folder.absolute()) if built and engine_folder else None,
        gpus=ranks if built else 0,
        compute_capability=engine.gpu.compute_capability,
        model=engine.title,
        max_batch_size=engine.limits.max_batch_size,
        shm_bytes=SHM_BYTES_PER_RANK * ranks,
        memory_bytes=_whole_gib(weights * 1.2 + 8 * GIB) if built else 4 * GIB,
        cpus=4 * ranks if built else 2,
        longest_reply_s=round(longest_s, 1),
        longest_reply_from="predicted" if deployment.longest_reply_s == "auto" else "flag",
        termination_s=deployment.drain_before_s + within_s + EXIT_S,
        drain_within_s=within_s,
        start_s=max(MIN_START_S, math.ceil(weights / LOAD_BYTES_PER_S)) if built else 120,
        stages=engine.parallel.pipeline,
        slots=slots,
        in_flight_per_replica=max(1, int(slots * BUSY_RATIO)),
        queue_alarm=max(1, slots // 4),
        command=_command(manifest),
        environment={} if serve else rank_environment(manifest),
        notices=_notices(manifest),
        scaling=scaling,
    )


def _require_deployable(manifest: RepositoryManifest) -> None:
    """Refuse what no container serves: a trtllm-serve twin, and a checkpoint that is not on this machine."""
    if manifest.kind == "emulated":
        raise UserError(
            "the emulated trtllm-serve runs on this machine alone: no container holds it",
            hint="serve-repo serves it; to rehearse a deployment, build-repo --server triton",
        )
    if not Path(manifest.loads or "").is_absolute():
        raise UserError(
            f"{manifest.loads} would be downloaded by every server, and these reach nobody",
            hint="download it, and name its folder: build-engine --published /models/NAME",
        )


def _image(manifest: RepositoryManifest) -> str:
    if manifest.variant == "trtllm_serve":
        return serve_image(manifest.engine)
    return trtllm.container_image(manifest.engine.versions.get("tensorrt_llm") or "(none)")


def _command(manifest: RepositoryManifest) -> list[str]:
    if manifest.variant == "trtllm_serve":  # it starts its own ranks
        served_at = Path(manifest.served_at)
        port = f"${{HTTP_PORT:-{PORTS['http']}}}"
        return [*serve_command_of(served_at, manifest, address="0.0.0.0", port=port), "$@"]
    ports = [f"--{name}-port=${{{name.upper()}_PORT:-{port}}}" for name, port in PORTS.items()]
    command = ["tritonserver", *server_flags(manifest.served_at, "$key"), *ports, *FLAGS, "$@"]
    return across_ranks(command, manifest, manifest.served_at, "deployed_")


def predicted_reply_s(manifest: RepositoryManifest) -> float:
    """Return how long the longest reply can take, in wall seconds, by the engine's step-time model.

    A reply of `max_seq_len` tokens beside a full batch that fills the KV cache: every step as slow as the engine's
    decode steps become. While a server drains its batch only shrinks, so this is not passed by much else than a
    step-time model that is wrong; it is a prediction, and a measured figure given with the flag is better.
    """
    engine = manifest.engine
    cached = engine.kv_cache.blocks * engine.kv_cache.tokens_per_block
    tokens = min(cached, engine.limits.max_batch_size * engine.limits.max_seq_len)
    shape = StepShape(decode_sequences=engine.limits.max_batch_size, decode_context_tokens=tokens)
    step_s = step_time_for(engine).seconds(shape)
    return (
        engine.limits.max_seq_len
        * step_s
        * (manifest.resolved.emulation.time_scale if manifest.kind == "emulated" else 1.0)
    )


def _notices(manifest: RepositoryManifest) -> list[str]:
    notices = []
    if manifest.kind == "emulated":
        notices.append("an emulated engine: no GPU is asked for, and every latency is the step-time model's")
    if manifest.variant == "trtllm_serve":
        notices.append(
            "trtllm-serve: how it ends what is in flight at SIGTERM is uvicorn's matter; this was never run on a GPU"
        )
    elif _ranks(manifest.engine) > 1:
        notices.append("several GPUs: ranks are started by mpirun; this was never run on such a machine")
    return notices


def _ranks(engine: EngineManifest) -> int:
    return engine.parallel.tensor * engine.parallel.pipeline


def _whole_gib(size: float) -> int:
    return math.ceil(size / GIB) * GIB
