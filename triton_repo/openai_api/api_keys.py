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
        UserError: The file cannot be read or contains no key.
    """
    if path is None:
        return [variable] if variable else []
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise UserError(f"--api-key-file {path}: not a regular file", hint="give a file with one key per line")
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"--api-key-file {path}: {error.strerror}", hint="give a file with one key per line") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--api-key-file {path}: not UTF-8 text", hint="give a file with one key per line") from error
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise UserError(f"--api-key-file {path}: contains no key", hint="write one key per line")
    return keys


def is_key(given: str, keys: Sequence[str]) -> bool:
    """Whether a given key is valid; it is compared with all keys, each in constant time."""
    found = [hmac.compare_digest(given.encode(), key.encode()) for key in keys]
    return any(found)
