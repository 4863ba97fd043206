"""Tokenizer files copied into a repository: data only, never code."""

from __future__ import annotations

import shutil
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from engines.errors import MissingError, UserError
from engines.files import read_json
from engines.manifest import Notice
from engines.names import TOKENIZER_FILE

# Data files of a tokenizer. Anything else beside them, code in particular, is not copied.
TOKENIZER_FILES = (
    TOKENIZER_FILE, "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "generation_config.json",
    "chat_template.jinja", "chat_template.json", "vocab.json", "merges.txt",
)  # fmt: skip
LONGEST_TOKENIZER_BYTES = 256 << 20


class _Open(BaseModel):
    """A JSON object with any keys."""

    model_config = ConfigDict(extra="allow")


def check_tokenizer(folder: Path, *, vocabulary: int) -> list[Notice]:
    """Check that a folder contains a tokenizer made of data; return a notice if its config names other files.

    Args:
        vocabulary: Tokens of the model; its embedding may have more rows than the tokenizer has tokens, not fewer.
            Added tokens do not count: a padding token beyond the vocabulary is common, and is never sent.

    Raises:
        MissingError: There is no tokenizer.json.
        UserError: The `tokenizers` library cannot read it, it is another model's (has tokens beyond the vocabulary), or
            tokenizer_config.json is not an object.
    """
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        missing = "contains no tokenizer.json" if folder.exists() else "no such folder"
        raise MissingError(f"{folder}: {missing}", hint="give the model's tokenizer with --tokenizer DIR")
    stat = path.stat()
    if stat.st_size > LONGEST_TOKENIZER_BYTES:
        raise UserError(
            f"{path}: {stat.st_size} bytes exceed the limit of {LONGEST_TOKENIZER_BYTES}",
            hint=("check that this is the right file"),
        )
    try:
        largest = _largest_id(path.absolute(), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"{path}: not a tokenizer: {error}", hint="give the model's tokenizer with --tokenizer DIR"
        ) from error
    if largest >= vocabulary:
        raise UserError(
            f"{path}: the tokenizer of another model: its token {largest} exceeds the vocabulary of {vocabulary}",
            hint="give the model's tokenizer with --tokenizer DIR",
        )
    return _code_notices(folder)


@lru_cache(maxsize=4)
def _largest_id(path: Path, *_version: int) -> int:
    """Return a tokenizer's largest id; for several repositories of one engine, its file is read once."""
    return max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=False).values(), default=0)


def _code_notices(folder: Path) -> list[Notice]:
    path = folder / "tokenizer_config.json"
    config = read_json(path, _Open).model_dump() if path.is_file() else {}
    named = [key for key in ("auto_map", "tokenizer_file", "custom_pipelines") if config.get(key)]
    if not named:
        return []
    text = f"{path} names code or other files ({', '.join(named)}): not copied; only tokenizer.json is used"
    return [Notice(code="tokenizer-code", text=text)]


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the data files of a tokenizer and nothing else."""
    target.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
