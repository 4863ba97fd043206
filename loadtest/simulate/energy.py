"""The predicted energy of a simulated run: joules of every iteration, and of the time between them."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from struct import Struct

import numpy as np
import numpy.typing as npt

from engines.emulator import Iteration
from engines.manifest import EngineManifest
from engines.steptime import PowerModel, StepShape, power_model_for, why_no_power
from loadtest.metrics import Summary

_Floats = npt.NDArray[np.float64]
_COLUMNS = 3 + len(StepShape._fields)
_PACKED = Struct(f"{_COLUMNS}d").pack  # a third of the time that `array.extend` takes


@dataclass(slots=True)
class EnergyMeter:
    """Adds up the energy of a replica's iterations; between them its GPUs draw their base power.

    Attributes:
        begin_s: When it starts; `begin_j` is its first reading.
    """

    model: PowerModel
    begin_s: float = 0.0
    begin_j: float = 0.0
    _noted: array[float] = field(default_factory=lambda: array("d"))  # of each run: begin, end, iterations, shape

    def note(self, iteration: Iteration, begin_s: float) -> None:
        """Add an iteration, or a run of decode iterations, that began at a time."""
        self._noted.frombytes(_PACKED(begin_s, iteration.ends_s[-1], iteration.repeats, *iteration.shape))

    @property
    def latest_j(self) -> float:
        """The latest reading."""
        return float(self._readings()[1][-1])

    @property
    def latest_s(self) -> float:
        """When the latest iteration ended."""
        return self._noted[1 - _COLUMNS] if self._noted else self.begin_s

    def read(self, at_s: _Floats) -> _Floats:
        """Return the joules up to each of some times, like an energy counter."""
        found: _Floats = np.interp(at_s, *self._readings())
        return found

    def _readings(self) -> tuple[_Floats, _Floats]:
        """Return the ends of all iterations, or runs of them, and the joules up to each, after the first reading.

        In a run each sequence's context grows by one token a step: its mean shape stands for all of its steps.
        """
        begins_s, ends_s, repeats, *shape = np.frombuffer(self._noted).reshape(-1, _COLUMNS).T
        sequences, context_tokens, *others = shape
        mean = (sequences, context_tokens + sequences * (repeats - 1) // 2, *others)
        readings_s = np.concatenate([[self.begin_s], ends_s])
        idle_j = (begins_s - readings_s[:-1]) * self.model.base_w
        work_j = repeats * self.model.joules_of(mean, (ends_s - begins_s) / repeats, np.minimum)
        total_j = np.cumsum(np.concatenate([[self.begin_j], np.stack([idle_j, work_j], axis=1).ravel()]))
        return readings_s, total_j[::2]


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
            low, high = [ratio * energy.power_w for ratio in model.interval]
            energy = energy.model_copy(update={"power_range_w": (low, min(high, model.max_w))})
        levels.append(level.model_copy(update={"energy": energy}))
    return summary.model_copy(update={"levels": levels})
