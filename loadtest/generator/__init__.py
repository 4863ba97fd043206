"""The processes that send a load: sender, journals, progress. May import `client`, `metrics`, `traffic` and below."""

from loadtest.generator.journal import add_lost
from loadtest.generator.plan import ENOUGH, GeneratorPlan
from loadtest.generator.progress import Progress

__all__ = ["ENOUGH", "GeneratorPlan", "Progress", "add_lost"]
