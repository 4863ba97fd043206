"""`serve-repo` on a repository for trtllm-serve: the command it becomes, and what it says where that is not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from engines.errors import MissingError
from engines.files import Document, MadeBy, write_json
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.cli.serve_repo import serve_repo
from triton_repo.repository.render import render_repository
from triton_repo.server.trtllm_serve import become_trtllm_serve
from triton_repo.settings.repository_manifest import RepositoryManifest, ServingSettings

HEAD = MadeBy(command="test", version="0")


def _repository(folder: Path, version: str) -> RepositoryManifest:
    asked = resolve_recipe(None, {"backend": "pytorch", "trtllm_version": version})
    manifest = emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)
    write_json(folder / "engine" / "manifest.json", manifest.model_copy(update={"kind": "checkpoint"}))
    return render_repository(
        folder / "engine",
        folder / "repository",
        settings=ServingSettings(),
        tokenizer=None,
        served_at=None,
        force=False,
        made_by=HEAD,
        server="trtllm-serve",
    )


@pytest.mark.parametrize(("version", "flag"), [("1.2", "--config"), ("1.3", "--config"), ("1.4rc", "--config")])
def test_this_process_becomes_trtllm_serve(
    version: str, flag: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the repository's YAML, the checkpoint, and the address asked for."""
    program = tmp_path / "bin" / "trtllm-serve"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    became: list[object] = []
    monkeypatch.setattr(os, "execvp", lambda *command: became.extend(command))
    manifest = _repository(tmp_path, version)
    become_trtllm_serve(tmp_path / "repository", manifest, address="127.0.0.1", port=8000)
    assert became == [
        "trtllm-serve",
        ["trtllm-serve", "serve", str(tmp_path / "engine" / "checkpoint"), "--host", "127.0.0.1", "--port", "8000",
         flag, str(tmp_path / "repository" / "trtllm-serve.yaml")],
    ]  # fmt: skip


def test_without_it_its_container_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started; one error says where it would run."""
    monkeypatch.setenv("PATH", str(tmp_path))
    manifest = _repository(tmp_path, "1.2")
    with pytest.raises(MissingError) as problem:
        become_trtllm_serve(tmp_path / "repository", manifest, address="127.0.0.1", port=8000)
    assert "nvcr.io/nvidia/tensorrt-llm/release:1.2.1" in str(problem.value.hint)


@pytest.mark.parametrize("flag", ["--detach", "--openai", "--stop-after"])
def test_what_is_for_triton_is_refused(flag: str, tmp_path: Path) -> None:
    """Rather than passed over in silence."""
    _repository(tmp_path, "1.2")
    value = ["5"] if flag == "--stop-after" else []
    done = CliRunner().invoke(serve_repo, [str(tmp_path / "repository"), flag, *value])
    assert done.exit_code == 2
    assert f"{flag} applies to Triton only" in done.output
