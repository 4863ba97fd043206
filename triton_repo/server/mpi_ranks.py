"""How the processes of an engine over several GPUs are started: TensorRT-LLM's leader mode and its orchestrator mode.

Leader mode: MPI starts Triton once for each rank; the first serves, the others load the engine's model alone and wait
for it. Orchestrator mode: one Triton, which starts the workers itself. Neither was run from here on several GPUs.

Source:
    TensorRT-LLM, triton_backend/scripts/launch_triton_server.py and docs of its Triton backend, 1.1 to 1.2.
"""

from __future__ import annotations

from triton_repo.settings import RepositoryManifest


def rank_environment(repository: RepositoryManifest) -> dict[str, str]:
    """Return what the server's environment must have for the mode its settings ask for."""
    processes = repository.resolved.processes
    if not _is_engine(repository) or processes.mode == "leader":
        return {}
    return {
        "TRTLLM_ORCHESTRATOR": "1",
        "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": str(int(processes.spawn_processes)),
    }


def across_ranks(command: list[str], repository: RepositoryManifest, folder: str, prefix: str) -> list[str]:
    """Return the command line that serves an engine over all its ranks.

    Args:
        command: The one that serves it from one process.
        folder: The repository's.
        prefix: Begins the names of its shared memory; each rank has its own.
    """
    ranks = repository.engine.parallel.tensor * repository.engine.parallel.pipeline
    if not _is_engine(repository) or repository.resolved.processes.mode != "leader" or ranks == 1:
        return command
    whole = ["mpirun", "--allow-run-as-root", "-n", "1", *command]
    for rank in range(1, ranks):
        whole += [":", "-n", "1", command[0], *_waiting(folder), _shared_memory(prefix, rank)]
    return whole


def _is_engine(repository: RepositoryManifest) -> bool:
    """Whether TensorRT-LLM's backend serves it: neither an emulated engine nor the LLM API's model."""
    return repository.kind == "built" and repository.variant == "inflight_batcher_llm"


def _waiting(folder: str) -> list[str]:
    return [
        f"--model-repository={folder}",
        "--model-control-mode=explicit",
        "--load-model=tensorrt_llm",
        "--disable-auto-complete-config",
        "--allow-http=false",
        "--allow-grpc=false",
        "--allow-metrics=false",
    ]


def _shared_memory(prefix: str, rank: int) -> str:
    return f"--backend-config=python,shm-region-prefix-name={prefix}rank{rank}_"
