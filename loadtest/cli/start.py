"""Entry points of this room's console scripts: `from loadtest.cli.start import COMMAND`, loaded when it runs."""

from __future__ import annotations

from engines.start import LateCommand, late_command

ENVIRONMENT = {
    # numpy's products here are small: more threads wait longer than they compute, and where a sum is split, its last
    # digit depends on the number of cores.
    "OPENBLAS_NUM_THREADS": "1",
    # No schema here has a plugin, and pydantic reads the metadata of every installed package in search of one.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
}


def __getattr__(name: str) -> LateCommand:
    """Return the command defined by the module of this name."""
    command = late_command("loadtest.cli", name, ENVIRONMENT)
    from engines.compiled import use_compiled_modules

    use_compiled_modules()  # here, for the processes that a command starts import its script, too
    return command
