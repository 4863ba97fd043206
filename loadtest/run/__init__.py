"""Running a load: processes, sampling, validity, the terminal. May import `generator`, `client` and below."""

from loadtest.run.early_stop import Enough
from loadtest.run.processes import GeneratorProcesses, join
from loadtest.run.runner import FinishedRun
from loadtest.run.session import run_once
from loadtest.run.target import TargetOptions

__all__ = ["Enough", "FinishedRun", "GeneratorProcesses", "TargetOptions", "join", "run_once"]
