"""Whether a repository of ours is what Triton and TensorRT-LLM will accept, found out before a server is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.errors import MissingError
from triton_repo.audit.audit import audit_repository, first_error
from triton_repo.audit.findings import read_model
from triton_repo.settings import read_repository

# What an audit finds in the engine's own folder, which need not be where the repository is made; the guard of
# serve-repo looks there before a server is started.
OF_THE_ENGINE = ("engine-config", "ranks", "engine-version", "compute-capability")


def check_repository(folder: Path) -> list[str]:
    """Check a repository's every file against Triton's schema, TensorRT-LLM's tensors and the engine's manifest.

    Returns:
        What was checked, a line for each model.

    Raises:
        MissingError: The folder, a model or a file of one is missing.
        UserError: The first thing wrong: file, what, and what was expected.
    """
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such repository", hint="create one with build-repo ENGINE_DIR")
    repository = read_repository(folder)
    found = [finding for finding in audit_repository(folder) if finding.code not in OF_THE_ENGINE]
    error = first_error(folder, found)
    if error is not None:
        raise error
    configs = {model: read_config(folder / model / "config.pbtxt") for model in repository.models}
    return [f"{model}: {len(config.input)} inputs, {len(config.output)} outputs" for model, config in configs.items()]


def read_config(path: Path) -> Any:
    """Parse a model's config.pbtxt into Triton's own ModelConfig.

    Raises:
        MissingError: There is no such file.
        UserError: It does not parse: a key that ModelConfig does not have, a placeholder that was never filled.
    """
    repository = path.parent.parent
    file, findings = read_model(repository, path.parent.name)
    error = first_error(repository, findings)
    if error is not None:
        raise error
    return None if file is None else file.config
