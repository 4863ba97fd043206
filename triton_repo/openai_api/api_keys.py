"""API keys: read from a file or an environment variable, compared in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from pathlib import Path

from engines.errors import UserError

KEY_VARIABLE = "FRONT_API_KEY"


def read_keys(path: Path | None, variable: str | None) -> list[str]:
    """Return the API keys: a file's lines, without comments (`# ...`), or the variable's value.

    Raises:
        MissingError: The file does not exist, or cannot be read.
        UserError: It is not a text file, or contains no key.
    """
    if path is None:
        return [variable] if variable else []
    from engines.files import text_file  # noqa: PLC0415 (serve-repo --help needs the variable's name alone)

    with text_file(path) as file:
        lines = file.read().splitlines()
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise UserError(f"{path}: contains no API key", hint="write one key per line")
    return keys


def is_key(given: str, keys: Sequence[str]) -> bool:
    """Whether a given key is valid; it is compared with all keys, each in constant time."""
    found = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    return any(found)
