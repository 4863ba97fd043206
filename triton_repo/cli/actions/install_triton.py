"""The implementation of `install-triton`."""

from __future__ import annotations

import json
from pathlib import Path

from engines import console
from triton_repo.server import local_triton


def run(out: Path | None, force: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (-v is everywhere)
    """Install Triton on this machine, without a container and without root."""
    target = (out or local_triton.default_folder()).absolute()
    done = local_triton.install(
        target, force=force, command=console.command_line("install-triton"), progress=console.progress
    )
    if as_json:
        console.show(json.dumps({"folder": str(target), "installed": done, "triton": local_triton.TRITON_VERSION}))
        return
    if not done:
        console.progress(f"Triton {local_triton.TRITON_VERSION} is already installed")
    console.wrote(target, "build-repo ENGINE_DIR")
