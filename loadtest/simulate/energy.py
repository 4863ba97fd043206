"""The predicted energy of a simulated run: joules of every iteration, and of the time between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from engines.emulator import Iteration
from engines.manifest import EngineManifest
from engines.steptime import PowerModel, StepShape, power_model_for, why_no_power
from loadtest.metrics import Summary


@dataclass(slots=True)
class EnergyMeter:
    """Adds up the energy of a replica's iterations; between them its GPUs draw their base power.

    Attributes:
        begin_s: When it starts; `begin_j` is its first reading.
        ends_s: Ends of the iterations, or runs of them; `total_j` has the joules up to each.
    """

    model: PowerModel
    begin_s: float = 0.0
    begin_j: float = 0.0
    ends_s: list[float] = field(default_factory=list)
    total_j: list[float] = field(default_factory=list)

    def note(self, iteration: Iteration, begin_s: float) -> None:
        """Add an iteration, or a run of decode iterations, that began at a time.

        In a run each sequence's context grows by one token a step: its mean shape stands for all of its steps.
        """
        end_s, repeats = iteration.ends_s[-1], iteration.repeats
        mean = iteration.shape
        if repeats > 1:
            sequences, context_tokens, *others = mean
            mean = StepShape(sequences, context_tokens + sequences * (repeats - 1) // 2, *others)
        before_s, before_j = (self.ends_s[-1], self.total_j[-1]) if self.ends_s else (self.begin_s, self.begin_j)
        idle_j = (begin_s - before_s) * self.model.base_w
        self.ends_s.append(end_s)
        self.total_j.append(before_j + idle_j + repeats * self.model.joules(mean, (end_s - begin_s) / repeats))

    @property
    def latest_j(self) -> float:
        """The latest reading."""
        return self.total_j[-1] if self.total_j else self.begin_j

    def read(self, at_s: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the joules up to each of some times, like an energy counter."""
        found: npt.NDArray[np.float64] = np.interp(at_s, [self.begin_s, *self.ends_s], [self.begin_j, *self.total_j])
        return found


def with_power_range(summary: Summary, manifest: EngineManifest) -> Summary:
    """Return a predicted summary with the 90 % interval of its watts, or with why an engine's power is unknown.

    The interval is the power model's, at the predicted step times: their own is not in it.
    """
    model = power_model_for(manifest)
    if model is None:
        reason = why_no_power(manifest.gpu, manifest.speculative)
        levels = [level.model_copy(update={"energy_unknown": reason}) for level in summary.levels]
        return summary.model_copy(update={"levels": levels})
    levels = []
    for level in summary.levels:
        energy = level.energy
        if energy is not None:
            low, high = (ratio * energy.power_w for ratio in model.interval)
            energy = energy.model_copy(update={"power_range_w": (low, min(high, model.max_w))})
        levels.append(level.model_copy(update={"energy": energy}))
    return summary.model_copy(update={"levels": levels})
