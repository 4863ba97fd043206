"""Entry points of this room's console scripts: `from engines.cli.start import COMMAND`, loaded when it runs."""

from __future__ import annotations

from engines.start import LateCommand, late_command


def __getattr__(name: str) -> LateCommand:
    """Return the command defined by the module of this name."""
    command = late_command("engines.cli", name)
    if name == "e2c":  # and in the processes that its commands start, which import its script
        from engines.compiled import use_compiled_modules

        use_compiled_modules()
    return command
