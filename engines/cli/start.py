"""Entry points of this room's console scripts: `from engines.cli.start import COMMAND`, loaded when it runs."""

from __future__ import annotations

from importlib.util import find_spec

from engines.compiled import use_compiled_modules
from engines.start import LateCommand


def __getattr__(name: str) -> LateCommand:
    """Return the command defined by the module of this name."""
    if name.startswith("_") or find_spec(f"engines.cli.{name}") is None:
        raise AttributeError(name)
    if name == "e2c":  # and in the processes that its commands start, which import its script
        use_compiled_modules()
    return LateCommand(f"engines.cli.{name}", name)
