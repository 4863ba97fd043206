"""Checks a repository's settings against its engine: the engine's config.json, its files, this machine."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from engines.errors import CommandError
from triton_repo.audit.findings import TRUE, Finding, ModelFile, finding_of, number_of
from triton_repo.settings import (
    Code,
    EngineConfig,
    RepositoryManifest,
    Served,
    lacks,
    machine_here,
    misfits,
    read_engine_config,
)

Files = Mapping[str, ModelFile]


def engine_agreement(file: ModelFile, files: Files, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find missing parts of the engine, and settings of the `tensorrt_llm` model that contradict the engine."""
    named = file.parameters.get("gpt_model_path")
    if not named:
        what = "gpt_model_path is not given: 'Both encoder and decoder model paths are empty' (issue 2440)"
        yield finding_of("error", "engine-path", file, what, "give the folder that trtllm-build wrote")
        return
    folder = Path(named)
    if not folder.is_dir():
        what = f"gpt_model_path {named} is not on this machine, so the engine was not checked"
        yield finding_of("warning", "engine-not-here", file, what, "run check-repo where the engine is mounted")
        return
    try:
        config = read_engine_config(folder)
    except CommandError as error:
        yield finding_of("error", "engine-config", file, f"gpt_model_path: {error.message}", error.hint or "")
        return
    if config.max_batch_size is None or config.max_seq_len is None:
        what = f"{folder}/config.json states no build limits: not an engine's, or of another version (issue 2332)"
        yield finding_of("warning", "engine-config", file, what, "use repository and engine of the same version")
    yield from _agrees(file, files, config)
    yield from _machine(file, config, manifest)
    missing = [rank for rank in range(config.ranks or 1) if not (folder / f"rank{rank}.engine").is_file()]
    if missing:
        what = f"{folder} lacks rank{missing[0]}.engine; its config.json states {config.ranks or 1} ranks (issue 129)"
        yield finding_of("error", "ranks", file, what, "copy the complete engine, or build it again")


def _machine(file: ModelFile, config: EngineConfig, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find reasons why this machine, if it has a GPU or TensorRT-LLM, cannot run the engine."""
    built_for = "" if manifest is None else manifest.engine.gpu.compute_capability
    here = machine_here(built_for)
    lacking = set(lacks(here, compute_capability=built_for, ranks=config.ranks or 1, built_by=config.version))
    if here.tensorrt_llm is not None and "version" in lacking:
        what = (
            f"the engine was built by TensorRT-LLM {config.version}, {here.tensorrt_llm} is installed here (issue 531)"
        )
        yield finding_of("error", "engine-version", file, what, "build and serve in one container image")
    if manifest is not None and here.seen and "compute-capability" in lacking:
        seen = ", ".join(sorted(set(here.seen)))
        what = f"the engine was built for compute capability {built_for}, GPUs here have {seen}"
        yield finding_of("error", "compute-capability", file, what, "build it on the GPU that serves it (issue 3031)")


def _agrees(file: ModelFile, files: Files, config: EngineConfig) -> Iterator[Finding]:
    values, built = file.parameters, "the engine's config.json"
    pre = files.get("preprocessing")
    found = {each.code: each.found for each in misfits(served_of(file, pre, config), config)}
    checks: tuple[tuple[str, Code], ...] = (
        ("enable_chunked_context", "chunked-context-unpaged"),
        ("enable_kv_cache_reuse", "kv-reuse-unpaged"),
    )
    for key, code in checks:
        if code in found:
            what = f"{key} is true, but {built} says the engine was built without use_paged_context_fmha"
            fix = f"{key} false, or build with --use_paged_context_fmha enable"
            yield finding_of("error", "paged-context", file, what, fix)
    if "whole-prompts" in found:
        budget, longest = config.max_num_tokens, config.max_input_len
        what = (
            f"without enable_chunked_context no prompt past max_num_tokens ({budget}) runs; max_input_len is {longest}"
        )
        yield finding_of("warning", "whole-prompts", file, what, "enable_chunked_context true")
    size = file.config.max_batch_size
    if config.max_batch_size is not None and size > config.max_batch_size:
        what = f"max_batch_size is {size}, {built} says {config.max_batch_size}"
        yield finding_of("warning", "batch-size", file, what, f"max_batch_size: {config.max_batch_size}")
    width = number_of(values.get("max_beam_width"))
    if width is not None and config.max_beam_width is not None and width > config.max_beam_width:
        what = f"max_beam_width is {width:g}, {built} says {config.max_beam_width}"
        yield finding_of("error", "beam-width", file, what, f"{config.max_beam_width}")
    yield from _decoding_agrees(file, config, found)
    yield from _memory_agrees(file, config, found)
    logits = next((tensor for tensor in file.config.output if tensor.name == "context_logits"), None)
    kind = {11: "fp32", 10: "fp16"}.get(logits.data_type if logits is not None else 0)
    if kind and config.logits and kind != config.logits:
        what = f"logits are {kind}, {built} says {config.logits}: a reply with logits fails"
        yield finding_of("error", "logits-type", file, what, f"logits_datatype TYPE_{config.logits.upper()}")
    if config.gathers_context is False:
        what = "the engine was built without gather_context_logits: return_context_logits fails (issue 530)"
        yield finding_of(
            "advice", "logits-not-gathered", file, what, ("build with trtllm-build --gather_context_logits, if needed")
        )
    if pre is not None and "prompt-limit" in found:
        what = f"max_prompt_tokens is {_prompt_limit(pre):g}, {built} says {config.max_input_len}"
        yield finding_of("warning", "prompt-limit", pre, what, f"{config.max_input_len}")


def served_of(file: ModelFile, preprocessing: ModelFile | None, config: EngineConfig) -> Served:
    """Return what the `tensorrt_llm` model's parameters require of an engine, including the backend's defaults."""
    values = file.parameters
    return Served(
        chunked_context=values.get("enable_chunked_context") in TRUE,
        kv_reuse=values.get("enable_kv_cache_reuse", "true") in TRUE,
        longest_prompt_tokens=config.max_input_len,
        max_prompt_tokens=None if preprocessing is None else _prompt_limit(preprocessing),
        kv_host_bytes=number_of(values.get("kv_cache_host_memory_bytes")) or 0,
        kv_max_tokens=number_of(values.get("max_tokens_in_paged_kv_cache")),
        decoding_mode=values.get("decoding_mode", ""),
        gpu_weights_ratio=number_of(values.get("gpu_weights_percent")),
        prefetches_lora=bool(values.get("lora_prefetch_dir")),
        gpu_device_ids=values.get("gpu_device_ids", ""),
        has_guided_backend=bool(values.get("guided_decoding_backend")),
        has_vocabulary=bool(values.get("xgrammar_tokenizer_info_path")),
    )


def _prompt_limit(preprocessing: ModelFile) -> float | None:
    return number_of(preprocessing.parameters.get("max_prompt_tokens"))


def _decoding_agrees(file: ModelFile, config: EngineConfig, found: Collection[Code]) -> Iterator[Finding]:
    if "decoding-mode" in found:
        mode = file.parameters.get("decoding_mode", "")
        what = f"decoding_mode is {mode!r}, the engine was built for {config.speculation or 'no speculation'}"
        yield finding_of("error", "decoding-mode", file, what, config.speculation or "top_k_top_p")
    if "weight-streaming" in found:
        percent = number_of(file.parameters.get("gpu_weights_percent"))
        what = f"gpu_weights_percent is {percent:g}, the engine was built without weight streaming"
        yield finding_of(
            "error", "weight-streaming", file, what, ("set 1.0, or build with trtllm-build --weight_streaming")
        )
    if "lora" in found:
        what = "lora_prefetch_dir is set, the engine was built without LoRA"
        yield finding_of("error", "lora", file, what, "remove it, or build with trtllm-build --lora_plugin auto")


def _memory_agrees(file: ModelFile, config: EngineConfig, found: Mapping[Code, str]) -> Iterator[Finding]:
    if "kv-too-small" in found:
        cap = number_of(file.parameters.get("max_tokens_in_paged_kv_cache"))
        what = (
            f"max_tokens_in_paged_kv_cache {cap:g} does not hold one sequence of {config.max_seq_len} tokens: newer "
            "versions shorten every sequence, older ones do not load (issue 366)"
        )
        yield finding_of("error", "kv-too-small", file, what, f"at least {config.max_seq_len}")
    wrong = found.get("gpu-groups")
    if wrong is not None:
        what = f"gpu_device_ids '{wrong}' names {len(wrong.split(','))} GPUs, the engine has {config.ranks} ranks"
        yield finding_of("error", "ranks", file, what, "give one GPU per rank; semicolons separate instances")
