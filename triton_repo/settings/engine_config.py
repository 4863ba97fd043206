"""Facts from an engine's own config.json that serving settings must agree with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.errors import MissingError, UserError

ENGINE_CONFIG_NAME = "config.json"
# `speculative_decoding_mode` of an engine's config.json is a bit of an integer flag; the table maps it to the decoding
# mode that serves it. NONE is 1 and DRAFT_TOKENS_EXTERNAL 2: the plain modes serve both
# (tensorrt_llm/models/modeling_utils.py).
SPECULATION = {4: "medusa", 8: "lookahead", 16: "redrafter", 32: "eagle"}
_LONGEST_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Facts of a built engine; None where its config.json states none.

    Attributes:
        version: TensorRT-LLM version that built it.
        ranks: Number of GPUs it needs.
        paged_context: Whether it has paged context attention, required by chunked context and KV reuse.
        speculation: `decoding_mode` that it was built for.
        max_draft_len: Draft tokens per step that it was built for.
        gathers_context: Whether it can return context logits.
        gathers_generation: Whether it can return generation logits.
        logits: `fp32` or `fp16`.
    """

    version: str | None = None
    ranks: int | None = None
    max_batch_size: int | None = None
    max_num_tokens: int | None = None
    max_seq_len: int | None = None
    max_input_len: int | None = None
    max_beam_width: int | None = None
    tokens_per_block: int | None = None
    paged_context: bool | None = None
    speculation: str | None = None
    max_draft_len: int | None = None
    gathers_context: bool | None = None
    gathers_generation: bool | None = None
    logits: str | None = None
    weight_streaming: bool | None = None
    lora: bool | None = None


def read_engine_config(folder: Path) -> EngineConfig:
    """Read the config.json that TensorRT-LLM wrote beside an engine.

    Raises:
        MissingError: The file does not exist.
        UserError: The file is not an engine's config.json.
    """
    path = folder / ENGINE_CONFIG_NAME
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="gpt_model_path must be the folder that trtllm-build wrote")
    if path.stat().st_size > _LONGEST_BYTES:
        raise UserError(f"{path}: {path.stat().st_size} bytes exceed the limit of {_LONGEST_BYTES}")
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}", hint="copy the engine again") from error
    if not isinstance(whole, dict):
        raise UserError(f"{path}: not a JSON object", hint="gpt_model_path must be the folder that trtllm-build wrote")
    return _facts(whole)


def _facts(whole: dict[str, Any]) -> EngineConfig:
    build, pretrained = _table(whole, "build_config"), _table(whole, "pretrained_config")
    plugins, mapping = _table(build, "plugin_config"), _table(pretrained, "mapping")
    mode = _number(build, "speculative_decoding_mode")
    logits = {"float32": "fp32", "float16": "fp16"}.get(str(pretrained.get("logits_dtype")))
    lora = bool(plugins.get("lora_plugin")) if "lora_plugin" in plugins else None
    return EngineConfig(
        version=whole.get("version") if isinstance(whole.get("version"), str) else None,
        ranks=_number(mapping, "world_size"),
        max_batch_size=_number(build, "max_batch_size"),
        max_num_tokens=_number(build, "max_num_tokens"),
        max_seq_len=_number(build, "max_seq_len"),
        max_input_len=_number(build, "max_input_len"),
        max_beam_width=_number(build, "max_beam_width"),
        tokens_per_block=_number(plugins, "tokens_per_block"),
        paged_context=_switch(plugins, "use_paged_context_fmha"),
        speculation=None if mode is None else SPECULATION.get(mode),
        max_draft_len=_number(build, "max_draft_len"),
        gathers_context=_switch(build, "gather_context_logits"),
        gathers_generation=_switch(build, "gather_generation_logits"),
        logits=logits,
        weight_streaming=_switch(build, "weight_streaming"),
        lora=lora,
    )


def _table(whole: dict[str, Any], key: str) -> dict[str, Any]:
    found = whole.get(key)
    return found if isinstance(found, dict) else {}


def _number(table: dict[str, Any], key: str) -> int | None:
    found = table.get(key)
    return found if isinstance(found, int) and not isinstance(found, bool) else None


def _switch(table: dict[str, Any], key: str) -> bool | None:
    found = table.get(key)
    return found if isinstance(found, bool) else None
