"""From an engine's manifest to a Triton model repository."""

from __future__ import annotations

import shutil
from pathlib import Path

import jinja2

import engines
from engines.errors import MissingError, UserError
from engines.files import MadeBy, source_of, whole_folder, write_json, write_text
from engines.manifest import MANIFEST_NAME, EngineManifest, read_manifest
from triton_repo import tensors
from triton_repo.check import check_repository
from triton_repo.settings import MODELS, REPOSITORY_NAME, RepositoryManifest, ServingSettings

PYTHON_MODELS = {"preprocessing": "Preprocessing", "postprocessing": "Postprocessing", "tensorrt_llm_bls": "TextModel"}
EMULATED_CLASS = "EmulatedEngineModel"
TOKENIZER_FOLDER = Path("preprocessing/1/tokenizer")
# What the emulated engine imports; it travels with the repository, which then needs nothing installed but packages.
EMULATOR_PARTS = ("__init__.py", "errors.py", "files.py", "manifest.py", "spec", "steptime", "emulator")


def render_repository(
    engine_folder: Path,
    out: Path,
    *,
    settings: ServingSettings,
    tokenizer: Path | None,
    served_at: Path | None,
    force: bool,
    made_by: MadeBy,
) -> RepositoryManifest:
    """Write the in-flight-batching repository of an engine; it appears whole or not at all.

    Args:
        tokenizer: Folder with tokenizer.json; None takes the engine's own.
        served_at: Path the repository will have where it is served (a container's mount); None: where it is written.

    Raises:
        MissingError: No engine there, or no tokenizer.
        UserError: The folder holds a checkpoint that was not compiled.
    """
    manifest = read_manifest(engine_folder)
    if manifest.kind == "checkpoint":
        compiled = "build-engine without --until checkpoint compiles it; with --emulate it is emulated"
        loaded = "its model.yaml and checkpoint are for the llmapi model that Triton's TensorRT-LLM image carries"
        raise UserError(
            f"{engine_folder}: holds a checkpoint, not an engine",
            hint=loaded if manifest.backend == "pytorch" else compiled,
        )
    source = tokenizer or _engine_tokenizer(engine_folder, manifest)
    if not (source / "tokenizer.json").is_file():
        raise MissingError(f"{source}: no tokenizer.json there", hint="--tokenizer DIR gives the model's tokenizer")
    home = (served_at or out).absolute()
    repository = RepositoryManifest(
        made_by=made_by,
        made_from=[source_of(engine_folder / MANIFEST_NAME)],
        kind=manifest.kind,
        served_at=str(home),
        settings=settings,
        engine=manifest,
    )
    with whole_folder(out, force=force) as folder:
        _write_models(folder, repository, engine_folder.absolute())
        shutil.copytree(source, folder / TOKENIZER_FOLDER)
        write_json(folder / REPOSITORY_NAME, repository)
        check_repository(folder)
    return repository


def _engine_tokenizer(engine_folder: Path, manifest: EngineManifest) -> Path:
    if manifest.tokenizer is None:
        raise MissingError(f"{engine_folder}: the engine came without a tokenizer", hint="--tokenizer DIR gives one")
    return engine_folder / manifest.tokenizer


def _write_models(folder: Path, repository: RepositoryManifest, engine_folder: Path) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("triton_repo", "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    engine_dir = str(engine_folder / (repository.engine.engine or ""))
    values = {
        "t": tensors,
        "settings": repository.settings,
        "batch": repository.engine.limits.max_batch_size,
        "emulated": repository.kind == "emulated",
        "tokenizer_dir": _pbtxt(f"{repository.served_at}/{TOKENIZER_FOLDER}"),
        "engine_dir": _pbtxt(engine_dir),
        "engine_parameters": engine_parameters(repository, engine_dir),
    }
    for model in MODELS:
        text = environment.get_template(f"{model}/config.pbtxt.j2").render(values)
        write_text(folder / model / "config.pbtxt", text)
        (folder / model / "1").mkdir()
    classes = dict(PYTHON_MODELS)
    if repository.kind == "emulated":
        classes["tensorrt_llm"] = EMULATED_CLASS
        _write_emulator(folder / "tensorrt_llm" / "1", repository.engine)
    template = environment.get_template("model.py.j2")
    for model, name in classes.items():
        text = template.render({"model": model, "module": f"triton_repo.models.{model}", "class": name})
        write_text(folder / model / "1" / "model.py", text)
        _copy_package(Path(__file__).parent, folder / model / "1" / "triton_repo", ("__init__.py", "models"))


def engine_parameters(repository: RepositoryManifest, engine_dir: str) -> dict[str, str]:
    """Return the parameters of the `tensorrt_llm` model, as TensorRT-LLM's backend reads them."""
    engine, settings = repository.engine, repository.settings
    name = f"{engine.model.name} {engine.precision.name} on {engine.gpu.name}"
    parameters = {
        "engine_name": _pbtxt(name),  # ours; TensorRT-LLM's backend reads the keys it knows and leaves the others
        "max_beam_width": str(engine.limits.max_beam_width),
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": _pbtxt(engine_dir),
        "batch_scheduler_policy": engine.runtime.scheduler_policy,
        "kv_cache_free_gpu_mem_fraction": str(engine.kv_cache.free_gpu_mem_fraction),
        "enable_kv_cache_reuse": str(engine.runtime.kv_reuse).lower(),
        "enable_chunked_context": str(engine.runtime.chunked_context).lower(),
        "cancellation_check_period_ms": str(settings.cancellation_check_period_ms),
        "stats_check_period_ms": str(settings.stats_check_period_ms),
        "executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
    }
    if repository.kind == "emulated":
        parameters |= {
            "emulated": "true",
            "emulator_time_scale": f"{settings.time_scale:g}",
            "emulator_manifest": "engine.json",
            "emulator_max_queue_size": str(settings.max_queue_size),
        }
    return parameters


def _write_emulator(version_folder: Path, engine: EngineManifest) -> None:
    write_json(version_folder / "engine.json", engine)
    _copy_package(Path(engines.__file__).parent, version_folder / "engines", EMULATOR_PARTS)


def _copy_package(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    target.mkdir()
    for part in parts:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / part, target / part)


def _pbtxt(text: str) -> str:
    """Return text as it stands inside quotes in a text protobuf."""
    return text.replace("\\", "\\\\").replace('"', '\\"')
