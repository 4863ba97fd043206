"""The energy that the emulated GPUs would have taken: the power model's, step by step."""

from __future__ import annotations

from engines.emulator import Iteration
from engines.steptime import PowerModel


class EnergyCounter:
    """Joules of the replica's GPUs in engine time, like the energy counter of real ones; never falls.

    Between steps the GPUs draw their base power.

    Args:
        time_scale: Wall seconds per engine second.
        begin_s: The time of zero joules, on the clock that every later time is on.
    """

    def __init__(self, model: PowerModel, time_scale: float, begin_s: float) -> None:
        self._model = model
        self._scale = time_scale
        self._end_s = begin_s
        self._total_j = 0.0

    def note(self, iteration: Iteration, end_s: float) -> None:
        """Add a step that ends at a wall time, and the idle time before it."""
        begin_s = end_s - iteration.seconds * self._scale
        self._total_j += self._idle_j(begin_s) + self._model.joules(iteration.shape, iteration.seconds)
        self._end_s = end_s

    def joules(self, now_s: float) -> float:
        """Return the joules up to a wall time; of the current step, its base power only."""
        return self._total_j + self._idle_j(now_s)

    def _idle_j(self, until_s: float) -> float:
        return max(0.0, until_s - self._end_s) / self._scale * self._model.base_w
