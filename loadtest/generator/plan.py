"""The plan of a load generator process."""

from __future__ import annotations

from dataclasses import replace

from engines.files import Strict
from loadtest.client import Endpoint
from loadtest.scenario import Scenario
from loadtest.traffic import LevelPlan, plans_of

ENOUGH = "enough"  # what a generator under way is told when a level's requests tell enough


class GeneratorPlan(Strict):
    """Everything that a load generator process needs to send its load.

    Attributes:
        endpoint: The server.
        prompts: Folder of what prompts are made from.
        records: File to append records to.
        under_way: File to note requests in that have not ended.
        began_monotonic_s: The run's zero on the machine's monotonic clock.
        time_scale: Wall seconds of one second of the scenario's arrivals and windows.
        lengths: Mean prompt and reply of each level's requests, in tokens.
        texts: File to append prompts to as they are sent; None: they are written nowhere.
    """

    endpoint: Endpoint
    scenario: Scenario
    prompts: str
    records: str
    under_way: str
    began_monotonic_s: float
    time_scale: float = 1.0
    lengths: tuple[tuple[int, int], ...] = ()
    texts: str | None = None

    def levels(self) -> list[LevelPlan]:
        """Return the levels as `plans_of`, with their lengths; errors likewise."""
        plans = plans_of(self.scenario)
        return [replace(plan, isl=isl, osl=osl) for plan, (isl, osl) in zip(plans, self.lengths, strict=True)]
