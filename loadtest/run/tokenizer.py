"""Finds the tokenizer of a served model on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from engines.errors import UserError
from engines.spec import ModelSpec, model_named

TOKENIZER_FILE = "tokenizer.json"


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


def find_tokenizer(named: str | None, model: str | None, root: str = "") -> FoundTokenizer:
    """Find a served model's tokenizer on this machine.

    Args:
        named: Folder or file named by the server; None if it names none.
        model: Served model's name; a folder or a published name helps.
        root: Folder or name that an OpenAI server says the model was loaded from.
    """
    tried = []
    for path, origin in _places(named, [each for each in (root, model) if each]):
        file = path / TOKENIZER_FILE if path.is_dir() else path
        if file.is_file():
            return FoundTokenizer(file, origin)
        tried.append(f"{path} ({origin})")
    return FoundTokenizer(None, tried=tuple(tried))


def _places(named: str | None, names: list[str]) -> Iterator[tuple[Path, str]]:
    if named:
        yield Path(named), "named by the server"
    for name in dict.fromkeys(names):
        if name.startswith("/"):
            yield Path(name), "the model's folder"
        elif name.count("/") == 1:
            yield from _cached(name)
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
