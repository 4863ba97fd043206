"""The plan of a load generator process."""

from __future__ import annotations

from dataclasses import replace

from engines.files import Strict
from loadtest.client import Endpoint
from loadtest.scenario import Scenario
from loadtest.traffic import LevelPlan, plans_of

ENOUGH = "enough"  # sent to a running generator when a level's results are conclusive


class GeneratorPlan(Strict):
    """Everything that a load generator process needs to send its load.

    Attributes:
        endpoint: The server.
        prompts: Folder of prompt sources.
        records: File to append records to.
        under_way: File with notes of requests in flight.
        began_monotonic_s: Start of the run on the machine's monotonic clock.
        time_scale: Wall seconds per second of the scenario's arrivals and windows.
        lengths: Mean prompt and reply length of each level's requests, in tokens.
        texts: File to append sent prompts to; None: they are not written.
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
        """Return the levels of `plans_of`, with their lengths. Raises as `plans_of` does."""
        plans = plans_of(self.scenario)
        return [replace(plan, isl=isl, osl=osl) for plan, (isl, osl) in zip(plans, self.lengths, strict=True)]
