"""From resolved settings to the `parameters` of each model's config.pbtxt, by TensorRT-LLM's names."""

from __future__ import annotations

from typing import Any

from engines.manifest import EngineManifest
from triton_repo.settings import RepositoryManifest, ServingSettings, all_settings, shown

# Keys without which TensorRT-LLM's backend does not load, even if empty; all others are optional.
MUST_BE_THERE = ("gpt_model_type", "tokenizer_dir", "xgrammar_tokenizer_info_path", "guided_decoding_backend")
# Keys of upstream's template that are never written: for encoder-decoder models, and one that the backend ignores.
NEVER_WRITTEN = ("encoder_model_path", "enable_trt_overlap")


def engine_parameters(
    settings: ServingSettings, engine: EngineManifest, *, engine_dir: str, tokenizer_dir: str
) -> dict[str, str]:
    """Return the parameters of the `tensorrt_llm` model, as TensorRT-LLM's backend reads them.

    Args:
        settings: Resolved. None values are omitted, so that the backend's default applies.
    """
    values: dict[str, Any] = {
        # this project's own; TensorRT-LLM's backend ignores unknown keys
        "engine_name": engine.title,
        "max_beam_width": engine.limits.max_beam_width,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_path": engine_dir,
        "tokenizer_dir": tokenizer_dir,
        **_of_settings(settings),
    }
    if engine.kind == "emulated":
        values |= {
            "emulated": True,
            "emulator_time_scale": f"{settings.emulation.time_scale:g}",
            "emulator_manifest": "engine.json",
            **limit_parameters(settings),
        }
    return written(values)


def model_parameters(repository: RepositoryManifest, *, engine_dir: str, tokenizer_dir: str) -> dict[str, str]:
    """Return the parameters of a repository's `tensorrt_llm` model: an engine's, or a relay's."""
    settings, engine, relay = repository.resolved, repository.engine, repository.relay
    if relay is None:
        return engine_parameters(settings, engine, engine_dir=engine_dir, tokenizer_dir=tokenizer_dir)
    return written(
        {
            "engine_name": engine.title,
            "engine_url": relay.url,
            "engine_model": relay.model,
            "vocabulary": engine.model.vocab_size,
            "exclude_input_in_output": settings.scheduling.exclude_input_in_output,
            "cancellation_check_period_ms": settings.runtime.cancellation_check_period_ms,
            "stats_check_period_ms": settings.runtime.stats_check_period_ms,
            **limit_parameters(settings),
        }
    )


def limit_parameters(settings: ServingSettings) -> dict[str, Any]:
    """Return this project's own parameters for the models that enforce length limits."""
    return {
        "max_prompt_tokens": settings.limits.max_prompt_tokens,
        "max_output_tokens": settings.limits.max_output_tokens,
    }


def written(values: dict[str, Any]) -> dict[str, str]:
    """Return parameters in config.pbtxt's notation; None and empty lists are omitted."""
    return {key: shown(value) for key, value in values.items() if value is not None and value != ()}


def _of_settings(settings: ServingSettings) -> dict[str, Any]:
    """Return the value of each parameter that a setting names as its target, in the schema's order."""
    values = {}
    for setting in all_settings(settings):
        name = setting.target.engine_parameter
        if name is not None:
            values[name] = "" if setting.value is None and name in MUST_BE_THERE else setting.value
    return values
