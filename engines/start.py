"""Start of every console script: a signal during the import of modules ends the command with one line.

A script names `PACKAGE.cli.start:COMMAND`; loading it imports only this module, and then the command is looked up.
Ctrl-C before that is Python's traceback, so this module imports little.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import signal
import sys

TYPE_CHECKING = False  # typing's, whose import takes longer than that of all others here
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

INTERRUPTED = 130
# Objects allocated between two searches for garbage: modules and what a prediction keeps are some 130,000, in which a
# search takes 0.02 s and finds nothing. Tens of megabytes of garbage at most wait longer.
GARBAGE_OBJECTS = 200_000


def late_command(room: str, name: str, environment: Mapping[str, str] | None = None) -> LateCommand:
    """Return the command that a module of a room defines under its own name; its script is from now on interruptible.

    Raises:
        AttributeError: There is no such module.
    """
    if name.startswith("_"):  # import asks for __path__ first
        raise AttributeError(name)
    command = LateCommand(f"{room}.{name}", name, environment)
    if os.path.basename(sys.argv[0]) == command.script:  # noqa: PTH119 (pathlib's import takes longer)
        command.leave_at_ctrl_c()
    from importlib.util import find_spec  # noqa: PLC0415 (takes longer than all above)

    if find_spec(f"{room}.{name}") is None:
        raise AttributeError(name)
    return command


class LateCommand:
    """A command that is imported on first use.

    Args:
        module: Its module.
        name: Its name in the module.
        environment: Environment variables of the process, where the user has not set them.
    """

    def __init__(self, module: str, name: str, environment: Mapping[str, str] | None = None) -> None:
        self._module, self._name = module, name
        self._environment = environment or {}
        self.script = name.replace("_", "-")

    def leave_at_ctrl_c(self) -> None:
        """End the process at Ctrl-C, unless it does something of its own then: a command's children start here too."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, self._leave)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command; until it installs its own handlers, a signal ends the process at once."""
        for variable, value in self._environment.items():
            os.environ.setdefault(variable, value)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._leave)
        atexit.register(_ignore_signals)
        gc.set_threshold(GARBAGE_OBJECTS)
        atexit.register(gc.freeze)  # the system takes the memory back: Python need not look through it once more
        _open_closed_streams()
        return self.loaded()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the command."""
        return getattr(self.loaded(), name)

    def loaded(self) -> Any:
        """Return the command itself."""
        return getattr(importlib.import_module(self._module), self._name)

    def _leave(self, number: int, frame: object) -> None:  # noqa: ARG002 (a signal handler's signature)
        """Exit at once: nothing has been started or written yet, and an import cannot be unwound cleanly."""
        sys.stderr.write(f"{self.script}: error: interrupted\n")
        sys.stderr.flush()
        os._exit(INTERRUPTED)


def _ignore_signals() -> None:
    """Keep the command's own exit status while the interpreter shuts down, which would restore the default handlers."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _open_closed_streams() -> None:
    """Open /dev/null for each standard stream that the caller closed.

    Python sets such a stream to None, and the next file opened takes its descriptor: output meant for the terminal
    would be written into it.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 (lives as long as the process)
