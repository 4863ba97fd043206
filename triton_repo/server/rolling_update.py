"""Replaces the engine of a running server: requests in flight finish on the old one, new ones use the new one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engines.errors import MissingError, ToolError, UserError
from engines.files import MadeBy, sha256_of, write_json, write_text
from engines.manifest import EngineManifest, read_manifest
from engines.names import TOKENIZER_FILE
from engines.outputs import add_contents
from engines.signals import interrupts_deferred
from engines.spec import PRECISIONS
from triton_repo.repository import render_repository
from triton_repo.server.control import ENGINE_MODEL, Control, ControlError
from triton_repo.server.launch import control_of, running_server
from triton_repo.server.preflight import require_servable
from triton_repo.settings import MODELS, REPOSITORY_NAME, TOKENIZER_FOLDER, RepositoryManifest, read_repository

CONFIG = "config.pbtxt"
# An ensemble's batch size may not exceed its models': decrease it first, increase it last.
GROWING = ("preprocessing", "postprocessing", ENGINE_MODEL, "tensorrt_llm_bls", "ensemble")
SHRINKING = tuple(reversed(GROWING))


def roll_engine(
    repository: Path, engine_folder: Path, *, made_by: MadeBy, progress: Callable[[str], None]
) -> tuple[RepositoryManifest, int]:
    """Serve another engine from a running server.

    The new engine becomes a new version of the `tensorrt_llm` model. It is loaded beside the old one, which is unloaded
    after its last request. If the new engine does not load or does not answer, the old one keeps serving.

    Returns:
        The repository's new manifest, and the new engine's version.

    Raises:
        MissingError: No server is running, the engine is missing, or the GPU has no room for both engines.
        UserError: The engine has another tokenizer, or another kind than the repository's.
        ToolError: It could not be loaded; the old one keeps serving.
    """
    old = read_repository(repository)
    _refuse(repository, old, engine_folder)
    control = control_of(repository, running_server(repository))
    beside = repository.with_name(f".{repository.name}.roll")
    try:
        new = render_repository(
            engine_folder,
            beside,
            settings=old.settings,
            tokenizer=repository / TOKENIZER_FOLDER,
            served_at=Path(old.served_at),
            force=True,
            made_by=made_by,
        )
        version = _newest(repository / ENGINE_MODEL) + 1
        progress(f"{ENGINE_MODEL} version {version}: {new.engine.model.name} {new.engine.precision.name}")
        swap(repository, beside, version, control, _order(old.engine, new.engine))
        with interrupts_deferred():
            add_contents(repository, repository / ENGINE_MODEL / str(version))
            write_json(repository / REPOSITORY_NAME, new)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return new, version


def _refuse(repository: Path, old: RepositoryManifest, engine_folder: Path) -> None:
    new = read_manifest(engine_folder)
    if new.kind != old.kind:
        raise UserError(
            f"{engine_folder}: contains an engine of kind {new.kind}, but the repository serves kind {old.kind}",
            hint="create a separate repository with build-repo",
        )
    if new.model.vocab_size != old.engine.model.vocab_size:
        raise UserError(
            f"{engine_folder}: {new.model.name} has a vocabulary of {new.model.vocab_size:,} tokens, the repository's "
            f"{old.engine.model.name} one of {old.engine.model.vocab_size:,}",
            hint="create a separate repository with build-repo",
        )
    if new.tokenizer is not None:
        theirs, ours = engine_folder / new.tokenizer, repository / TOKENIZER_FOLDER
        if sha256_of(theirs / TOKENIZER_FILE) != sha256_of(ours / TOKENIZER_FILE):
            raise UserError(
                f"{engine_folder}: its tokenizer is not the repository's, which decodes the requests in flight",
                hint="create a separate repository with build-repo, and roll by replica",
            )
    if new.kind == "built":
        require_servable(new, engine_folder / (new.engine or ""))
        _refuse_without_room(old.engine, new)


def _refuse_without_room(old: EngineManifest, new: EngineManifest) -> None:
    """Refuse if the running engine's KV cache leaves no memory for a second set of weights."""
    ranks = old.parallel.tensor * old.parallel.pipeline
    left = (old.gpu.memory_bytes - _weights_bytes(old) // ranks) * (1 - old.kv_cache.free_gpu_mem_fraction)
    needed = _weights_bytes(new) // ranks
    if needed > left:
        raise MissingError(
            f"{old.gpu.name}: the running engine leaves about {left / 2**30:.1f} GiB of its GPU (KV cache fraction "
            f"{old.kv_cache.free_gpu_mem_fraction:g}), the new engine's weights alone take {needed / 2**30:.1f} GiB",
            hint="roll by replica (docs/how-to/roll-an-engine.md), or serve with a smaller KV cache fraction",
        )


def _weights_bytes(engine: EngineManifest) -> int:
    return engine.model.weights_bytes(PRECISIONS[engine.precision.name])


def _order(old: EngineManifest, new: EngineManifest) -> tuple[str, ...]:
    return GROWING if new.limits.max_batch_size >= old.limits.max_batch_size else SHRINKING


def _newest(model: Path) -> int:
    return max(int(folder.name) for folder in model.iterdir() if folder.name.isdigit())


def swap(repository: Path, beside: Path, version: int, control: Control, order: Sequence[str]) -> None:
    """Install the new files and load them; on failure restore the old ones.

    Args:
        beside: The new repository.
        version: The new engine's.
        order: Models, in the order in which their configurations may change.

    Raises:
        ToolError: The new engine was not loaded; says whether the old one still serves.
        KeyboardInterrupt: The command was interrupted; the files are restored.
    """
    before = {model: (repository / model / CONFIG).read_text(encoding="utf-8") for model in MODELS}
    after = {model: (beside / model / CONFIG).read_text(encoding="utf-8") for model in MODELS}
    changed = [model for model in order if before[model] != after[model] or model == ENGINE_MODEL]
    folder = repository / ENGINE_MODEL / str(version)
    old = {model: before[model] for model in reversed(changed)}
    try:
        shutil.copytree(beside / ENGINE_MODEL / "1", folder)
        _load(repository, control, {model: after[model] for model in changed})
        control.probe()
    except KeyboardInterrupt as error:
        _restore(repository, folder, old)
        why = str(error) or "interrupted"
        raise type(error)(f"{why}; the old engine's files are restored: restart the server") from error
    except ControlError as error:
        _restore(repository, folder, old)
        raise ToolError(
            f"the new engine was not loaded and {_kept(repository, control, old)}: {error}",
            log_path=repository / "server.log",
            hint="the log names the cause",
        ) from error


def _restore(repository: Path, folder: Path, configs: Mapping[str, str]) -> None:
    """Remove the new engine's folder and write the old configurations."""
    with interrupts_deferred():
        shutil.rmtree(folder, ignore_errors=True)
        for model, text in configs.items():
            write_text(repository / model / CONFIG, text)


def _kept(repository: Path, control: Control, configs: Mapping[str, str]) -> str:
    """Load the old engine's models again; return what serves now."""
    try:
        _load(repository, control, configs)
    except ControlError:
        return "the server does not answer; the old engine's files are restored"
    return "the old one keeps serving"


def _load(repository: Path, control: Control, configs: Mapping[str, str]) -> None:
    for model, text in configs.items():
        write_text(repository / model / CONFIG, text)
        control.load(model)
