"""How far the means of a prediction may be off: as its calibration was on unseen shapes, or as deployments differ."""

from __future__ import annotations

import math
from typing import NamedTuple

from engines.calibration import Calibration, Quantity
from engines.manifest import EngineManifest
from engines.spec import engine_profile_named
from engines.steptime import INTERVAL_SHARE, NORMAL_90, slowed, uncertainty
from loadtest.metrics import Interval, LevelSummary, Summary


class ProfileEnds(NamedTuple):
    """An engine at the fast and the slow end of what its profile allows; 5 % of deployments lie beyond each."""

    fast: EngineManifest
    slow: EngineManifest
    provenance: str


def profile_ends(manifest: EngineManifest, *, alone: bool = False) -> ProfileEnds:
    """Return an engine with step and host times at either end of its profile's spread.

    Queues are simulated with those times, and grow or shrink with them; nothing is laid on what was simulated.

    Args:
        alone: The engine runs without its server.

    Raises:
        ValueError: The engine's step times come from no profile.
    """
    choice = manifest.step_time
    if choice.profile is None:
        raise ValueError("the engine's step times come from no profile")
    found = uncertainty(
        engine_profile_named(choice.profile), precision=manifest.precision.name, load="engine" if alone else "served"
    )
    fast = slowed(choice, step_ratio=found.step_low, host_ratio=found.host_low)
    slow = slowed(choice, step_ratio=found.step_high, host_ratio=found.host_high)
    return ProfileEnds(
        manifest.model_copy(update={"step_time": fast}),
        manifest.model_copy(update={"step_time": slow}),
        found.provenance,
    )


def between(summary: Summary, fast: Summary, slow: Summary) -> Summary:
    """Return a summary whose levels carry the means of the fast and the slow end."""
    levels = []
    for level, low, high in zip(summary.levels, fast.levels, slow.levels, strict=True):
        ends = zip(_means(level).items(), _means(low).values(), _means(high).values(), strict=True)
        intervals = {
            str(name): Interval(share=INTERVAL_SHARE, low=min(mean, a, b), mean=mean, high=max(mean, a, b))
            for (name, mean), a, b in ends
            if mean is not None and a is not None and b is not None
        }
        levels.append(level.model_copy(update={"intervals": intervals}))
    return summary.model_copy(update={"levels": levels})


def with_intervals(summary: Summary, calibration: Calibration) -> Summary:
    """Return a summary whose levels carry how far their means may be off by a calibration's held-out errors."""
    levels = [level.model_copy(update={"intervals": _by_calibration(level, calibration)}) for level in summary.levels]
    return summary.model_copy(update={"levels": levels})


def _by_calibration(level: LevelSummary, calibration: Calibration) -> dict[str, Interval]:
    found = {}
    for name, mean in _means(level).items():
        if mean is not None and name in calibration.log_error:
            factor = math.exp(NORMAL_90 * calibration.log_error[name])
            found[str(name)] = Interval(share=INTERVAL_SHARE, low=mean / factor, mean=mean, high=mean * factor)
    return found


def _means(level: LevelSummary) -> dict[Quantity, float | None]:
    return {
        "tokens_per_s": level.output_tokens_per_s,
        "itl_s": None if level.itl_s is None else level.itl_s.mean,
        "ttft_s": None if level.ttft_s is None else level.ttft_s.mean,
    }
