"""TODO."""

from loadtest.run.early_stop import Enough
from loadtest.run.processes import GeneratorProcesses, join
from loadtest.run.session import run_once

__all__ = ["Enough", "GeneratorProcesses", "join", "run_once"]
