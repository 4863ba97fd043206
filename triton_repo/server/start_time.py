"""Records how long a server took to start, for plans that must know a replica's cold start."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from engines.autoscaling import START_NAME, ServerStart
from engines.files import MadeBy, to_json
from triton_repo.settings import REPOSITORY_NAME, read_repository


def record_start(repository: Path, loading_s: float, *, triton_version: str, made_by: MadeBy) -> str:
    """Write `start.json` for a server that has just become ready, and return a phrase that says so.

    Not written for a repository without a manifest, whose kind is unknown, nor for a relayed engine, whose weights
    another server loads; then the phrase is empty.
    """
    if not (repository / REPOSITORY_NAME).is_file():
        return ""
    manifest = read_repository(repository)
    if manifest.kind == "relayed":
        return ""
    engine = manifest.engine
    start = ServerStart(
        made_by=made_by,
        kind="measured" if manifest.kind == "built" else "emulated",
        loading_s=round(loading_s, 3),
        started_on=datetime.now(tz=UTC).date(),
        triton_version=triton_version,
        model=engine.model.name,
        gpu=engine.gpu.name,
        precision=engine.precision.name,
        tensor_parallel=engine.parallel.tensor,
    )
    # in place, as server.json: Triton ends if a file that it listed has gone
    (repository / START_NAME).write_text(to_json(start), encoding="utf-8")
    return f"; {start.kind} start time: {repository / START_NAME}"
