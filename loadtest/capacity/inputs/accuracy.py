"""Inputs of a plan's accuracy: engines with results of `evaluate-engine`, and the loss that is allowed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engines.files import Strict
from loadtest.scenario import Objectives


class EvaluatedEngines(Strict):
    """Engine folders with results of `evaluate-engine` on the same questions.

    Attributes:
        baseline: The engine that losses are counted against, usually in 16 bits; it loses nothing.
        tasks: Tasks to count; None: all of the baseline's, which every other engine must have answered too.
        engines: The others. A result applies to every candidate with the engine's precision and KV cache format, on
            any GPU: both follow from the same checkpoint.
    """

    baseline: str
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    engines: Annotated[tuple[str, ...], Field(min_length=1)]


class PlanObjectives(Objectives):
    """Objectives of a demand: latencies over all requests together, and accuracy.

    Attributes:
        max_accuracy_loss: Largest share of a task's questions that may be lost against the baseline, of each task: one
            in a hundred is 0.01. Candidates that lose more, may lose more, or were not evaluated are refused.
    """

    max_accuracy_loss: Annotated[float, Field(ge=0, lt=1)] | None = None
