"""Runs `trtllm-serve` on a repository of its variant, in place of this process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import NoReturn

from engines.build import SERVE_YAML, serve_command, serve_image
from engines.errors import MissingError
from triton_repo.settings import RepositoryManifest

PROGRAM = "trtllm-serve"


def become_trtllm_serve(repository: Path, manifest: RepositoryManifest, *, address: str, port: int) -> NoReturn:
    """Replace this process with trtllm-serve, which then handles its own termination.

    Raises:
        MissingError: trtllm-serve is not installed.
    """
    command = serve_command_of(repository, manifest, address=address, port=str(port))
    if shutil.which(PROGRAM) is None:
        raise MissingError(
            f"{PROGRAM} is not installed on this machine, and the engine is not emulated",
            hint=f"run this in {serve_image(manifest.engine)}, or rehearse with build-engine --emulate",
        )
    os.execvp(PROGRAM, command)


def serve_command_of(repository: Path, manifest: RepositoryManifest, *, address: str, port: str) -> list[str]:
    """Return the command line that serves a repository."""
    config = str(repository.absolute() / SERVE_YAML)
    return serve_command(manifest.engine, model=manifest.loads or "", config=config, host=address, port=port)
