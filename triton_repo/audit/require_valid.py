"""Checks that Triton and TensorRT-LLM will accept a repository, before a server is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from triton_repo.audit.audit import audit_repository, first_error
from triton_repo.audit.findings import read_model
from triton_repo.settings import read_repository

# Findings about the engine's own folder, which may be on another machine; serve-repo's preflight checks it before
# starting.
OF_THE_ENGINE = ("engine-config", "ranks", "engine-version", "compute-capability")


def check_repository(folder: Path) -> list[str]:
    """Check every file of a repository against Triton's schema, TensorRT-LLM's tensors and the engine's manifest.

    Returns:
        What was checked, one line per model.

    Raises:
        MissingError: The folder, a model or one of its files is missing.
        UserError: It is not a repository; or the first error: file, problem, expected value.
    """
    repository = read_repository(folder)
    found = [finding for finding in audit_repository(folder) if finding.code not in OF_THE_ENGINE]
    error = first_error(folder, found)
    if error is not None:
        raise error
    configs = {model: read_config(folder / model / "config.pbtxt") for model in repository.models}
    return [f"{model}: {len(config.input)} inputs, {len(config.output)} outputs" for model, config in configs.items()]


def read_config(path: Path) -> Any:
    """Parse a model's config.pbtxt into Triton's ModelConfig.

    Raises:
        MissingError: The file does not exist.
        UserError: It does not parse: an unknown key, or an unfilled placeholder.
    """
    repository = path.parent.parent
    file, findings = read_model(repository, path.parent.name)
    error = first_error(repository, findings)
    if error is not None:
        raise error
    return None if file is None else file.config
