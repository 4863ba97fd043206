"""Locates an engine's tokenizer: from a flag, the checkpoint, or the installed one of the model's family."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import MissingError, UserError
from engines.names import TOKENIZER_FILE

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_COPIED = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)


def installed_tokenizers() -> Path:
    """Return the folder where `make setup` installs tokenizers, one folder per family."""
    return Path(sys.prefix) / "share" / "tokenizers"


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer in a tokenizer.json.

    Raises:
        MissingError: The file does not exist.
        UserError: It is not a tokenizer.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="give the model's tokenizer.json with --tokenizer")
    from tokenizers import Tokenizer  # noqa: PLC0415 (a compiled library, slow to import)

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception for a damaged file
        raise UserError(f"{path}: not a tokenizer: {error}", hint="download it again") from error


def find_tokenizer(named: str | None, checkpoint: Path | None, family: str) -> Path | None:
    """Return the folder of the tokenizer to use; None if there is none.

    Raises:
        MissingError: The requested folder has none.
    """
    if named is not None:
        folder = Path(named) if Path(named).is_dir() else Path(named).parent
        if not (folder / TOKENIZER_FILE).is_file():
            raise MissingError(
                f"{named}: contains no {TOKENIZER_FILE}", hint="give the folder that contains tokenizer.json"
            )
        return folder
    candidates = [installed_tokenizers() / family]
    if checkpoint is not None:
        candidates.insert(0, checkpoint)
    return next((candidate for candidate in candidates if (candidate / TOKENIZER_FILE).is_file()), None)


def copy_tokenizer(folder: Path, target: Path) -> None:
    """Copy a tokenizer's data files, without any code beside them."""
    target.mkdir(parents=True)
    for name in _COPIED:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
