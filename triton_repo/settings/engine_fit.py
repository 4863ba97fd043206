"""Checks whether settings fit the engine; shared by build-repo's settings and the audit of repositories.

`conflicts` refuses settings by these checks and `audit` reports them in repositories; each words its own messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from triton_repo.settings.engine_config import SPECULATION, EngineConfig

Code = Literal[
    "chunked-context-unpaged",
    "kv-reuse-unpaged",
    "whole-prompts",
    "prompt-limit",
    "host-cache",
    "kv-too-small",
    "decoding-mode",
    "weight-streaming",
    "lora",
    "gpu-groups",
    "participant-groups",
    "guided-pair",
]


@dataclass(frozen=True, slots=True)
class Served:
    """The settings whose validity depends on the engine; None: not stated.

    Attributes:
        longest_prompt_tokens: The longest prompt that must run; `max_prompt_tokens` is the stated limit.
        kv_max_tokens: Cap on the tokens in the KV cache.
        decoding_mode: Empty: TensorRT-LLM's choice.
        gpu_device_ids: Groups of one GPU per rank, separated by semicolons; `participant_ids`: the same for MPI ranks.
        has_guided_backend: Whether guided decoding is enabled; `has_vocabulary`: whether its vocabulary is given.
    """

    chunked_context: bool = False
    kv_reuse: bool = False
    longest_prompt_tokens: float | None = None
    max_prompt_tokens: float | None = None
    kv_host_bytes: float = 0
    kv_max_tokens: float | None = None
    decoding_mode: str = ""
    gpu_weights_ratio: float | None = None
    prefetches_lora: bool = False
    gpu_device_ids: str = ""
    participant_ids: str = ""
    has_guided_backend: bool = False
    has_vocabulary: bool = False


class Misfit(NamedTuple):
    """One setting that does not fit.

    Attributes:
        found: The part of the setting at fault, if it has parts.
    """

    code: Code
    found: str = ""


def misfits(served: Served, built: EngineConfig) -> Iterator[Misfit]:
    """Yield what does not fit an engine; facts that its config does not state are not checked."""
    is_unpaged, ratio = built.paged_context is False, served.gpu_weights_ratio
    is_whole = not served.chunked_context  # a prompt must then fit into one iteration
    decided: dict[Code, bool] = {
        "chunked-context-unpaged": is_unpaged and served.chunked_context,
        "kv-reuse-unpaged": is_unpaged and served.kv_reuse,
        "whole-prompts": is_whole and _is_past(served.longest_prompt_tokens, built.max_num_tokens),
        "prompt-limit": _is_past(served.max_prompt_tokens, built.max_input_len),
        "host-cache": served.kv_host_bytes > 0 and not served.kv_reuse,
        "kv-too-small": _is_past(built.max_seq_len, served.kv_max_tokens),
        "decoding-mode": bool(served.decoding_mode) and speculation_of(served.decoding_mode) != built.speculation,
        "weight-streaming": ratio is not None and ratio < 1 and not built.weight_streaming,
        "lora": served.prefetches_lora and built.lora is False,
        "guided-pair": served.has_guided_backend != served.has_vocabulary,
    }
    yield from (Misfit(code) for code, is_so in decided.items() if is_so)
    groups: tuple[tuple[Code, str], ...] = (
        ("gpu-groups", served.gpu_device_ids),
        ("participant-groups", served.participant_ids),
    )
    for code, text in groups:
        wrong = [group for group in text.split(";") if group and built.ranks and len(group.split(",")) != built.ranks]
        if wrong:
            yield Misfit(code, wrong[0])


def speculation_of(decoding_mode: str) -> str | None:
    """Return a decoding mode that requires an engine built for it; None for a plain mode."""
    return decoding_mode if decoding_mode in SPECULATION.values() else None


def _is_past(value: float | None, limit: float | None) -> bool:
    return value is not None and limit is not None and value > limit
