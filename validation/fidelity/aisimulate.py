"""NVIDIA's simulator `aisimulate`, run on the same points."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import yaml

from engines.spec import model_named
from validation.fidelity.cases import Case, Measured

AISIMULATE_TIMEOUT_S = 120
AISIMULATE_GPUS = {"a100-sxm-80gb": "a100_sxm", "h100-sxm-80gb": "h100_sxm", "h200-sxm-141gb": "h200_sxm"}
AISIMULATE_BACKENDS = {"trtllm-1.x-triton": "trtllm", "trtllm-serve": "trtllm", "vllm-v1": "vllm", "sglang": "sglang"}


def ask_aisimulate(python: str, case: Case, point: Measured) -> dict[str, float] | None:
    """Return what NVIDIA's simulator says of a point; None where it refuses the case, or takes too long.

    It takes lengths as they are on average; all its other settings are its defaults.
    """
    hardware, backend = AISIMULATE_GPUS.get(case.gpu), AISIMULATE_BACKENDS.get(case.engine_profile)
    if not case.aisimulate or hardware is None or backend is None:
        return None
    load: dict[str, Any] = {"type": "concurrency", "concurrency": int(point.load)}
    requests = 3 * int(point.load) if case.load == "closed_loop" else int(point.load)
    if case.load == "open_loop":
        load, requests = {"type": "poisson", "requests_per_second": point.load, "seed": 0}, 1000
    batch = int(point.load) if case.max_batch_size == "load" else case.max_batch_size
    worker: dict[str, Any] = {"scheduler": {"max_batched_tokens": case.max_num_tokens, "max_sequences": batch}}
    if case.precision == "fp8":
        worker["timing"] = {"gemm_quant_mode": "fp8_static", "kvcache_quant_mode": "fp8"}
    traffic = {
        "source": {"type": "synthetic", "input_tokens": point.isl, "output_tokens": point.osl},
        "load": load,
        "stop": {"requests": requests},
    }
    engine = {"hardware": hardware, "backend": backend, "workers": {"aggregated": worker}}
    found = simulated(python, case.model, traffic, engine)
    if found is None:
        return None
    itl = found["median_itl_ms" if case.itl == "p50" else "mean_itl_ms"]
    return {
        "tokens_per_s": found["output_throughput_tok_s"],
        "itl": itl * 1e-3,
        "ttft": found["mean_ttft_ms"] * 1e-3,
    }


def simulated(python: str, model: str, traffic: dict[str, Any], engine: dict[str, Any]) -> dict[str, Any] | None:
    """Return the simulator's figures of a known model by its own settings; None where it refuses or takes too long."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_geometry(model)), encoding="utf-8")
        config = {"traffic": traffic, "engine": {"model": folder} | engine}
        (Path(folder) / "aisimulate.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [python, "-m", "aisimulate", "predict", "-c", f"{folder}/aisimulate.yaml", "--format", "json"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=AISIMULATE_TIMEOUT_S, check=True, cwd=folder
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _geometry(name: str) -> dict[str, Any]:
    model = model_named(name)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "vocab_size": model.vocab_size,
        "torch_dtype": "bfloat16",
    }
