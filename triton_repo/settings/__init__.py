"""Serving settings: schema, values derived from the engine, conflicts. May import `engines` only."""

from triton_repo.settings.engine_config import ENGINE_CONFIG_NAME, EngineConfig, read_engine_config
from triton_repo.settings.engine_fit import Code, Misfit, Served, misfits
from triton_repo.settings.machine_fit import Machine, lacks, machine_here
from triton_repo.settings.repository_manifest import (
    LLMAPI_MODELS,
    MODELS,
    REPOSITORY_NAME,
    SERVED_FILES,
    TOKENIZER_FOLDER,
    Choice,
    Relay,
    RepositoryKind,
    RepositoryManifest,
    ServingSettings,
    Variant,
    not_a_repository,
    read_repository,
    refuse_other_kind,
)
from triton_repo.settings.resolve import Given, Resolved, given_in, resolve, shown
from triton_repo.settings.setting import all_settings, merged_over

__all__ = [
    "ENGINE_CONFIG_NAME",
    "LLMAPI_MODELS",
    "MODELS",
    "REPOSITORY_NAME",
    "SERVED_FILES",
    "TOKENIZER_FOLDER",
    "Choice",
    "Code",
    "EngineConfig",
    "Given",
    "Machine",
    "Misfit",
    "Relay",
    "RepositoryKind",
    "RepositoryManifest",
    "Resolved",
    "Served",
    "ServingSettings",
    "Variant",
    "all_settings",
    "given_in",
    "lacks",
    "machine_here",
    "merged_over",
    "misfits",
    "not_a_repository",
    "read_engine_config",
    "read_repository",
    "refuse_other_kind",
    "resolve",
    "shown",
]
