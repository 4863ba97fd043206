"""What the console scripts of this room name: `from triton_repo.cli.start import COMMAND`, loaded once it runs."""

from __future__ import annotations

from engines.start import LateCommand


def __getattr__(name: str) -> LateCommand:
    """Return the command that the module of its name holds."""
    if name.startswith("_"):
        raise AttributeError(name)
    return LateCommand(f"triton_repo.cli.{name}", name)
