"""Files for the PyTorch backend: the LLM API's arguments, `trtllm-serve`'s command, disaggregated servers.

Nothing is compiled for this backend. A plan's values become arguments, with the names of the target version
(`engines.spec.llm_api`).
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from engines.manifest import Disaggregation, EngineManifest, LlmApiChoices
from engines.spec import KvFormat, llm_api, llm_api_version_of, require_known_arguments

# Formats that the PyTorch backend runs and ModelOpt exports for it.
PYTORCH_PRECISIONS = ("bf16", "fp16", "fp8", "int4_awq", "w4a8_awq", "nvfp4")
MODEL_YAML = "model.yaml"
SERVE_YAML = "trtllm-serve.yaml"
CONTEXT_YAML = "context.yaml"
GENERATION_YAML = "generation.yaml"
ROUTER_YAML = "disagg.yaml"
SERVE_PORT = 8000  # trtllm-serve's own default
# Timeout for servers to load, and for a reply, in seconds; the default is 180, and an 8B checkpoint may take longer.
ROUTER_WAITS_S = "3600"
_KV_DTYPES: dict[KvFormat, str] = {"16bit": "auto", "fp8": "fp8", "nvfp4": "nvfp4"}
_HEADERS = {
    MODEL_YAML: "For Triton's llmapi model, as tensorrt_llm/1/model.yaml; triton_config is for Triton alone.",
    SERVE_YAML: "For trtllm-serve MODEL {flag} {name}; commands.sh has the whole line.",
    CONTEXT_YAML: "For the prefill servers: trtllm-serve MODEL {flag} {name}.",
    GENERATION_YAML: "For the decode servers: trtllm-serve MODEL {flag} {name}.",
    ROUTER_YAML: "For the router in front of them: trtllm-serve disaggregated -c {name}.",
}


def pytorch_refusal(precision: str, kv_cache: KvFormat) -> str | None:
    """Return why the PyTorch backend cannot run this pair of formats; None if it can.

    >>> pytorch_refusal("int8_sq", "16bit")
    "TensorRT-LLM's PyTorch backend does not run int8_sq; it runs bf16, fp16, fp8, int4_awq, w4a8_awq, nvfp4"
    >>> pytorch_refusal("fp8", "fp8") is None
    True
    """
    if precision not in PYTORCH_PRECISIONS:
        return f"TensorRT-LLM's PyTorch backend does not run {precision}; it runs {', '.join(PYTORCH_PRECISIONS)}"
    if kv_cache == "int8":
        return "TensorRT-LLM's PyTorch backend has no INT8 KV cache; it has FP8, 16 bit and, on Blackwell, NVFP4"
    return None


@dataclass(frozen=True, slots=True)
class LlmRuntime:
    """Run-time settings of an engine that are chosen when it is served.

    Attributes:
        more_kv_cache: Further keys of `kv_cache_config`.
        more: Further arguments.
    """

    scheduler_policy: str
    chunked_prefill: bool
    block_reuse: bool
    kv_fraction: float
    more_kv_cache: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


def planned_runtime(engine: EngineManifest) -> LlmRuntime:
    """Return the run-time settings that the engine was planned with."""
    return LlmRuntime(
        scheduler_policy=engine.runtime.scheduler_policy,
        chunked_prefill=engine.runtime.chunked_context,
        block_reuse=engine.runtime.kv_reuse,
        kv_fraction=engine.kv_cache.free_gpu_mem_fraction,
    )


def choices_of(engine: EngineManifest) -> LlmApiChoices:
    """Return an engine's settings for the LLM API; if its manifest has none, only its release's version."""
    if engine.llm_api is not None:
        return engine.llm_api
    return LlmApiChoices(version=llm_api_version_of(engine.versions.get("tensorrt_llm", "1.2")))


def llm_arguments(engine: EngineManifest, runtime: LlmRuntime | None = None) -> dict[str, Any]:
    """Return the arguments of `tensorrt_llm.LLM` for the planned engine, except the model's path.

    Args:
        runtime: None: as planned.

    Raises:
        UserError: The target version does not have one of them.
    """
    runtime = runtime or planned_runtime(engine)
    choices = choices_of(engine)
    arguments: dict[str, Any] = {
        "backend": "pytorch",
        "tensor_parallel_size": engine.parallel.tensor,
        "pipeline_parallel_size": engine.parallel.pipeline,
        "max_batch_size": engine.limits.max_batch_size,
        "max_num_tokens": engine.limits.max_num_tokens,
        "max_seq_len": engine.limits.max_seq_len,
        "max_beam_width": engine.limits.max_beam_width,
        "enable_chunked_prefill": runtime.chunked_prefill,
        "scheduler_config": {"capacity_scheduler_policy": runtime.scheduler_policy.upper()},
        "kv_cache_config": {
            "enable_block_reuse": runtime.block_reuse,
            "free_gpu_memory_fraction": runtime.kv_fraction,
            "dtype": _KV_DTYPES[engine.precision.kv_cache],
            "tokens_per_block": engine.kv_cache.tokens_per_block,
            **runtime.more_kv_cache,
        },
        "cuda_graph_config": _cuda_graphs(engine, choices),
        **_adapters(choices),
        **_speculation(choices),
        **runtime.more,
    }
    require_known_arguments(arguments, choices.version)
    return arguments


def _cuda_graphs(engine: EngineManifest, choices: LlmApiChoices) -> dict[str, Any]:
    """Return the batch sizes for CUDA graphs; TensorRT-LLM does not accept both the sizes and their maximum."""
    if choices.cuda_graph_batch_sizes:
        sizes: dict[str, Any] = {"batch_sizes": list(choices.cuda_graph_batch_sizes)}
    else:
        sizes = {"max_batch_size": engine.limits.max_batch_size}
    return sizes | {"enable_padding": choices.cuda_graph_padding}


def _adapters(choices: LlmApiChoices) -> dict[str, Any]:
    options = choices.adapters
    if options is None:
        return {}
    config: dict[str, Any] = {"lora_target_modules": list(options.target_modules), "max_lora_rank": options.max_rank}
    counts = {"max_loras": options.max_loras, "max_cpu_loras": options.max_cpu_loras}
    return {"lora_config": config | {name: count for name, count in counts.items() if count is not None}}


def _speculation(choices: LlmApiChoices) -> dict[str, Any]:
    options = choices.speculation
    if options is None:
        return {}
    config: dict[str, Any] = {
        "decoding_type": llm_api(choices.version).decoding_types[options.method],
        "max_draft_len": options.max_draft_len,
    }
    if options.draft_model is not None:
        config["speculative_model"] = options.draft_model
    if options.max_matching_ngram_size is not None:
        config["max_matching_ngram_size"] = options.max_matching_ngram_size
    if options.max_total_draft_tokens is not None:
        config["max_total_draft_tokens"] = options.max_total_draft_tokens
    arguments: dict[str, Any] = {"speculative_config": config}
    # Except with eagle3, drafts are made outside the model's step, which therefore cannot overlap with the next one.
    if options.method != "eagle3":
        arguments["disable_overlap_scheduler"] = True
    return arguments


def model_document(
    arguments: Mapping[str, Any], *, model: str, tokenizer: str | None, triton_config: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `model.yaml` of Triton's llmapi model: the arguments, and Triton's own settings."""
    place = {"model": model} if tokenizer is None else {"model": model, "tokenizer": tokenizer}
    return {**place, **arguments, "triton_config": dict(triton_config)}


def serve_document(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the YAML of `trtllm-serve`: the arguments, with both kinds of metrics enabled.

    Without `return_perf_metrics` there is no `/prometheus/metrics`; without `enable_iter_perf_stats`, `/metrics` is
    empty and the gauges of queue, batch and KV blocks are never updated.
    """
    return {**arguments, "return_perf_metrics": True, "enable_iter_perf_stats": True}


def served_model(engine: EngineManifest, checkpoint: str) -> str:
    """Return the model that a server loads: the published checkpoint if one was named, else this folder."""
    return choices_of(engine).published_checkpoint or checkpoint


def serve_command(engine: EngineManifest, *, model: str, config: str, host: str, port: str) -> list[str]:
    """Return the command line of one `trtllm-serve`; everything except address and model is in its YAML."""
    flag = llm_api(choices_of(engine).version).config_flag
    return ["trtllm-serve", "serve", model, "--host", host, "--port", port, flag, config]


def serving_files(engine: EngineManifest, *, name: str, checkpoint: str = "checkpoint") -> dict[str, str]:
    """Return every file for the PyTorch backend by name: YAML for Triton and trtllm-serve, and the commands.

    Args:
        name: The engine's name, for the files' first lines.
        checkpoint: Path of the checkpoint on the server.
    """
    arguments = llm_arguments(engine)
    model = served_model(engine, checkpoint)
    # 0: Triton does not batch, TensorRT-LLM does; decoupled: a request may have many responses.
    triton = {"max_batch_size": 0, "decoupled": True}
    documents = {
        MODEL_YAML: model_document(arguments, model=model, tokenizer=None, triton_config=triton),
        SERVE_YAML: serve_document(arguments),
    }
    split = choices_of(engine).disaggregation
    if split is not None:
        documents |= _split_documents(engine, split, arguments)
    written = {file: _headed(engine, name, file) + _yaml(document) for file, document in documents.items()}
    return {**written, "commands.sh": _commands(engine, model, name)}


def _split_documents(
    engine: EngineManifest, split: Disaggregation, arguments: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return the YAML of prefill servers, of decode servers, and of the router.

    Source:
        TensorRT-LLM, docs/source/features/disagg-serving.md: the overlap scheduler is not for context servers, and the
        buffer should hold the longest prompt; llmapi/disagg_utils.py: what the router reads.
    """
    transfer = {"backend": split.transfer, "max_tokens_in_buffer": split.max_tokens_in_buffer}
    both = serve_document({**arguments, "cache_transceiver_config": transfer})
    context = both | {"disable_overlap_scheduler": True}
    version = choices_of(engine).version
    require_known_arguments(context, version)
    context_urls, generation_urls = split_addresses(split)
    router = {
        "hostname": "localhost",
        "port": SERVE_PORT,
        "context_servers": {"num_instances": split.context_servers, "urls": context_urls},
        "generation_servers": {"num_instances": split.generation_servers, "urls": generation_urls},
    }
    return {CONTEXT_YAML: context, GENERATION_YAML: both, ROUTER_YAML: router}


def split_addresses(split: Disaggregation) -> tuple[list[str], list[str]]:
    """Return the addresses of prefill and decode servers on one machine, on the ports after the router's.

    >>> from engines.manifest import Disaggregation
    >>> split_addresses(Disaggregation(context_servers=1, generation_servers=2, transfer="UCX", max_tokens_in_buffer=1))
    (['localhost:8001'], ['localhost:8002', 'localhost:8003'])
    """
    ports = [SERVE_PORT + 1 + index for index in range(split.context_servers + split.generation_servers)]
    urls = [f"localhost:{port}" for port in ports]
    return urls[: split.context_servers], urls[split.context_servers :]


def _commands(engine: EngineManifest, model: str, name: str) -> str:
    """Return the script that serves an engine folder with `trtllm-serve`."""
    lines = [
        "#!/usr/bin/env bash",
        f"# Serves {name} with TensorRT-LLM {_release(engine)}, in {serve_image(engine)}",
        "# Address and port may be set: HOST=0.0.0.0 PORT=9000 ./commands.sh",
        "set -euo pipefail",
        'cd "$(dirname "$0")"',
    ]
    split = choices_of(engine).disaggregation
    lines += _split_commands(engine, model, split) if split is not None else [_single_command(engine, model)]
    return "\n".join(lines) + "\n"


def _single_command(engine: EngineManifest, model: str) -> str:
    host, port = '"${HOST:-127.0.0.1}"', f'"${{PORT:-{SERVE_PORT}}}"'
    command = serve_command(engine, model=model, config=SERVE_YAML, host="HOST", port="PORT")
    return "exec " + " ".join({"HOST": host, "PORT": port}.get(part) or shlex.quote(part) for part in command)


def _split_commands(engine: EngineManifest, model: str, split: Disaggregation) -> list[str]:
    """Return the lines that start every server, then the router; all end together."""
    ranks = engine.parallel.tensor * engine.parallel.pipeline
    context_urls, generation_urls = split_addresses(split)
    lines = ["trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    servers = [(url, CONTEXT_YAML) for url in context_urls] + [(url, GENERATION_YAML) for url in generation_urls]
    for index, (url, config) in enumerate(servers):
        host, port = url.split(":")
        gpus = ",".join(str(gpu) for gpu in range(index * ranks, (index + 1) * ranks))
        command = serve_command(engine, model=model, config=config, host=host, port=port)
        lines.append(f"CUDA_VISIBLE_DEVICES={gpus} {shlex.join(command)} &")
    return [
        *lines,
        shlex.join(["trtllm-serve", "disaggregated", "-c", ROUTER_YAML, "-t", ROUTER_WAITS_S, "-r", ROUTER_WAITS_S]),
    ]


def _headed(engine: EngineManifest, name: str, file: str) -> str:
    use = _HEADERS[file].format(flag=llm_api(choices_of(engine).version).config_flag, name=file)
    return f"# {name}: TensorRT-LLM {_release(engine)}, PyTorch backend; a key it does not know ends it.\n# {use}\n"


def _release(engine: EngineManifest) -> str:
    return engine.versions.get("tensorrt_llm") or llm_api(choices_of(engine).version).release


def serve_image(engine: EngineManifest) -> str:
    """Return the container image with `trtllm-serve` in the engine's release."""
    return f"nvcr.io/nvidia/tensorrt-llm/release:{_release(engine)}"


def _yaml(document: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(document), sort_keys=False)
