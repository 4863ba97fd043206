"""Entry points of this room's console scripts: `from loadtest.cli.start import COMMAND`, loaded when it runs."""

from __future__ import annotations

from importlib.util import find_spec

from engines.start import LateCommand

# numpy's products here are small: more threads wait longer than they compute, and where a sum is split, its last digit
# depends on the number of cores.
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def __getattr__(name: str) -> LateCommand:
    """Return the command defined by the module of this name."""
    if name.startswith("_") or find_spec(f"loadtest.cli.{name}") is None:
        raise AttributeError(name)
    return LateCommand(f"loadtest.cli.{name}", name, ONE_THREAD)
