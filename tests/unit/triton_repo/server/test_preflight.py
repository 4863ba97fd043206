"""The guard of serve-repo: which built engine is refused where, and in what words."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from engines.build import trtllm
from engines.errors import CommandError, MissingError, UserError
from engines.files import Document, MadeBy, write_json
from engines.manifest import EngineManifest, Parallel
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.cli import serve_repo
from triton_repo.cli.actions import serve_repo as serve_repo_action
from triton_repo.repository.render import render_repository
from triton_repo.server.preflight import missing_ranks, require_servable
from triton_repo.settings.machine_fit import Machine, machine_here
from triton_repo.settings.repository_manifest import ServingSettings

HEAD = MadeBy(command="build-engine --precision fp8 --out here", version="0")
H100 = Machine(tensorrt_llm="1.2.1", compute_capability="9.0", gpus=1)


@pytest.fixture(scope="module")
def emulated() -> EngineManifest:
    """Plan the default engine: one H100, TensorRT-LLM 1.2.1."""
    asked = resolve_recipe(None, {})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


@pytest.fixture(scope="module")
def built(emulated: EngineManifest) -> EngineManifest:
    """Return the same, as if it had been compiled."""
    return emulated.model_copy(update={"kind": "built", "engine": "engine"})


def _split(manifest: EngineManifest, tensor: int, pipeline: int) -> EngineManifest:
    return manifest.model_copy(update={"parallel": Parallel(tensor=tensor, pipeline=pipeline)})


def _compiled(folder: Path, *, ranks: int = 1, config: str = '{"version": "1.2.1"}') -> Path:
    """Lay out what trtllm-build leaves, without its content."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").write_bytes(b"engine")
    return folder


def _one_sentence(error: CommandError) -> str:
    """Hold an error to one line and one thing to try; return the line."""
    assert error.hint
    assert "\n" not in error.message + error.hint
    assert not re.search(r"None|\{|\[|  ", error.message + error.hint)
    return error.message


def test_the_engine_of_this_machine_passes(built: EngineManifest, tmp_path: Path) -> None:
    """Same version, same compute capability, every rank, enough GPUs."""
    require_servable(built, _compiled(tmp_path), H100)
    four = _split(built, 2, 2)
    require_servable(four, _compiled(tmp_path, ranks=4), Machine("1.2.1", "9.0", 8))


def test_an_emulated_engine_passes_anywhere(
    emulated: EngineManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no engine file, no TensorRT-LLM, no GPU; the driver is not even asked."""
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: pytest.fail("asked the driver"))
    require_servable(emulated, tmp_path / "nothing")


LACKS: dict[str, tuple[Machine, str, str]] = {
    "other version": (
        Machine("1.1.0", "9.0", 1),
        "the engine was built by TensorRT-LLM 1.2.1 and TensorRT-LLM 1.1.0 is installed here; an engine runs only "
        "under the version that built it",
        "--build-arg TRITON_TAG=26.06-trtllm-python-py3 -t engine-to-capacity",
    ),
    "no TensorRT-LLM": (
        Machine(None, "9.0", 1),
        "the engine was built by TensorRT-LLM 1.2.1 and it is not on this machine; an engine runs only under the "
        "version that built it",
        "--build-arg TRITON_TAG=26.06-trtllm-python-py3 -t engine-to-capacity",
    ),
    "other compute capability": (
        Machine("1.2.1", "8.0", 1),
        "the engine was built for a GPU of compute capability 9.0 (h100-sxm-80gb) and this machine's has 8.0; an "
        "engine runs only on the compute capability it was built for",
        "--gpu auto, adding --force to: build-engine --precision fp8 --out here",
    ),
    "no GPU": (
        Machine("1.2.1", None, 0),
        "the engine was built for a GPU of compute capability 9.0 (h100-sxm-80gb) and no GPU was found; an "
        "engine runs only on the compute capability it was built for",
        "--gpus all",
    ),
    "both wrong: the GPU, which no container brings, is told": (
        Machine("1.1.0", "8.0", 1),
        "the engine was built for a GPU of compute capability 9.0 (h100-sxm-80gb) and this machine's has 8.0; an "
        "engine runs only on the compute capability it was built for",
        "--gpu auto",
    ),
}


@pytest.mark.parametrize(("here", "sentence", "hint"), LACKS.values(), ids=LACKS)
def test_a_machine_that_cannot_run_it_is_told_so(
    built: EngineManifest, tmp_path: Path, here: Machine, sentence: str, hint: str
) -> None:
    """One sentence: what was built, what is here, the limit; and where to go from there."""
    with pytest.raises(MissingError) as refused:
        require_servable(built, _compiled(tmp_path), here)
    assert _one_sentence(refused.value) == f"{tmp_path}: {sentence}"
    assert hint in str(refused.value.hint)


@pytest.mark.parametrize(("gpus", "are"), [(1, "is 1 GPU"), (3, "are 3 GPUs")])
def test_fewer_gpus_than_ranks_are_refused(built: EngineManifest, tmp_path: Path, gpus: int, are: str) -> None:
    """Each rank needs a GPU: tensor times pipeline of them."""
    engine = _split(built, 2, 2)
    with pytest.raises(MissingError) as refused:
        require_servable(engine, _compiled(tmp_path, ranks=4), Machine("1.2.1", "9.0", gpus))
    assert _one_sentence(refused.value) == (
        f"{tmp_path}: the engine was built for 4 GPUs (tensor 2 x pipeline 2) and here {are} of compute capability "
        "9.0; each of its 4 ranks needs one of its own"
    )
    assert "smaller --tp and --pp" in str(refused.value.hint)


def test_a_version_without_a_known_image_is_told_to_build_again(built: EngineManifest, tmp_path: Path) -> None:
    """A container that nobody knows is not recommended."""
    engine = built.model_copy(update={"versions": {"tensorrt_llm": "1.0.9"}})
    with pytest.raises(MissingError, match=r"built by TensorRT-LLM 1\.0\.9 and TensorRT-LLM 1\.2\.1 is") as refused:
        require_servable(engine, _compiled(tmp_path, config='{"version": "1.0.9"}'), H100)
    _one_sentence(refused.value)
    assert str(refused.value.hint).startswith("build it again with --tensorrt-llm 1.2.1, adding --force to: build-eng")


@pytest.mark.parametrize(
    ("config", "told"),
    [('{"version": "1.1.0"}', "1.1.0"), ("{}", "no version"), ('{"version": 3}', "no version"), ("[]", "no version")],
)
def test_an_engine_other_than_the_manifests_is_refused(
    built: EngineManifest, tmp_path: Path, config: str, told: str
) -> None:
    """The engine's own config.json must name the manifest's version, even on a machine that would run it."""
    with pytest.raises(UserError) as refused:
        require_servable(built, _compiled(tmp_path, config=config), H100)
    assert _one_sentence(refused.value) == (
        f"{tmp_path}: the manifest describes an engine by TensorRT-LLM 1.2.1, the engine's own config.json of {told}; "
        "both must name the version that built it"
    )
    assert "build-repo ENGINE_DIR --force" in str(refused.value.hint)


@pytest.mark.parametrize("config", ["{}", '{"version": "1.2.1"}'])
def test_a_manifest_without_a_version_is_refused(built: EngineManifest, tmp_path: Path, config: str) -> None:
    """Nothing is taken for granted: not even two versions that are both missing."""
    engine = built.model_copy(update={"versions": {}})
    with pytest.raises(UserError, match=r"TensorRT-LLM \(no version\)"):
        require_servable(engine, _compiled(tmp_path, config=config), H100)


def test_rank_files_that_are_not_there_are_named(built: EngineManifest, tmp_path: Path) -> None:
    """An engine whose copying was cut short is not started."""
    engine = _split(built, 4, 1)
    folder = _compiled(tmp_path, ranks=4)
    assert missing_ranks(engine, folder) == []
    (folder / "rank1.engine").unlink()
    (folder / "rank3.engine").unlink()
    with pytest.raises(MissingError) as refused:
        require_servable(engine, folder, Machine("1.2.1", "9.0", 4))
    assert _one_sentence(refused.value) == (
        f"{tmp_path}: rank1.engine, rank3.engine missing; an engine for 4 GPUs (tensor 4 x pipeline 1) has a file "
        "for each of its 4 ranks"
    )


def test_an_engine_that_is_elsewhere_is_refused(built: EngineManifest, tmp_path: Path) -> None:
    """The folder that the repository points at holds no engine, or one cut short."""
    with pytest.raises(MissingError, match=r"config\.json: no such file: the repository's engine is missing") as gone:
        require_servable(built, tmp_path / "gone", H100)
    _one_sentence(gone.value)
    with pytest.raises(UserError, match=r"config\.json: not valid JSON") as broken:
        require_servable(built, _compiled(tmp_path, config='{"version": "1.'), H100)
    assert broken.value.hint


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], Machine("1.2.1", None, 0)),
        (["9.0", "9.0"], Machine("1.2.1", "9.0", 2)),
        (["8.9", "9.0"], Machine("1.2.1", "9.0", 1)),
        (["8.0", "8.0", "8.9"], Machine("1.2.1", "8.0", 2)),
    ],
)
def test_gpus_of_the_engines_kind_are_counted(
    monkeypatch: pytest.MonkeyPatch, seen: list[str], expected: Machine
) -> None:
    """A card for the screen does not stand in the way, and does not count."""
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: seen)
    monkeypatch.setattr(trtllm, "installed_version", lambda: "1.2.1")
    assert machine_here("9.0") == expected


def _serve(repository: Path) -> int:
    with pytest.raises(SystemExit) as ended:
        serve_repo.serve_repo.main([str(repository), "--tritonserver", "/bin/false", "--detach"])
    return int(str(ended.value.code))


@pytest.fixture
def repository(built: EngineManifest, tmp_path: Path) -> Path:
    """Render the repository of a built engine."""
    _compiled(tmp_path / "built" / "engine")
    write_json(tmp_path / "built" / "manifest.json", built)
    (tmp_path / "tokenizer").mkdir()
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    render_repository(
        tmp_path / "built",
        tmp_path / "repository",
        settings=ServingSettings(),
        tokenizer=tmp_path / "tokenizer",
        served_at=None,
        force=False,
        made_by=HEAD,
    )
    return tmp_path / "repository"


def test_serve_repo_refuses_before_triton_starts(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with the guard's sentence and hint, and no server was started."""

    def never(*_: Any, **__: Any) -> None:
        pytest.fail("a server was started")

    monkeypatch.setattr(serve_repo_action, "start_server", never)
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: ["9.0"])
    monkeypatch.setattr(trtllm, "installed_version", lambda: "1.1.0")
    assert _serve(repository) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("serve-repo: error: ")
    assert "built by TensorRT-LLM 1.2.1 and TensorRT-LLM 1.1.0 is installed here" in error
    assert "26.06-trtllm-python-py3" in hint


def test_serve_repo_refuses_an_edited_manifest(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The version that the engine's own config.json names is the one that counts."""
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: ["9.0"])
    monkeypatch.setattr(trtllm, "installed_version", lambda: "1.1.0")
    told = json.loads((repository / "manifest.json").read_text())
    told["engine"]["versions"]["tensorrt_llm"] = "1.1.0"
    (repository / "manifest.json").write_text(json.dumps(told))
    assert _serve(repository) == 2
    assert "describes an engine by TensorRT-LLM 1.1.0, the engine's own config.json of 1.2.1" in capsys.readouterr().err


def test_serve_repo_goes_on_where_the_engine_runs(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the right machine the guard says nothing, and Triton is started."""
    started = []

    def start(folder: Path, *_: Any, **__: Any) -> None:
        started.append(folder)
        raise MissingError("stop here")

    monkeypatch.setattr(serve_repo_action, "start_server", start)
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: ["9.0"])
    monkeypatch.setattr(trtllm, "installed_version", lambda: "1.2.1")
    assert _serve(repository) == 1
    assert started == [repository]
