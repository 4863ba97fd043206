"""Arguments and features of each TensorRT-LLM version's LLM API.

The argument classes forbid unknown keys: a server refuses to start with one. Code that writes arguments checks here
first.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, get_args

from engines.errors import UserError
from engines.files import Strict, validate
from engines.names import spec_data

LlmApiVersion = Literal["1.2", "1.3", "1.4rc"]
LLM_API_VERSIONS: tuple[LlmApiVersion, ...] = get_args(LlmApiVersion)
SpeculationMethod = Literal["eagle3", "ngram", "draft_target"]


class KnownKeys(Strict):
    """Argument names of one version, by class; `router` and its servers belong to `trtllm-serve disaggregated`."""

    arguments: frozenset[str]
    kv_cache_config: frozenset[str]
    scheduler_config: frozenset[str]
    cuda_graph_config: frozenset[str]
    lora_config: frozenset[str]
    cache_transceiver_config: frozenset[str]
    speculative_config: frozenset[str]
    router: frozenset[str]
    router_servers: frozenset[str]


# Arguments of the LLM API whose value is a class of its own that also forbids unknown keys.
_NESTED = tuple(name for name in KnownKeys.model_fields if name.endswith("_config"))


class LlmApiFacts(Strict):
    """One version.

    Attributes:
        release: The release that this project's files are written for.
        config_flag: The flag of `trtllm-serve` for a YAML file.
        decoding_types: `speculative_config.decoding_type` of each method.
        nvfp4_kv_cache: Whether `kv_cache_config.dtype: nvfp4` is accepted for a checkpoint with FP8 scales.
        triton_lora_inputs: Whether Triton's llmapi model reads `lora_id` and related inputs.
        iteration_metrics: Whether `/prometheus/metrics` has queue, batch and KV block gauges.
    """

    release: str
    config_flag: str
    decoding_types: dict[SpeculationMethod, str]
    nvfp4_kv_cache: bool
    triton_lora_inputs: bool
    iteration_metrics: bool
    keys: KnownKeys


class _File(Strict):
    versions: dict[LlmApiVersion, LlmApiFacts]


@cache
def _facts() -> dict[LlmApiVersion, LlmApiFacts]:
    return validate(spec_data("llm_api"), _File, where="llm_api.yaml").versions


def llm_api(version: LlmApiVersion) -> LlmApiFacts:
    """Return the facts of one version."""
    return _facts()[version]


def llm_api_version_of(release: str) -> LlmApiVersion:
    """Return the version that a TensorRT-LLM release belongs to.

    >>> llm_api_version_of("1.3.0rc29"), llm_api_version_of("1.1.0")
    ('1.3', '1.2')

    Raises:
        UserError: The version is unknown.
    """
    major_minor = ".".join(release.split(".")[:2])
    # 1.0 and 1.1 are served with 1.2's files where compatible: their own keys are not recorded here.
    known: dict[str, LlmApiVersion] = {"1.0": "1.2", "1.1": "1.2", "1.2": "1.2", "1.3": "1.3", "1.4": "1.4rc"}
    if major_minor not in known:
        raise UserError(
            f"TensorRT-LLM {release}: the arguments of its LLM API are not known",
            hint=f"--trtllm-version, one of {', '.join(LLM_API_VERSIONS)}",
        )
    return known[major_minor]


def unknown_arguments(arguments: Mapping[str, Any], version: LlmApiVersion) -> list[str]:
    """Return the dotted names of arguments that a version does not have, or not of that type.

    >>> unknown_arguments({"model": "m", "kv_cache_config": {"onboard_blocks": False}}, "1.3")
    ['kv_cache_config.onboard_blocks']
    """
    keys = llm_api(version).keys
    unknown = [name for name in arguments if name not in keys.arguments]
    for outer in _NESTED:
        inner = arguments.get(outer) or {}
        if not isinstance(inner, Mapping):
            unknown.append(f"{outer} ({inner!r:.40} instead of keys and values)")
            continue
        unknown += [f"{outer}.{name}" for name in inner if name not in getattr(keys, outer)]
    return unknown


def require_known_arguments(arguments: Mapping[str, Any], version: LlmApiVersion) -> None:
    """Refuse arguments with a key that the version does not have.

    Raises:
        UserError: There is one; TensorRT-LLM itself would refuse to start.
    """
    unknown = unknown_arguments(arguments, version)
    if unknown:
        raise UserError(
            f"TensorRT-LLM {version} does not know {', '.join(unknown)}, and refuses a file with an unknown key",
            hint="leave that setting at its default, or serve with a version that has it (--trtllm-version)",
        )
