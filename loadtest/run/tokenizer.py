"""Finds the tokenizer of a served model on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import CommandError, UserError
from engines.files import read_json, sha256_of
from engines.names import TOKENIZER_FILE
from loadtest.client import ENGINE_MODEL
from loadtest.results import RUN_NAME, RunManifest, ServerFacts

if TYPE_CHECKING:
    from engines.spec import ModelSpec

MAX_RUNS = 50


@dataclass(frozen=True, slots=True)
class FoundTokenizer:
    """A tokenizer file.

    Attributes:
        path: The file; None: not found.
        origin: Where it comes from, for messages.
        tried: Places without one.
    """

    path: Path | None
    origin: str = ""
    tried: tuple[str, ...] = ()


def find_tokenizer(
    named: str | None, model: str | None, root: str = "", *, earlier: Callable[[], Iterable[Path]] = tuple
) -> FoundTokenizer:
    """Find a served model's tokenizer on this machine.

    Args:
        named: Folder or file named by the server; None if it names none.
        model: Served model's name; a folder or a published name helps.
        root: Folder or name that an OpenAI server says the model was loaded from.
        earlier: Returns the tokenizers of earlier runs against this model; see `of_earlier_runs`.
    """
    tried = []
    for path, origin in _places(named, [each for each in (root, model) if each], earlier):
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if file.is_file():
            return FoundTokenizer(file, origin)
        tried.append(f"{path} ({origin})")
    return FoundTokenizer(None, tried=tuple(tried))


def of_earlier_runs(facts: ServerFacts, folder: Path) -> Iterator[Path]:
    """Yield the tokenizers of earlier runs against the same model of the same server, the latest run's first.

    A tokenizer counts if its file is unchanged. Triton names every engine `tensorrt_llm`: there, the engine's own name
    must be known.

    Args:
        folder: The runs are in it, or in folders in it.
    """
    if facts.model == ENGINE_MODEL and facts.engine is None:
        return
    found = [path for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{RUN_NAME}") if path.is_file()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:MAX_RUNS]:
        try:
            run = read_json(path, RunManifest)
        except CommandError:  # of another version, or damaged: not of use here
            continue
        if (run.server.url, run.server.model, run.server.engine) != (facts.url, facts.model, facts.engine):
            continue
        for source in run.made_from[:1]:  # the tokenizer comes first
            tokenizer = Path(source.path)
            if tokenizer.is_file() and sha256_of(tokenizer) == source.sha256:
                yield tokenizer


def _places(named: str | None, names: list[str], earlier: Callable[[], Iterable[Path]]) -> Iterator[tuple[Path, str]]:
    if named:
        yield Path(named), "named by the server"
    for name in dict.fromkeys(names):
        if name.startswith("/"):
            yield Path(name), "the model's folder"
        elif name.count("/") == 1:
            yield from _cached(name)
    for path in earlier():
        yield path, "used by an earlier run against this model"
    from engines.spec import model_named  # noqa: PLC0415 (slow to import; seldom needed)

    for name in dict.fromkeys(names):
        with contextlib.suppress(UserError):  # not one of the known models
            yield from _installed(model_named(name))


def _installed(model: ModelSpec) -> Iterator[tuple[Path, str]]:
    from engines.checkpoint import find_tokenizer as installed_for  # noqa: PLC0415 (slow to import)

    folder = installed_for(None, None, model.family)
    if folder is not None:
        yield folder, f"installed for {model.name}"


def _cached(name: str) -> Iterator[tuple[Path, str]]:
    """Yield the snapshots of a published model in the Hugging Face cache.

    Source:
        The layout `models--OWNER--NAME/snapshots/REVISION` and `HF_HOME`: huggingface_hub, "Understand caching".
    """
    home = Path(os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface")))
    snapshots = home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots"
    for folder in sorted(snapshots.glob("*"), reverse=True):
        yield folder, "Hugging Face cache"
