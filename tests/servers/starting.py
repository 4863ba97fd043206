"""Starting the front before a real model, and LiteLLM's proxy before others; for the tests and the bench."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import yaml

from engines.ports import free_ports
from tests.servers.endpoint import FRONT_KEY, GATEWAY_KEY, MODEL, Endpoint, command
from validation.real.server_process import running
from validation.real.settings import Limits

LIMITS = Limits(max_batch_size=8, max_num_tokens=512, max_seq_len=512)
# The plan needs an accelerator; nothing is predicted with it here.
ACCELERATOR = {
    "name": "one-core",
    "device": "cpu",
    "kind": "stated",
    "threads": 1,
    "memory_bytes": {"value": 16e9, "source": "any"},
    "bandwidth_bytes_per_s": {"value": 2e10, "source": "any"},
    "dense_flops": {"fp32": {"value": 5e10, "source": "any"}},
}


@contextmanager
def front_before(engine: Endpoint, checkpoint: Path, folder: Path, *, core: int | None = None) -> Iterator[Endpoint]:
    """Serve Triton and its OpenAI front before another server, which runs a checkpoint.

    Args:
        folder: Where the repository is written.
        core: Triton and the front are pinned to it; None: wherever the system puts them.
    """
    (folder / "core.yaml").write_text(yaml.safe_dump(ACCELERATOR))
    (folder / "keys.txt").write_text(f"{FRONT_KEY}\n")
    limits = ("--max-batch-size", LIMITS.max_batch_size, "--max-seq-len", LIMITS.max_seq_len)
    plan = ("--checkpoint", checkpoint, "--gpu", folder / "core.yaml", "--precision", "fp32", *limits)
    command("build-engine", "--emulate", *plan, "--out", folder / "engine")
    command("build-repo", folder / "engine", "--engine-url", engine.url, "--out", folder / "repository")
    http, grpc, metrics, port = free_ports(4)
    ports = ("--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics, "--openai-port", port)
    flags = ("--openai", "--api-key-file", folder / "keys.txt", "--openai-model", MODEL, "--tritonserver", "local")
    command("serve-repo", folder / "repository", *ports, *flags, "--detach", "--stop-after", 3600, core=core)
    try:
        yield Endpoint(f"http://127.0.0.1:{port}", MODEL, FRONT_KEY)
    finally:
        command("serve-repo", folder / "repository", "--stop")


@contextmanager
def litellm_before(behind: Mapping[str, Endpoint], python: Path, folder: Path, *, core: int) -> Iterator[Endpoint]:
    """Serve LiteLLM's proxy before other servers, each by its name here.

    Args:
        python: Of the environment with LiteLLM.
        folder: For its configuration and its log.
    """
    models = [
        {
            "model_name": name,
            "litellm_params": {"model": f"hosted_vllm/{each.model}", "api_base": f"{each.url}/v1", "api_key": each.key},
        }
        for name, each in behind.items()
    ]
    settings = {"general_settings": {"master_key": GATEWAY_KEY}, "litellm_settings": {"telemetry": False}}
    config = folder / "litellm.yaml"
    config.write_text(yaml.safe_dump({"model_list": models, **settings}))
    (port,) = free_ports(1)
    with running(
        [str(python.parent / "litellm"), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
        "LiteLLM's proxy",
        url=f"http://127.0.0.1:{port}/health/liveliness",
        model=next(iter(behind)),
        core=core,
        log=folder / "litellm.log",
        environment={"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"},
    ) as server:
        yield Endpoint(server.url, server.model, GATEWAY_KEY)
