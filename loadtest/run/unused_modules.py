"""Stand-ins for the modules that Locust imports and a load generator never uses.

Locust's users for HTTP, its web pages and its argument parser import `requests`, `urllib3` and `geventhttpclient`: two
thirds of the time to import Locust. Users here send through `loadtest.client`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNUSED = ("requests", "urllib3", "geventhttpclient", "locust.clients", "locust.contrib.fasthttp", "locust.web")


def leave_out_unused() -> None:
    """Import stand-ins in place of the unused modules from here on; modules that are loaded already stay."""
    sys.meta_path.insert(0, _StandIns())


class _StandIns(MetaPathFinder, Loader):
    """Finds an empty module for each name, and for all modules inside it."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:  # noqa: ARG002
        """Return the stand-in's specification; None for other modules."""
        is_unused = any(name == unused or name.startswith(f"{unused}.") for unused in UNUSED)
        return ModuleSpec(name, self, is_package=True) if is_unused else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return an empty module."""
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing."""


class _StandIn(ModuleType):
    """A module that has every name: a class, which may be a base, an annotation, or an exception to catch."""

    def __getattr__(self, name: str) -> type[Exception]:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return type(name, (Exception,), {"__module__": self.__name__})
