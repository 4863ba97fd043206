"""Folders that the setup derives from installed files: written whole, and used only while they are as written."""

from __future__ import annotations

import errno
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from engines.files import sha256_of

MADE_OF = "made-of.json"
_OTHERS = (errno.EEXIST, errno.ENOTEMPTY)  # another writer was the last one


@contextmanager
def derived_folder(target: Path, made_of: Mapping[str, str]) -> Iterator[Path]:
    """Provide an empty folder that replaces `target` once it is complete; of two writers at once, one's folder stays.

    Args:
        made_of: Its origin; see `is_intact`.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        yield made
        files = {
            path.relative_to(made).as_posix(): sha256_of(path) for path in sorted(made.rglob("*")) if path.is_file()
        }
        (made / MADE_OF).write_text(json.dumps({"of": dict(made_of), "files": files}, indent=1), encoding="utf-8")
        with suppress(FileNotFoundError):
            target.rename(Path(scratch) / "before")
        try:
            made.rename(target)
        except OSError as error:
            if error.errno not in _OTHERS:
                raise


def is_intact(folder: Path, made_of: Mapping[str, str], wanted: Callable[[str], bool] = lambda _: True) -> bool:
    """Return whether a derived folder has this origin, and its wanted files are as they were written.

    A damaged table may be no error to the library that reads it, but another figure.

    Args:
        wanted: Whether a file is to be read, by its path in the folder.
    """
    try:
        stated = json.loads((folder / MADE_OF).read_bytes())
        files = {name: own for name, own in stated["files"].items() if wanted(name)}
        return bool(stated["of"] == made_of and all(sha256_of(folder / name) == own for name, own in files.items()))
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False
