"""How an engine over several GPUs is started."""

from __future__ import annotations

from typing import Any

import pytest

from engines.files import Document, MadeBy
from engines.manifest import Parallel
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.server.mpi_ranks import across_ranks, rank_environment
from triton_repo.settings.repository_manifest import RepositoryManifest, ServingSettings

HEAD = MadeBy(command="test", version="0")
COMMAND = ["tritonserver", "--model-repository=/r", "--http-port=8000"]


def _repository(
    *, tensor: int = 2, kind: str = "built", variant: str = "inflight_batcher_llm", **processes: Any
) -> RepositoryManifest:
    asked = resolve_recipe(None, {})
    engine = emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)
    engine = engine.model_copy(update={"parallel": Parallel(tensor=tensor, pipeline=1)})
    settings = ServingSettings.model_validate({"processes": processes})
    return RepositoryManifest.model_validate(
        {
            "made_by": HEAD, "kind": kind, "variant": variant, "served_at": "/r", "settings": settings,
            "resolved": settings, "engine": engine,
        }
    )  # fmt: skip


def test_leader_mode_starts_triton_for_each_rank() -> None:
    """The first rank serves; the others load the engine's model alone, listen to nobody and share no memory."""
    command = across_ranks(COMMAND, _repository(tensor=3), "/r", "triton_1_")
    assert command[:4] == ["mpirun", "--allow-run-as-root", "-n", "1"]
    first, second, third = " ".join(command[2:]).split(" : ")
    assert first == "-n 1 " + " ".join(COMMAND)
    for rank, text in ((1, second), (2, third)):
        assert text.startswith("-n 1 tritonserver --model-repository=/r")
        assert "--load-model=tensorrt_llm" in text
        assert "--allow-http=false" in text
        assert f"shm-region-prefix-name=triton_1_rank{rank}_" in text
    assert rank_environment(_repository()) == {}


def test_orchestrator_mode_starts_one_triton() -> None:
    """One process, told by its environment to start the workers, or not to."""
    repository = _repository(mode="orchestrator")
    assert across_ranks(COMMAND, repository, "/r", "p") == COMMAND
    assert rank_environment(repository) == {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"}
    waiting = _repository(mode="orchestrator", spawn_processes=False, participant_ids="1,2")
    assert rank_environment(waiting)["TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES"] == "0"


@pytest.mark.parametrize("other", [{"tensor": 1}, {"kind": "emulated"}, {"variant": "llmapi"}])
def test_nothing_else_is_started_twice(other: dict[str, Any]) -> None:
    """One GPU, an emulated engine and the LLM API's model, which starts its own workers, are one process."""
    assert across_ranks(COMMAND, _repository(**other), "/r", "p") == COMMAND
