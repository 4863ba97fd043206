"""The implementation of `roll-engine`."""

from __future__ import annotations

import json
from pathlib import Path

from engines import console
from engines.files import made_by
from triton_repo.server import rolling_update


def run(repository: Path, engine_dir: Path, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (-v is everywhere)
    """Replace the engine of a running server, with requests in flight."""
    manifest, version = rolling_update.roll_engine(
        repository, engine_dir, made_by=made_by(console.command_line("roll-engine")), progress=console.progress
    )
    if as_json:
        document = {"repository": str(repository), "version": version, "engine": manifest.engine.model.name}
        console.show(json.dumps(document))
        return
    console.show(
        f"new requests go to tensorrt_llm version {version}; the old version is unloaded after its last request"
    )
    console.wrote(repository, f"check-repo {repository}")
