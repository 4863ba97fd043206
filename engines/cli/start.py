"""What the console scripts of this room name: `from engines.cli.start import COMMAND`, loaded once it runs."""

from __future__ import annotations

from importlib.util import find_spec

from engines.start import LateCommand


def __getattr__(name: str) -> LateCommand:
    """Return the command that the module of its name holds."""
    if name.startswith("_") or find_spec(f"engines.cli.{name}") is None:
        raise AttributeError(name)
    return LateCommand(f"engines.cli.{name}", name)
