"""Whether a repository's settings agree with the engine it points at: its config.json, its files, this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from engines.build import trtllm
from engines.errors import CommandError
from triton_repo.audit.findings import TRUE, Finding, ModelFile, finding_of, number_of
from triton_repo.settings import EngineConfig, RepositoryManifest, read_engine_config

Files = Mapping[str, ModelFile]


def engine_agreement(file: ModelFile, files: Files, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find what of the engine is not there, and what of it the `tensorrt_llm` model's settings contradict."""
    named = file.parameters.get("gpt_model_path")
    if not named:
        what = "gpt_model_path is not given: 'Both encoder and decoder model paths are empty' (issue 2440)"
        yield finding_of("error", "engine-path", file, what, "the folder trtllm-build wrote")
        return
    folder = Path(named)
    if not folder.is_dir():
        what = f"gpt_model_path {named} is not on this machine, so the engine was not looked at"
        yield finding_of("warning", "engine-not-here", file, what, "run check-repo where the engine is mounted")
        return
    try:
        config = read_engine_config(folder)
    except CommandError as error:
        yield finding_of("error", "engine-config", file, f"gpt_model_path: {error.message}", error.hint or "")
        return
    if config.max_batch_size is None or config.max_seq_len is None:
        what = f"{folder}/config.json states no build limits: not an engine's, or of another version (issue 2332)"
        yield finding_of("warning", "engine-config", file, what, "take repository and engine from the same version")
    yield from _agrees(file, files, config)
    yield from _machine(file, config, manifest)
    missing = [rank for rank in range(config.ranks or 1) if not (folder / f"rank{rank}.engine").is_file()]
    if missing:
        what = f"{folder} lacks rank{missing[0]}.engine; its config.json tells of {config.ranks or 1} ranks (issue 129)"
        yield finding_of("error", "ranks", file, what, "copy all of the engine, or build it again")


def _machine(file: ModelFile, config: EngineConfig, manifest: RepositoryManifest | None) -> Iterator[Finding]:
    """Find what of this machine, where it has any of it, cannot run the engine."""
    installed = trtllm.installed_version()
    if installed is not None and config.version is not None and installed != config.version:
        what = f"the engine was built by TensorRT-LLM {config.version}, {installed} is installed here (issue 531)"
        yield finding_of("error", "engine-version", file, what, "build and serve in one container image")
    seen = trtllm.visible_compute_capabilities() if manifest is not None else []
    if manifest is not None and seen and manifest.engine.gpu.compute_capability not in seen:
        built_for = manifest.engine.gpu.compute_capability
        what = f"the engine was built for compute capability {built_for}, GPUs here have {', '.join(sorted(set(seen)))}"
        yield finding_of("error", "compute-capability", file, what, "build it on the GPU that serves it (issue 3031)")


def _agrees(file: ModelFile, files: Files, config: EngineConfig) -> Iterator[Finding]:
    values, built = file.parameters, "the engine's config.json"
    for key, of_engine, why in (
        ("enable_chunked_context", config.paged_context, "use_paged_context_fmha"),
        ("enable_kv_cache_reuse", config.paged_context, "use_paged_context_fmha"),
    ):
        on = values.get(key, "true" if key == "enable_kv_cache_reuse" else "false") in TRUE
        if on and of_engine is False:
            what = f"{key} is on and {built} says the engine was built without {why}"
            yield finding_of("error", "paged-context", file, what, f"{key} false, or build with --{why} enable")
    budget, most = config.max_num_tokens, config.max_input_len
    if values.get("enable_chunked_context") not in TRUE and budget and most and budget < most:
        what = f"without enable_chunked_context no prompt past max_num_tokens ({budget}) runs; max_input_len is {most}"
        yield finding_of("warning", "whole-prompts", file, what, "enable_chunked_context true")
    size = file.config.max_batch_size
    if config.max_batch_size is not None and size > config.max_batch_size:
        what = f"max_batch_size is {size}, {built} says {config.max_batch_size}"
        yield finding_of("warning", "batch-size", file, what, f"max_batch_size: {config.max_batch_size}")
    width = number_of(values.get("max_beam_width"))
    if width is not None and config.max_beam_width is not None and width > config.max_beam_width:
        what = f"max_beam_width is {width:g}, {built} says {config.max_beam_width}"
        yield finding_of("error", "beam-width", file, what, f"{config.max_beam_width}")
    yield from _decoding_agrees(file, config)
    yield from _memory_agrees(file, config)
    logits = next((tensor for tensor in file.config.output if tensor.name == "context_logits"), None)
    kind = {11: "fp32", 10: "fp16"}.get(logits.data_type if logits is not None else 0)
    if kind and config.logits and kind != config.logits:
        what = f"logits are {kind}, {built} says {config.logits}: a reply with logits fails"
        yield finding_of("error", "logits-type", file, what, f"logits_datatype TYPE_{config.logits.upper()}")
    if config.gathers_context is False:
        what = "the engine was built without gather_context_logits: return_context_logits fails (issue 530)"
        yield finding_of("advice", "logits-not-gathered", file, what, "trtllm-build --gather_context_logits, if wanted")
    pre = files.get("preprocessing")
    longest = number_of(pre.parameters.get("max_prompt_tokens")) if pre is not None else None
    if longest is not None and config.max_input_len is not None and longest > config.max_input_len:
        what = f"max_prompt_tokens is {longest:g}, {built} says {config.max_input_len}"
        yield finding_of("warning", "prompt-limit", pre or file, what, f"{config.max_input_len}")


def _decoding_agrees(file: ModelFile, config: EngineConfig) -> Iterator[Finding]:
    mode = file.parameters.get("decoding_mode", "")
    speculative = mode if mode in ("medusa", "redrafter", "lookahead", "eagle") else None
    if speculative != config.speculation and (speculative or mode):
        what = f"decoding_mode is {mode!r}, the engine was built for {config.speculation or 'no speculation'}"
        yield finding_of("error", "decoding-mode", file, what, config.speculation or "top_k_top_p")
    percent = number_of(file.parameters.get("gpu_weights_percent"))
    if percent is not None and percent < 1 and not config.weight_streaming:
        what = f"gpu_weights_percent is {percent:g}, the engine was built without weight streaming"
        yield finding_of("error", "weight-streaming", file, what, "1.0, or trtllm-build --weight_streaming")
    if file.parameters.get("lora_prefetch_dir") and config.lora is False:
        what = "lora_prefetch_dir is set, the engine was built without LoRA"
        yield finding_of("error", "lora", file, what, "take it out, or trtllm-build --lora_plugin auto")


def _memory_agrees(file: ModelFile, config: EngineConfig) -> Iterator[Finding]:
    cap = number_of(file.parameters.get("max_tokens_in_paged_kv_cache"))
    if cap is not None and config.max_seq_len is not None and cap < config.max_seq_len:
        what = (
            f"max_tokens_in_paged_kv_cache {cap:g} does not hold one sequence of {config.max_seq_len} tokens: newer "
            "versions shorten every sequence, older ones do not load (issue 366)"
        )
        yield finding_of("error", "kv-too-small", file, what, f"at least {config.max_seq_len}")
    groups = [group for group in file.parameters.get("gpu_device_ids", "").split(";") if group]
    wrong = [group for group in groups if config.ranks and len(group.split(",")) != config.ranks]
    if wrong:
        what = f"gpu_device_ids '{wrong[0]}' names {len(wrong[0].split(','))} GPUs, the engine has {config.ranks} ranks"
        yield finding_of("error", "ranks", file, what, "one GPU for each rank; semicolons part instances")
