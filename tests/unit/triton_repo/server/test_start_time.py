"""The start time that serve-repo records."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.autoscaling import START_NAME, ServerStart
from engines.files import read_json, write_json
from tests.unit.loadtest.capacity.made import HEAD, engine
from triton_repo.server.start_time import record_start
from triton_repo.settings import REPOSITORY_NAME, RepositoryManifest, ServingSettings
from triton_repo.settings.repository_manifest import RepositoryKind


def _recorded(folder: Path, kind: RepositoryKind | None) -> ServerStart | None:
    if kind is not None:
        settings = ServingSettings()
        relay = {"url": "http://127.0.0.1:1", "model": "m"} if kind == "relayed" else None
        manifest = RepositoryManifest.model_validate(
            {"made_by": HEAD.made_by, "kind": kind, "served_at": str(folder), "settings": settings,
             "resolved": settings, "engine": engine(), "relay": relay}
        )  # fmt: skip
        write_json(folder / REPOSITORY_NAME, manifest)
    phrase = record_start(folder, 12.34567, triton_version="2.51.0", made_by=HEAD.made_by)
    path = folder / START_NAME
    assert bool(phrase) == path.is_file()
    return read_json(path, ServerStart) if path.is_file() else None


@pytest.mark.parametrize(("kind", "recorded"), [("built", "measured"), ("emulated", "emulated")])
def test_a_start_is_recorded_with_its_kind(tmp_path: Path, kind: RepositoryKind, recorded: str) -> None:
    """What loaded weights is measured; what only emulates an engine is not."""
    start = _recorded(tmp_path, kind)
    assert start is not None
    assert (start.kind, start.loading_s, start.gpu) == (recorded, 12.346, "h100-sxm-80gb")


@pytest.mark.parametrize("kind", ["relayed", None])
def test_a_start_that_tells_nothing_of_weights_is_not_recorded(tmp_path: Path, kind: RepositoryKind | None) -> None:
    """A relayed engine's weights are on another server; without a manifest the kind is unknown."""
    assert _recorded(tmp_path, kind) is None
