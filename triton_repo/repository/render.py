"""From an engine's manifest to a Triton model repository."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jinja2
import jinja2.sandbox
import yaml

import engines
from engines.build import MODEL_YAML, SERVE_YAML, served_model
from engines.errors import MissingError, UserError
from engines.files import MadeBy, source_of, write_json, write_text
from engines.manifest import MANIFEST_NAME, EngineManifest, Notice, read_manifest
from engines.outputs import whole_folder
from triton_repo.audit import check_repository
from triton_repo.interface import (
    HEADER,
    SERVE_HEADER,
    Tensor,
    limit_parameters,
    llm_document,
    llmapi_inputs,
    model_parameters,
    tensors,
    trtllm_serve_document,
    written,
)
from triton_repo.repository.tokenizer_files import check_tokenizer, copy_tokenizer
from triton_repo.settings import (
    MODELS,
    REPOSITORY_NAME,
    SERVED_FILES,
    TOKENIZER_FOLDER,
    EngineConfig,
    Given,
    Relay,
    RepositoryKind,
    RepositoryManifest,
    Resolved,
    ServingSettings,
    Variant,
    read_engine_config,
    resolve,
)

PYTHON_MODELS = {"preprocessing": "Preprocessing", "postprocessing": "Postprocessing", "tensorrt_llm_bls": "TextModel"}
EMULATED_MODULES = {
    "inflight_batcher_llm": ("triton_repo.models.tensorrt_llm", "EmulatedEngineModel"),
    "llmapi": ("triton_repo.models.llmapi", "EmulatedLlmApiModel"),
    "trtllm_serve": ("triton_repo.models.tensorrt_llm", "EmulatedEngineModel"),
}
RELAY_MODULE = ("triton_repo.models.relay", "RelayModel")
TOKENIZER_FOLDERS = {
    "inflight_batcher_llm": TOKENIZER_FOLDER,
    "llmapi": Path("tensorrt_llm/1/tokenizer"),
    "trtllm_serve": TOKENIZER_FOLDER,
}
PRICES = "prices.yaml"  # in engines/spec/data; the emulated engine has no use for it
# Parts of `engines` that the emulated engine imports; copied into the repository, which then needs only packages.
EMULATOR_PARTS = (
    "__init__.py",
    "derived_copy.py",
    "errors.py",
    "files.py",
    "manifest.py",
    "names.py",
    "schema_errors.py",
    "yaml_text.py",
    "signals.py",
    "units.py",
    "spec",
    "steptime",
    "emulator",
)
RELAY_PARTS = ("__init__.py", "http_fetch.py", "model_list.py")  # what a relay imports of it
Server = Literal["triton", "trtllm-serve"]
_PLACEHOLDER = re.compile(r"\$\{\w+\}|\{\{|\{%")
_UNFILLED = re.compile(r"\$\{\w+\}|\{\{|\{%|\bUndefined\b|: *(?:None|True|False|auto)\b|\"(?:None|auto)\"")


def resolve_for(
    engine_folder: Path,
    settings: ServingSettings,
    given: Given | None = None,
    *,
    relay_url: str | None = None,
    server: Server = "triton",
) -> tuple[EngineManifest, Resolved]:
    """Return an engine's manifest and its resolved serving settings; writes nothing.

    Args:
        given: Explicitly given settings and their origin; None: none.
        relay_url: The server that requests are relayed to; None: the engine itself is served.

    Raises:
        MissingError: The folder has no engine.
        UserError: Settings conflict, the checkpoint was not compiled, or the engine cannot be relayed.
    """
    manifest = read_manifest(engine_folder)
    if manifest.kind == "checkpoint" and manifest.backend != "pytorch":
        raise UserError(
            f"{engine_folder}: contains a checkpoint, not an engine",
            hint="compile it with build-engine without --until checkpoint, or emulate it with --emulate",
        )
    if relay_url is not None:
        _require_relayable(manifest, server)
    config = _config_of(manifest, engine_folder)
    return manifest, resolve(settings, given or {}, manifest, config, relay_url=relay_url)


def _config_of(manifest: EngineManifest, engine_folder: Path) -> EngineConfig | None:
    """Return a built engine's own config.json; None if there is none."""
    folder = _inside(engine_folder, manifest.engine or "")
    return read_engine_config(folder) if manifest.kind == "built" and (folder / "config.json").is_file() else None


def render_repository(  # noqa: PLR0913 (the choices of one repository)
    engine_folder: Path,
    out: Path,
    *,
    settings: ServingSettings,
    tokenizer: Path | None,
    served_at: Path | None,
    force: bool,
    made_by: MadeBy,
    given: Given | None = None,
    server: Server = "triton",
    relay: Relay | None = None,
) -> RepositoryManifest:
    """Write the repository of an engine, completely or not at all.

    Engines of the TensorRT backend get the in-flight batching models; those of the PyTorch backend get the LLM API's
    model or trtllm-serve's YAML.

    Args:
        settings: As given; `auto` is resolved for this engine.
        tokenizer: Folder with tokenizer.json; None: the engine's own.
        served_at: Path of the repository on the server (a container's mount); None: where it is written.
        given: Explicitly given settings and their origin; None: none.
        relay: The server that requests are relayed to; the engine is then the plan of that server.

    Raises:
        MissingError: The engine or the tokenizer is missing.
        UserError: The folder contains a checkpoint that was not compiled, settings contradict the engine, or the
            tokenizer is invalid.
    """
    relay_url = None if relay is None else relay.url
    manifest, resolved = resolve_for(engine_folder, settings, given, relay_url=relay_url, server=server)
    source, checked = checked_tokenizer(engine_folder, manifest, tokenizer, server=server)
    repository = RepositoryManifest(
        made_by=made_by,
        made_from=[source_of(engine_folder / MANIFEST_NAME)],
        kind=_kind(manifest, relay),
        variant=_variant(manifest, server),
        served_at=str((served_at or out).absolute()),
        loads=_loads(engine_folder, manifest, server),
        settings=settings,
        resolved=resolved.settings,
        engine=manifest,
        relay=relay,
        notices=(*resolved.notices, *checked),
    )
    inputs = [engine_folder, *([] if tokenizer is None else [tokenizer])]
    with whole_folder(out, made_by=made_by, force=force, inputs=inputs, later=SERVED_FILES) as folder:
        _Writer(folder, repository, engine_folder.absolute()).write()
        if source:
            copy_tokenizer(source, folder / TOKENIZER_FOLDERS[repository.variant])
        write_json(folder / REPOSITORY_NAME, repository)
        check_repository(folder)
    return repository


def _kind(engine: EngineManifest, relay: Relay | None) -> RepositoryKind:
    if relay is not None:
        return "relayed"
    return "emulated" if engine.kind == "emulated" else "built"


def _require_relayable(engine: EngineManifest, server: Server) -> None:
    if server != "triton" or engine.kind != "emulated" or engine.backend != "tensorrt":
        raise UserError(
            "--engine-url requires an emulated engine of the TensorRT backend, served by Triton",
            hint="plan one with the server's own limits: build-engine --emulate --max-batch-size N --max-seq-len N",
        )


def _variant(engine: EngineManifest, server: Server) -> Variant:
    """Return the set of files that a server of this engine reads.

    Raises:
        UserError: trtllm-serve was requested for an engine of the TensorRT backend.
    """
    if server == "trtllm-serve":
        if engine.backend != "pytorch":
            raise UserError(
                "trtllm-serve is supported for checkpoints of the PyTorch backend; this is a TensorRT engine",
                hint="use build-engine --backend pytorch, or --server triton",
            )
        return "trtllm_serve"
    return "llmapi" if engine.backend == "pytorch" else "inflight_batcher_llm"


def _loads(engine_folder: Path, engine: EngineManifest, server: Server) -> str | None:
    """Return the path or name that trtllm-serve loads; None if Triton serves, or the engine is emulated."""
    if server != "trtllm-serve" or engine.kind == "emulated":
        return None
    return served_model(engine, str(_inside(engine_folder, engine.checkpoint or "checkpoint")))


def environment(loader: jinja2.BaseLoader | None = None) -> jinja2.Environment:
    """Return the template environment: sandboxed, and undefined values are errors."""
    return jinja2.sandbox.ImmutableSandboxedEnvironment(
        loader=loader or jinja2.PackageLoader("triton_repo.repository", "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )


def fill(templates: jinja2.Environment, name: str, values: dict[str, Any]) -> str:
    """Return a filled template without leftovers.

    Raises:
        jinja2.UndefinedError: The template uses an undefined value.
        RuntimeError: A placeholder was left in the result: a bug in the template.
    """
    text = templates.get_template(name).render(values)
    left = _UNFILLED.search(text)
    if left is not None:
        line = text.count("\n", 0, left.start()) + 1
        raise RuntimeError(f"template {name}, line {line} of its result: {left[0]!r} was never filled")
    return text


class _Writer:
    """Writes the models of one repository into a folder."""

    def __init__(self, folder: Path, repository: RepositoryManifest, engine_folder: Path) -> None:
        self._folder = folder
        self._repository = repository
        self._engine_folder = engine_folder
        self._templates = environment()

    def write(self) -> None:
        """Write every model."""
        if self._repository.variant == "llmapi":
            self._write_llmapi()
        elif self._repository.variant == "trtllm_serve":
            self._write_trtllm_serve()
        else:
            self._write_inflight()

    def _write_inflight(self) -> None:
        values = self._values()
        for model in MODELS:
            self._write_config(model, f"{model}/config.pbtxt.j2", values)
        for model, name in PYTHON_MODELS.items():
            self._write_code(model, f"triton_repo.models.{model}", name)
        if self._repository.kind == "emulated":
            self._write_emulator()
        elif self._repository.kind == "relayed":
            self._write_code("tensorrt_llm", *RELAY_MODULE)
            self._copy_engines(RELAY_PARTS)

    def _write_llmapi(self) -> None:
        engine, settings = self._repository.engine, self._repository.resolved
        emulated = self._repository.kind == "emulated"
        parameters = {"gpu_device_ids": settings.processes.gpu_device_ids}
        if emulated:
            parameters |= {
                "engine_name": engine.title,
                "emulated": "true",
                "emulator_time_scale": f"{settings.emulation.time_scale:g}",
                "emulator_manifest": "engine.json",
                "tokenizer_dir": f"{self._repository.served_at}/{TOKENIZER_FOLDERS['llmapi']}",
                **limit_parameters(settings),
            }
        values = {
            "t": tensors,
            "inputs": llmapi_inputs(engine),
            "settings": settings,
            "parameter_values": _quoted(written(parameters)),
        }
        self._write_config("tensorrt_llm", "llmapi/config.pbtxt.j2", values)
        tokenizer = f"{self._repository.served_at}/{TOKENIZER_FOLDERS['llmapi']}"
        checkpoint = str(_inside(self._engine_folder, engine.checkpoint or "checkpoint"))
        document = llm_document(engine, settings, checkpoint=checkpoint, tokenizer=tokenizer)
        text = HEADER.format(name=engine.model.name) + yaml.safe_dump(document, sort_keys=False)
        write_text(self._folder / "tensorrt_llm" / "1" / MODEL_YAML, text)
        if emulated:
            self._write_emulator()
        else:
            folder = _quoted({"llmapi.model_code": settings.llmapi.model_code})["llmapi.model_code"]
            code = fill(self._templates, "llmapi/model.py.j2", {"folder": f'"{folder}"'})
            write_text(self._folder / "tensorrt_llm" / "1" / "model.py", code)

    def _write_trtllm_serve(self) -> None:
        """Write trtllm-serve's YAML; for an emulated engine also the models that replace it."""
        engine = self._repository.engine
        document = trtllm_serve_document(engine, self._repository.resolved)
        text = SERVE_HEADER.format(name=engine.model.name) + yaml.safe_dump(document, sort_keys=False)
        write_text(self._folder / SERVE_YAML, text)
        if self._repository.kind == "emulated":
            self._write_inflight()

    def _values(self) -> dict[str, Any]:
        repository, settings = self._repository, self._repository.resolved
        engine_dir = str(_inside(self._engine_folder, repository.engine.engine or ""))
        tokenizer_dir = f"{repository.served_at}/{TOKENIZER_FOLDERS['inflight_batcher_llm']}"
        text = settings.text
        parameters = {
            "tensorrt_llm": model_parameters(repository, engine_dir=engine_dir, tokenizer_dir=tokenizer_dir),
            "preprocessing": written(
                {
                    "tokenizer_dir": tokenizer_dir,
                    "add_special_tokens": text.add_special_tokens,
                    "multimodal_model_path": "",
                    "gpt_model_path": engine_dir,
                    **limit_parameters(settings),
                }
            ),
            "postprocessing": written(
                {"tokenizer_dir": tokenizer_dir, "skip_special_tokens": text.skip_special_tokens}
            ),
            "tensorrt_llm_bls": written(
                {
                    "accumulate_tokens": text.accumulate_tokens,
                    "tensorrt_llm_model_name": "tensorrt_llm",
                    "tensorrt_llm_draft_model_name": text.draft_model or "",
                    "multimodal_encoders_name": "",
                    "tokenizer_dir": tokenizer_dir,
                }
            ),
        }
        return {
            "t": tensors,
            "typed": Typed(settings),
            "settings": settings,
            "queue": settings.queue,
            "batch": repository.engine.limits.max_batch_size,
            "backend": "tensorrtllm" if repository.kind == "built" else "python",
            "parameter_values": {model: _quoted(values) for model, values in parameters.items()},
        }

    def _write_config(self, model: str, template: str, values: dict[str, Any]) -> None:
        write_text(self._folder / model / "config.pbtxt", fill(self._templates, template, values))
        (self._folder / model / "1").mkdir()

    def _write_code(self, model: str, module: str, name: str) -> None:
        code = fill(self._templates, "model.py.j2", {"model": model, "module": module, "class": name})
        version_folder = self._folder / model / "1"
        write_text(version_folder / "model.py", code)
        _copy_package(Path(__file__).parent.parent, version_folder / "triton_repo", ("__init__.py", "models"))

    def _write_emulator(self) -> None:
        self._write_code("tensorrt_llm", *EMULATED_MODULES[self._repository.variant])
        write_json(self._folder / "tensorrt_llm" / "1" / "engine.json", self._repository.engine)
        self._copy_engines(EMULATOR_PARTS)

    def _copy_engines(self, parts: tuple[str, ...]) -> None:
        _copy_package(Path(engines.__file__).parent, self._folder / "tensorrt_llm" / "1" / "engines", parts)


class Typed:
    """Tensor tables with the deployment's data types."""

    def __init__(self, settings: ServingSettings) -> None:
        kinds = settings.types
        self._types: dict[str, str] = dict.fromkeys(
            ("context_logits", "generation_logits", "draft_logits"), kinds.logits
        )
        self._types |= {
            "prompt_embedding_table": kinds.prompt_embedding,
            "encoder_input_features": kinds.encoder_features,
        }

    def __call__(self, rows: tuple[Tensor, ...]) -> list[Tensor]:
        """Return the rows with their types filled in."""
        return [
            row._replace(data_type=f"TYPE_{self._types[row.name].upper()}") if row.name in self._types else row
            for row in rows
        ]


def checked_tokenizer(
    engine_folder: Path, manifest: EngineManifest, given: Path | None, *, server: Server
) -> tuple[Path | None, Sequence[Notice]]:
    """Return the tokenizer's folder and what there is to say about it; None where the server reads the checkpoint's.

    Args:
        given: Folder with tokenizer.json; None: the engine's own.

    Raises:
        MissingError, UserError: As `check_tokenizer` does; or the engine has none.
    """
    if server == "trtllm-serve" and manifest.kind != "emulated":
        return None, ()
    source = given or _engine_tokenizer(engine_folder, manifest)
    return source, check_tokenizer(source, vocabulary=manifest.model.vocab_size)


def _engine_tokenizer(engine_folder: Path, manifest: EngineManifest) -> Path:
    if manifest.tokenizer is None:
        raise MissingError(f"{engine_folder}: the engine has no tokenizer", hint="give one with --tokenizer DIR")
    return _inside(engine_folder, manifest.tokenizer)


def _inside(folder: Path, name: str) -> Path:
    """Return a path from a manifest, relative to its own folder.

    Raises:
        UserError: It points outside the folder.
    """
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise UserError(
            f"{folder / MANIFEST_NAME}: '{name}' points outside the engine's folder", hint="build the engine again"
        )
    return path


def _copy_package(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    target.mkdir()
    for part in parts:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=shutil.ignore_patterns("__pycache__", PRICES))
        else:
            shutil.copyfile(source / part, target / part)


def _quoted(parameters: dict[str, str]) -> dict[str, str]:
    """Return parameters escaped for quotes in a text protobuf.

    Raises:
        UserError: A value contains a placeholder, which nothing would fill.
    """
    for key, value in parameters.items():
        if _PLACEHOLDER.search(value):
            raise UserError(
                f"{key}: '{value}' contains a placeholder",
                hint="write the value itself; no later step replaces the placeholder",
            )
    return {key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in parameters.items()}
