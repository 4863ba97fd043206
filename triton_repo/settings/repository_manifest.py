"""The manifest of a repository: its models and the settings it was rendered with."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from engines.errors import CommandError, UserError
from engines.files import Document, Strict, kind_of_folder, not_of_kind, read_json
from engines.manifest import EngineManifest, Notice, read_manifest
from triton_repo.settings.schema import ServingSettings
from triton_repo.settings.server_settings import DEFAULT_TIME_SCALE, Emulation

REPOSITORY_NAME = "manifest.json"
_REPOSITORY_HINT = "give the output folder of build-repo"
TOKENIZER_FOLDER = Path("preprocessing/1/tokenizer")
MODELS = ("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls")
LLMAPI_MODELS = ("tensorrt_llm",)
Variant = Literal["inflight_batcher_llm", "llmapi", "trtllm_serve"]
RepositoryKind = Literal["built", "emulated", "relayed"]
# files that serving writes into a repository
SERVED_FILES = ("server.json", "server.log", "server.key", "start.json", "front.json", "front.log")
__all__ = [
    "DEFAULT_TIME_SCALE", "LLMAPI_MODELS", "MODELS", "REPOSITORY_NAME", "SERVED_FILES", "Choice", "Emulation",
    "Relay", "RepositoryManifest",
    "ServingSettings", "Variant", "read_repository",
]  # fmt: skip


class Choice(Strict):
    """One resolved setting, as printed by `--explain`.

    Attributes:
        origin: Origin of the value; `upstream default` for TensorRT-LLM's own default.
        reason: Why, for a derived value.
        effect: Whether the served engine is affected by it.
    """

    name: str
    value: Any
    origin: Literal["flag", "serving.yaml", "derived", "default", "upstream default"]
    reason: str
    place: str
    upstream_default: str
    effect: Literal["yes", "none"]


class Relay(Strict):
    """The server that a relayed engine's requests go to.

    Attributes:
        url: `http://HOST:PORT` of an OpenAI-compatible server that takes and returns token ids.
        model: The name it serves the model by.
    """

    url: str
    model: str


class RepositoryManifest(Document):
    """`manifest.json` of a model repository: the settings it was rendered with, and the engine's own manifest.

    Attributes:
        variant: Which of TensorRT-LLM's model sets it is; `trtllm_serve`: none, trtllm-serve reads a YAML of its own.
            For an emulated engine there is a twin: the in-flight models behind the OpenAI front.
        served_at: Absolute path the repository must have where it is served; its models hold it.
        loads: What trtllm-serve loads: the checkpoint's folder, or the name of a published one; else None.
        relay: The server that runs the model of a relayed engine; `engine` is then the plan of that engine.
        settings: As given; another engine may resolve them differently.
        resolved: What they became for this engine; no `auto` is left.
        notices: Settings without effect, and what else a reader of later figures must know.
    """

    kind: RepositoryKind
    variant: Variant = "inflight_batcher_llm"
    served_at: str
    loads: str | None = None
    relay: Relay | None = None
    settings: ServingSettings
    resolved: ServingSettings
    engine: EngineManifest
    notices: tuple[Notice, ...] = ()

    @property
    def models(self) -> tuple[str, ...]:
        """Return the names of its models."""
        if self.variant == "llmapi":
            return LLMAPI_MODELS
        return MODELS if self.variant == "inflight_batcher_llm" or self.kind != "built" else ()


def read_repository(folder: Path) -> RepositoryManifest:
    """Read a repository's manifest. Raises as `files.read_json` does; a folder of another kind is named as such."""
    path = folder / REPOSITORY_NAME
    if not path.exists():
        raise not_a_repository(folder, REPOSITORY_NAME)
    try:
        return read_json(path, RepositoryManifest)
    except UserError as error:
        refuse_other_kind(folder)
        hint = "the file is truncated or of another version; rebuild the repository with build-repo ENGINE_DIR --force"
        raise UserError(error.message, hint=hint) from error


def not_a_repository(folder: Path, lacks: str) -> CommandError:
    """Return the error of a folder that is not a model repository; see `not_of_kind`."""
    return not_of_kind("a model repository", folder, lacks, hint=_REPOSITORY_HINT)


def refuse_other_kind(folder: Path) -> None:
    """Refuse the folder of an engine, whose manifest has the same name, and what another command wrote."""
    if kind_of_folder(folder) not in (None, "a model repository", "an engine folder"):
        raise not_a_repository(folder, REPOSITORY_NAME)
    try:
        read_manifest(folder)
    except CommandError:
        return
    raise UserError(
        f"{folder}: an engine folder, not a model repository", hint=f"build-repo {folder} makes a repository of it"
    )
