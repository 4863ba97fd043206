"""Output of a plan: terminal, HTML page, charts, files. May import the rest of `capacity`."""

from loadtest.capacity.output.files import CALIBRATE_NAME, PAGE_NAME, RECIPE_NAME, SCENARIO_NAME, write_deployment_files
from loadtest.capacity.output.terminal import show_compared, show_first, show_plan, show_verification

__all__ = [
    "CALIBRATE_NAME",
    "PAGE_NAME",
    "RECIPE_NAME",
    "SCENARIO_NAME",
    "show_compared",
    "show_first",
    "show_plan",
    "show_verification",
    "write_deployment_files",
]
