"""Entry points of this room's console scripts: `from triton_repo.cli.start import COMMAND`, loaded when it runs."""

from __future__ import annotations

from engines.start import LateCommand, late_command


def __getattr__(name: str) -> LateCommand:
    """Return the command defined by the module of this name."""
    return late_command("triton_repo.cli", name)
