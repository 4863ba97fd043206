"""Process layout of an engine over several GPUs: TensorRT-LLM's leader mode and orchestrator mode.

Leader mode: MPI starts Triton once per rank; the first serves, the others load only the engine's model and wait for it.
Orchestrator mode: one Triton, which starts the workers itself. Neither was run on several GPUs by this project.

Source:
    TensorRT-LLM, triton_backend/scripts/launch_triton_server.py and docs of its Triton backend, 1.1 to 1.2.
"""

from __future__ import annotations

from triton_repo.settings import RepositoryManifest


def rank_environment(repository: RepositoryManifest) -> dict[str, str]:
    """Return the environment variables for the process mode in the settings."""
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
        command: The command line for a single process.
        folder: The repository's path.
        prefix: Prefix of the shared memory names; each rank has its own.
    """
    ranks = repository.engine.parallel.tensor * repository.engine.parallel.pipeline
    if not _is_engine(repository) or repository.resolved.processes.mode != "leader" or ranks == 1:
        return command
    whole = ["mpirun", "--allow-run-as-root", "-n", "1", *command]
    for rank in range(1, ranks):
        whole += [":", "-n", "1", command[0], *_waiting(folder), _shared_memory(prefix, rank)]
    return whole


def _is_engine(repository: RepositoryManifest) -> bool:
    """Whether TensorRT-LLM's backend serves it, as opposed to an emulated engine or the LLM API's model."""
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
