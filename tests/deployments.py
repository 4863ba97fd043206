"""Deployments of each kind of engine, rendered for the contract tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from engines.files import Document, MadeBy, write_json
from engines.manifest import EngineManifest, Parallel
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from engines.yaml_text import UniqueKeyLoader
from triton_repo.deploy.plan import Deployment, plan_deployment
from triton_repo.deploy.render import render_deployment
from triton_repo.repository.render import render_repository
from triton_repo.settings.repository_manifest import ServingSettings

HEAD = MadeBy(command="build-engine --precision fp8 --out here", version="0")
KINDS = ("emulated", "built", "two-gpus")


def rendered_deployment(kind: str, base: Path) -> Path:
    """Render the deployment of an engine under a folder, and return its files' folder."""
    write_json(base / "engine" / "manifest.json", engine_of_kind(kind))
    _tokenizer(base / "tokenizer")
    _compiled(base / "engine" / "engine", 2 if kind == "two-gpus" else 1)
    render_repository(
        base / "engine",
        base / "repository",
        settings=ServingSettings(),
        tokenizer=base / "tokenizer",
        served_at=Path("/models/repository"),
        force=False,
        made_by=HEAD,
    )
    plan = plan_deployment(base / "repository", base / "engine" / "engine", Deployment(name="chat"), made_by=HEAD)
    render_deployment(plan, base / "files", force=False)
    return base / "files"


def engine_of_kind(kind: str) -> EngineManifest:
    """Return the manifest of an engine: emulated, built, or built for two GPUs."""
    asked = resolve_recipe(None, {})
    manifest = emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)
    if kind == "emulated":
        return manifest
    parallel = Parallel(tensor=2 if kind == "two-gpus" else 1)
    return manifest.model_copy(update={"kind": "built", "engine": "engine", "parallel": parallel})


def _tokenizer(folder: Path) -> None:
    folder.mkdir()
    (folder / "tokenizer.json").write_text(
        json.dumps({"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}})
    )


def _compiled(folder: Path, ranks: int) -> None:
    folder.mkdir()
    (folder / "config.json").write_text('{"version": "1.2.1"}')
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").write_bytes(b"")


def load_yaml(path: Path) -> Any:
    """Read YAML as strictly as we read our own: no key twice, no aliases."""
    return yaml.load(path.read_text(), Loader=UniqueKeyLoader)
