"""Known problems: settings that contradict each other or the engine, and common mistakes; each with its fix.

Source:
    Issues of triton-inference-server/tensorrtllm_backend and NVIDIA/TensorRT-LLM, cited by number;
    `model_instance_state.cc` for the backend's handling of parameters.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.build import MODEL_YAML, SERVE_YAML
from engines.errors import CommandError
from engines.files import load_yaml
from engines.spec import unknown_arguments
from triton_repo.audit.engine_match import engine_agreement, served_of
from triton_repo.audit.findings import FALSE, TRUE, Finding, ModelFile, Severity, finding_of, number_of
from triton_repo.interface import MUST_BE_THERE, NEVER_WRITTEN, model_parameters
from triton_repo.settings import EngineConfig, RepositoryManifest, ServingSettings, all_settings, misfits

_BUILD_SERVE_AGAIN = "build the repository again: build-repo ENGINE_DIR --server trtllm-serve --force"
POLICIES = ("max_utilization", "guaranteed_no_evict")
BATCHING = ("inflight_fused_batching", "inflight_batching", "v1", "V1")
MODES = ("top_k", "top_p", "top_k_top_p", "beam_search", "medusa", "redrafter", "lookahead", "eagle")
# Parameters which change the meaning of measured figures if edited after build-repo.
COMPARED = ("gpt_model_type", "batch_scheduler_policy", "enable_kv_cache_reuse", "enable_chunked_context")
OURS = {
    "emulated", "emulator_time_scale", "emulator_manifest", "engine_name", "max_prompt_tokens", "max_output_tokens",
    "engine_url", "engine_model", "vocabulary",
}  # fmt: skip
KNOWN = {
    name for setting in all_settings(ServingSettings()) if (name := setting.target.engine_parameter) is not None
} | {*MUST_BE_THERE, *NEVER_WRITTEN, *OURS, "max_beam_width", "FORCE_CPU_ONLY_INPUT_TENSORS", "gpt_model_path"}
BOOLEANS = (
    "kv_cache_onboard_blocks", "exclude_input_in_output", "enable_kv_cache_reuse", "normalize_log_probs",
    "enable_chunked_context", "enable_context_fmha_fp32_acc", "multi_block_mode", "cuda_graph_mode",
    "speculative_decoding_fast_logits",
)  # fmt: skip
NUMBERS = (
    "max_beam_width", "max_tokens_in_paged_kv_cache", "sink_token_length", "kv_cache_free_gpu_mem_fraction",
    "cross_kv_cache_fraction", "kv_cache_host_memory_bytes", "cancellation_check_period_ms", "stats_check_period_ms",
    "recv_poll_period_ms", "iter_stats_max_iterations", "request_stats_max_iterations", "num_nodes",
    "lora_cache_optimal_adapter_size", "lora_cache_max_adapter_size", "lora_cache_gpu_memory_fraction",
    "lora_cache_host_memory_bytes", "lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size",
    "gpu_weights_percent", "cuda_graph_cache_size",
)  # fmt: skip
MAX_KV_FRACTION = 0.95
_MODEL_NAME = re.compile(r"[A-Za-z0-9._-]*")
Files = Mapping[str, ModelFile]


def engine_issues(folder: Path, files: Files, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find problems of the `tensorrt_llm` model and of the models that must match it."""
    file = files.get("tensorrt_llm")
    if file is None:
        return
    if manifest is not None:
        yield from _edited(folder, file, files, manifest)
    yield from _values(file)
    yield from _streaming(files)
    yield from _queue(files)
    if not _stands_in(file):
        yield from _backend(file)
        yield from engine_agreement(file, files, manifest)


def _stands_in(file: ModelFile) -> bool:
    """Return whether a `tensorrt_llm` model is an emulated engine or a relay to another server."""
    return file.parameters.get("emulated") == "true" or "engine_url" in file.parameters


def text_issues(folder: Path, files: Files, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find problems of the models around the engine: tokenizers, instances, names."""
    for model in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
        if model in files:
            yield from _tokenizer(folder, files[model], manifest)
    post, pre, bls = (files.get(model) for model in ("postprocessing", "preprocessing", "tensorrt_llm_bls"))
    if pre and post and pre.parameters.get("tokenizer_dir") != post.parameters.get("tokenizer_dir"):
        what = f"tokenizer_dir {post.parameters.get('tokenizer_dir')!r} is not preprocessing's"
        yield finding_of("warning", "two-tokenizers", post, what, "give both models the same tokenizer_dir")
    if bls is not None:
        yield from _bls(bls, files)


def llmapi_issues(folder: Path, file: ModelFile, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find problems of the LLM API's model: its model.yaml and config.pbtxt."""
    name = f"tensorrt_llm/1/{MODEL_YAML}"
    try:
        document = load_yaml(folder / name)
    except CommandError as error:
        what = error.message.removeprefix(f"{folder / name}: ")
        yield Finding(severity="error", code="model-yaml", file=name, what=what, fix=error.hint or "write it again")
        return
    triton_config = document.get("triton_config") if isinstance(document, dict) else None
    if not isinstance(triton_config, dict) or not {"max_batch_size", "decoupled"} <= triton_config.keys():
        what = "no triton_config with max_batch_size and decoupled: the model cannot be loaded"
        fix = "triton_config: {max_batch_size: 0, decoupled: true}"
        yield Finding(severity="error", code="model-yaml", file=name, what=what, fix=fix)
        return
    if triton_config["max_batch_size"] != 0:
        what = f"triton_config.max_batch_size is {triton_config['max_batch_size']!r}; TensorRT-LLM supports only 0"
        yield Finding(severity="error", code="llmapi-batch", file=name, what=what, fix="max_batch_size: 0")
    if bool(triton_config["decoupled"]) != file.decoupled:
        what = f"decoupled is {file.decoupled}, {name} says {triton_config['decoupled']!r}"
        yield finding_of("error", "decoupled", file, what, "set both to the same value; true enables streaming")
    elif not file.decoupled:
        yield finding_of(
            "advice", "no-streaming", file, "decoupled is false: streamed requests are refused", "decoupled: true"
        )
    if document.get("backend", "pytorch") != "pytorch":
        what = f"backend is {document['backend']!r}: with this model, release 1.0 and later serve only pytorch"
        yield Finding(severity="error", code="llmapi-backend", file=name, what=what, fix="backend: pytorch")
    groups = [group for group in file.parameters.get("gpu_device_ids", "").split(";") if group]
    if file.instances > 1 and len(groups) != file.instances:
        what = f"{file.instances} instances and {len(groups)} groups of GPUs in gpu_device_ids"
        yield finding_of("error", "instances", file, what, "give one group per instance: '0;1'")
    yield from _llm_arguments(name, document, manifest)
    if file.parameters.get("emulated") == "true":
        yield from _tokenizer(folder, file, manifest)
    else:
        yield from _checkpoint_here(name, document, manifest)


def serve_traps(folder: Path, manifest: RepositoryManifest) -> Iterator[Finding]:
    """Find problems in the YAML of trtllm-serve."""
    try:
        document = load_yaml(folder / SERVE_YAML)
    except CommandError as error:
        what = error.message.removeprefix(f"{folder / SERVE_YAML}: ")
        yield Finding(
            severity="error", code="model-yaml", file=SERVE_YAML, what=what, fix=error.hint or _BUILD_SERVE_AGAIN
        )
        return
    yield from _llm_arguments(SERVE_YAML, document, manifest)
    if not document.get("return_perf_metrics"):
        what = (
            "return_perf_metrics is false: there is no /prometheus/metrics, so there is nothing to monitor or scale by"
        )
        yield Finding(severity="warning", code="serve-metrics", file=SERVE_YAML, what=what, fix="true")


def _llm_arguments(name: str, document: dict[str, Any], manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find arguments that the engine's TensorRT-LLM version does not have."""
    choices = manifest.engine.llm_api if manifest is not None else None
    if choices is not None:
        arguments = {key: value for key, value in document.items() if key != "triton_config"}
        for key in unknown_arguments(arguments, choices.version):
            what = f"'{key}' is not an argument of TensorRT-LLM {choices.version}: it refuses the file"
            yield Finding(severity="error", code="llmapi-unknown-key", file=name, what=what, fix="remove it")


def _checkpoint_here(name: str, document: dict[str, Any], manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find a checkpoint that is neither on this machine nor a published one that can be downloaded."""
    choices = manifest.engine.llm_api if manifest is not None else None
    is_published = choices is not None and choices.published_checkpoint is not None
    if not is_published and not Path(str(document.get("model"))).exists():
        what = f"model {document.get('model')!r} is not on this machine"
        fix = "it must exist on the serving machine: mount it, or run build-repo again"
        yield Finding(severity="warning", code="checkpoint-not-here", file=name, what=what, fix=fix)


def _values(file: ModelFile) -> Iterator[Finding]:
    values = file.parameters
    raw = set(file.config.parameters)
    for key in MUST_BE_THERE if "engine_url" not in values else ("engine_model", "vocabulary"):
        if key not in raw:
            what = f"parameter '{key}' is missing: the backend does not load without the key"
            yield finding_of("error", "missing-parameter", file, what, f'add {key}, with "" if there is no value')
    for key in sorted(raw - KNOWN):
        close = difflib.get_close_matches(key, KNOWN, n=1)
        fix = f"did you mean '{close[0]}'?" if close else "remove it"
        yield finding_of("warning", "unknown-parameter", file, f"parameter '{key}' is not read by TensorRT-LLM", fix)
    yield from _enumerated(file, "gpt_model_type", BATCHING, "error", "inflight_fused_batching")
    yield from _enumerated(file, "batch_scheduler_policy", POLICIES, "warning", "guaranteed_no_evict")
    yield from _enumerated(file, "decoding_mode", MODES, "warning", "top_k_top_p")
    for key in BOOLEANS:
        yield from _enumerated(file, key, (*TRUE, *FALSE), "warning", "true or false")
    for key in NUMBERS:
        if values.get(key) and number_of(values[key]) is None:
            yield finding_of(
                "warning",
                "not-a-number",
                file,
                f"{key} is {values[key]!r}: not a number; the default is used",
                "a number",
            )
    if "enable_trt_overlap" in values:
        what = f"enable_trt_overlap is {values['enable_trt_overlap']!r}: it was removed and is ignored"
        yield finding_of("warning", "removed-parameter", file, what, "remove it")
    if values.get("gpt_model_type") in ("v1", "V1"):
        what = f"gpt_model_type {values['gpt_model_type']}: a batch starts only when the previous one has ended"
        yield finding_of("advice", "static-batching", file, what, "inflight_fused_batching")
    yield from _cache(file, values)


def _cache(file: ModelFile, values: Mapping[str, str]) -> Iterator[Finding]:
    fraction = number_of(values.get("kv_cache_free_gpu_mem_fraction"))
    if fraction is not None and not 0 < fraction < 1:
        what = f"kv_cache_free_gpu_mem_fraction is {fraction:g}: it must be above 0 and below 1"
        yield finding_of("error", "kv-fraction", file, what, "0.9")
    elif fraction is not None and fraction > MAX_KV_FRACTION:
        what = f"kv_cache_free_gpu_mem_fraction is {fraction:g}: little is left for what is allocated later (issue 303)"
        yield finding_of("warning", "kv-fraction", file, what, f"at most {MAX_KV_FRACTION}")
    unknown = EngineConfig()  # contradictions within the settings, independent of the engine
    found = {each.code for each in misfits(served_of(file, None, unknown), unknown)}
    if "host-cache" in found:
        what = "kv_cache_host_memory_bytes without enable_kv_cache_reuse: blocks in host memory are never reused"
        yield finding_of("error", "host-cache", file, what, "enable_kv_cache_reuse true, or no host cache")
    if "guided-pair" in found:
        what = "guided_decoding_backend and xgrammar_tokenizer_info_path belong together; one alone has no effect"
        yield finding_of("error", "guided-decoding", file, what, "set both, or neither")
    if values.get("decoding_mode") == "lookahead" and not all(
        values.get(f"lookahead_{part}") for part in ("window_size", "ngram_size", "verification_set_size")
    ):
        yield finding_of(
            "error",
            "lookahead",
            file,
            "decoding_mode lookahead without its three sizes",
            "lookahead_window_size, lookahead_ngram_size and lookahead_verification_set_size",
        )


def _enumerated(file: ModelFile, key: str, allowed: tuple[str, ...], severity: Severity, fix: str) -> Iterator[Finding]:
    value = file.parameters.get(key)
    if value and value not in allowed:
        ends = "the model does not load" if severity == "error" else ("TensorRT-LLM only warns, and uses its default")
        yield finding_of(severity, "invalid-value", file, f"{key} is {value!r}: {ends}", fix)


def _streaming(files: Files) -> Iterator[Finding]:
    engine, bls = files["tensorrt_llm"], files.get("tensorrt_llm_bls")
    if bls is not None and bls.decoupled != engine.decoupled:
        what = f"decoupled is {bls.decoupled}, tensorrt_llm's is {engine.decoupled}: both must be equal (issue 268)"
        yield finding_of("error", "decoupled", bls, what, f"decoupled: {str(engine.decoupled).lower()}")
    if not engine.decoupled and "decoupled_mode" not in engine.placeholders:
        what = "decoupled is False: streamed requests and request batches above 1 are refused (issue 626)"
        yield finding_of("advice", "no-streaming", engine, what, "decoupled: true, in tensorrt_llm_bls too")
    if bls is not None and bls.parameters.get("accumulate_tokens", "").lower() == "true" and not engine.decoupled:
        yield finding_of(
            "error", "decoupled", bls, "accumulate_tokens in a model that cannot stream", "decoupled: true"
        )
    for model in ("preprocessing", "postprocessing"):
        if model in files and files[model].decoupled:
            what = "decoupled is True: an ensemble has one decoupled step, the engine"
            yield finding_of("error", "decoupled", files[model], what, "decoupled: false")


def _queue(files: Files) -> Iterator[Finding]:
    engine = files["tensorrt_llm"]
    policy = engine.config.dynamic_batching.default_queue_policy
    if not policy.max_queue_size and "max_queue_size" not in engine.placeholders:
        what = "max_queue_size is 0: no request is ever refused, and under overload the queue grows without limit"
        yield finding_of("advice", "queue-unlimited", engine, what, "--max-queue-size, a few times max_batch_size")
    sizes = {model: file.config.max_batch_size for model, file in files.items()}
    if len(set(sizes.values())) > 1 and not any(
        "triton_max_batch_size" in file.placeholders for file in files.values()
    ):
        what = "max_batch_size differs between models: " + ", ".join(f"{model} {size}" for model, size in sizes.items())
        yield finding_of("error", "batch-sizes", engine, what, "use one value in all of them")


def _backend(file: ModelFile) -> Iterator[Finding]:
    backend = file.config.backend
    if backend == "python":
        what = "backend is python: no nv_trt_llm_* metrics, and slower than the C++ backend (issue 479)"
        yield finding_of("advice", "python-backend", file, what, "backend: tensorrtllm")
    elif backend != "tensorrtllm" and "triton_backend" not in file.placeholders:
        yield finding_of("error", "backend", file, f"backend is {backend!r}", "backend: tensorrtllm")
    if file.instances > 1 and not file.parameters.get("gpu_device_ids"):
        what = f"{file.instances} instances on the same GPUs: no memory is left for the second (issue 456)"
        yield finding_of("warning", "instances", file, what, "count: 1, or gpu_device_ids with a group for each")


def _edited(folder: Path, file: ModelFile, files: Files, manifest: RepositoryManifest) -> Iterator[Finding]:
    """Find differences between a repository of this project and its manifest."""
    again = "build the repository again"
    for each in files.values():
        size, wanted = each.config.max_batch_size, manifest.engine.limits.max_batch_size
        if size != wanted:
            yield finding_of("error", "edited", each, f"max_batch_size is {size}, {wanted} was expected", again)
    for model in ("tensorrt_llm", "tensorrt_llm_bls"):
        if model in files and files[model].decoupled != manifest.resolved.scheduling.streaming:
            what = f"decoupled is {files[model].decoupled}, {manifest.resolved.scheduling.streaming} was expected"
            yield finding_of("error", "edited", files[model], what, again)
    backend = "tensorrtllm" if manifest.kind == "built" else "python"
    if file.config.backend != backend:
        yield finding_of(
            "error", "edited", file, f"backend is {file.config.backend!r}, {backend!r} was expected", again
        )
    values = file.parameters
    expected = model_parameters(
        manifest, engine_dir=values.get("gpt_model_path", ""), tokenizer_dir=values.get("tokenizer_dir", "")
    )
    for key in sorted(expected.keys() | values.keys()):
        if values.get(key) != expected.get(key):
            severity: Severity = "error" if key in COMPARED else "warning"
            what = f"{key} is {values.get(key)!r}, {expected.get(key)!r} was expected: edited since build-repo wrote it"
            yield finding_of(severity, "edited", file, what, again)
    beside = values.get("emulator_manifest", "")
    if manifest.kind == "emulated" and not (
        _MODEL_NAME.fullmatch(beside) and (folder / "tensorrt_llm" / "1" / beside).is_file()
    ):
        yield finding_of(
            "error", "missing-file", file, "emulator_manifest does not name a file next to the model", again
        )


def _tokenizer(folder: Path, file: ModelFile, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    named = file.parameters.get("tokenizer_dir")
    if not named:
        if file.model != "tensorrt_llm_bls":
            yield finding_of(
                "error", "tokenizer", file, "tokenizer_dir is not given", "the folder of the model's tokenizer"
            )
        return
    inside = Path(named)
    if manifest is not None and inside.is_relative_to(manifest.served_at):
        inside = folder / inside.relative_to(manifest.served_at)
    if not inside.is_dir():
        yield finding_of(
            "warning" if manifest is None else "error",
            "tokenizer",
            file,
            f"tokenizer_dir {named} contains no tokenizer.json: there is no such folder on this machine (issue 109)",
            "run check-repo where it is mounted; set that path with build-repo --served-at",
        )
    elif not (inside / "tokenizer.json").is_file():
        what = f"tokenizer_dir {named} contains no tokenizer.json"
        yield finding_of("error", "tokenizer", file, what, "copy the model's tokenizer there")


def _bls(bls: ModelFile, files: Files) -> Iterator[Finding]:
    for key, default in (("tensorrt_llm_model_name", "tensorrt_llm"), ("tensorrt_llm_draft_model_name", "")):
        name = bls.parameters.get(key) or default
        if not _MODEL_NAME.fullmatch(name) or name in (".", ".."):
            yield finding_of(
                "error", "model-name", bls, f"{key} is {name!r}: not a valid model name", "letters, digits, . _ -"
            )
        elif name and name not in files:
            severity: Severity = "error" if default else "warning"  # a draft model may be added later
            what = f"{key} is {name!r}, but the repository has no such model"
            yield finding_of(severity, "model-name", bls, what, ("name an existing model, or add it to the repository"))
    if bls.instances == 1 and not _stands_in(files["tensorrt_llm"]) if "tensorrt_llm" in files else 0:
        what = "one instance serves one request at a time, regardless of the engine's batch size"
        yield finding_of("warning", "bls-instances", bls, what, "bls_instance_count: the engine's max_batch_size")
