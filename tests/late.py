"""Libraries that are imported when a test first uses them: every worker collects all tests, and runs a few."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest


class Late:
    """A module whose import waits until one of its names is asked for.

    Args:
        name: Its whole name. Where it is not installed, the tests of the module that asks are skipped.
        extra: The extra of ours that brings it.
    """

    def __init__(self, name: str, extra: str) -> None:
        if find_spec(name.partition(".")[0]) is None:
            pytest.skip(f"the {extra} extra is not installed", allow_module_level=True)
        self._name = name

    def __getattr__(self, name: str) -> Any:
        """Import the module, and return what has this name in it."""
        if name.startswith(("__", "_mock", "_pytest", "pytest")):  # pytest asks all that a test module names for it
            raise AttributeError(name)
        return getattr(import_module(self._name), name)
