"""TODO."""

from loadtest.run.early_stop import Enough
from loadtest.run.processes import Fleet, join
from loadtest.run.session import run_once

__all__ = ["Enough", "Fleet", "join", "run_once"]
