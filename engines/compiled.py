"""Modules compiled from their own source (mypyc) where the package was built with a C compiler; else Python runs them.

The build writes them beside this file with the hash of each source. They are used all together, by commands alone (a
test imports the Python), and only while every source is as it was: an edited one is run, not what it was. Where Python
already runs one of them, as in a program that imports the package and then calls a command, it runs them all.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "_compiled"  # MADE_OF, and NAME.SUFFIX for each module by its full name
MADE_OF = "made-of.json"  # "sources": {path under ROOT: SHA-256}; and what compiled them, for which Python
SUFFIX = EXTENSION_SUFFIXES[0]


def sha256_of(source: Path) -> str:
    """Return the hash by which a source is known to be what was compiled; the build has no more than this module."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


class CompiledModules:
    """Finds the compiled modules of a folder, as `sys.meta_path` asks for them.

    `importlib.abc.MetaPathFinder` would add nothing, and its import a hundredth of a second to every command.
    """

    def __init__(self, root: Path = ROOT, folder: Path = FOLDER) -> None:
        self._root, self._folder = root, folder
        self._names = {path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}")}

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 (a finder's signature)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """Return where a compiled module is; None: it is not compiled, or not from the source that is here."""
        if fullname not in self._names or not self._are_usable:
            return None
        found = self._folder / f"{fullname}{SUFFIX}"
        return spec_from_file_location(fullname, found, loader=ExtensionFileLoader(fullname, str(found)))

    @cached_property
    def _are_usable(self) -> bool:
        """Whether every source is the one that was compiled, and Python runs none of them already: decided once.

        Compiled modules read each other's objects by their place in memory: one of Python's among them is a crash.
        """
        if not self._names.isdisjoint(sys.modules):
            return False
        try:
            sources = json.loads((self._folder / MADE_OF).read_bytes())["sources"]
            return all(sha256_of(self._root / path) == known for path, known in sources.items())
        except (OSError, ValueError, KeyError):
            return False


def use_compiled_modules() -> None:
    """Let what this process imports from now on be the compiled modules."""
    if not any(isinstance(finder, CompiledModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, CompiledModules())
