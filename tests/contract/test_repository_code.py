"""The Python code in a model repository is whole: Triton's process has it alone, not this project's packages."""

from __future__ import annotations

import json
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

from engines.files import Document, MadeBy, write_json
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from triton_repo.repository import render_repository
from triton_repo.settings import Relay, ServingSettings

HEAD = MadeBy(command="test", version="0")


@pytest.mark.parametrize("relay", [None, Relay(url="http://127.0.0.1:9", model="m")], ids=["emulated", "relayed"])
def test_a_repository_contains_every_module_that_its_engine_imports(tmp_path: Path, relay: Relay | None) -> None:
    """Each import of this project, from the model's file on, is found in the model's own folder."""
    asked = resolve_recipe(None, {})
    manifest = emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)
    write_json(tmp_path / "engine" / "manifest.json", manifest)
    (tmp_path / "tokenizer").mkdir()
    vocabulary = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(vocabulary))
    out = tmp_path / "repository"
    render_repository(
        tmp_path / "engine",
        out,
        settings=ServingSettings(),
        tokenizer=tmp_path / "tokenizer",
        served_at=None,
        force=False,
        made_by=HEAD,
        relay=relay,
    )
    for model in ("tensorrt_llm", "preprocessing", "postprocessing", "tensorrt_llm_bls"):
        folder = out / model / "1"
        finder = ModuleFinder(path=[str(folder)])
        finder.run_script(str(folder / "model.py"))
        assert any(name.startswith("triton_repo.models.") for name in finder.modules)
        missing, _ = finder.any_missing_maybe()
        assert [name for name in missing if name.split(".")[0] in {"engines", "triton_repo"}] == [], model
