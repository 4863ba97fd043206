"""Prediction intervals of means: from a calibration's held-out errors, or from the spread between deployments."""

from __future__ import annotations

import math
from collections.abc import Callable

from engines.calibration import Calibration, Quantity
from engines.manifest import EngineManifest
from engines.spec import engine_profile_named
from engines.steptime import INTERVAL_SHARE, NONE, Z_95, Slowdown, StepTimeInterval, uncertainty
from loadtest.metrics import Interval, LevelSummary, Summary
from loadtest.scenario import Scenario

SAMPLED_REQUESTS = 1536
MIN_SAVING = 4  # times a sample's duration: the ends of a shorter scenario are simulated completely
SETTLED_AFTER = 10  # times a request's duration: a shorter sample's warm-up, a tenth of it, is shorter than one request
# Least tokens per second of the slow end, relative to the fast end's: without a growing queue, what is in flight at the
# end of a sample is less than the other 5 %.
KEPT_UP_RATIO = 0.95


def profile_ends(manifest: EngineManifest, *, alone: bool = False) -> StepTimeInterval:
    """Return both ends of the spread of an engine's profile.

    Queues are simulated with the times of an end and change accordingly; no factor is applied to simulated latencies.

    Args:
        alone: The engine runs without its server.

    Raises:
        ValueError: The engine's step times do not come from a profile.
    """
    profile = manifest.step_time.profile
    if profile is None:
        raise ValueError("the engine's step times do not come from a profile")
    return uncertainty(
        engine_profile_named(profile), precision=manifest.precision.name, load="engine" if alone else "served"
    )


def with_ends(
    summary: Summary,
    scenario: Scenario,
    ends: StepTimeInterval,
    predicted: Callable[[Scenario, Slowdown], Summary],
) -> Summary:
    """Return a summary whose levels include the means of the fast and the slow end.

    At a steady rate, the ratios of the ends to the middle are the same in the first minutes as in a whole hour: for a
    long open loop the ends are simulated over SAMPLED_REQUESTS, and applied to its means as ratios. If that is
    too short for a steady state, or the slow end does not keep up, so that its queue grows with the duration, they are
    simulated completely.

    Args:
        summary: Of the scenario at the middle of the prediction.
        predicted: Simulates a scenario on the slowed engine.
    """
    sample = sample_of(scenario, summary)
    if sample is not None:
        fast, middle, slow = (predicted(sample, slowdown) for slowdown in (ends.fast, NONE, ends.slow))
        if keeps_up(slow, fast):
            return between(summary, fast, slow, middle=middle)
    return between(summary, predicted(scenario, ends.fast), predicted(scenario, ends.slow))


def sample_of(scenario: Scenario, summary: Summary) -> Scenario | None:
    """Return the beginning of a long open loop with steady rates; None otherwise."""
    rates = scenario.rate_per_s
    if rates is None or scenario.arrivals is not None or any(kind.conversation for kind in scenario.kinds):
        return None
    duration_s = SAMPLED_REQUESTS / min(rates)
    slowest_s = max((level.e2e_s.mean for level in summary.levels if level.e2e_s is not None), default=0.0)
    if MIN_SAVING * duration_s > scenario.duration_s or SETTLED_AFTER * slowest_s > duration_s:
        return None
    return scenario.model_copy(update={"duration_s": duration_s})


def keeps_up(slow: Summary, fast: Summary) -> bool:
    """Whether the slow end produces as many tokens as the fast one, without a growing queue, at every level."""
    return all(
        (low.steady is None or not low.steady.growing)
        and (low.output_tokens_per_s or 0.0) >= KEPT_UP_RATIO * (high.output_tokens_per_s or 0.0)
        for low, high in zip(slow.levels, fast.levels, strict=True)
    )


def between(summary: Summary, fast: Summary, slow: Summary, *, middle: Summary | None = None) -> Summary:
    """Return a summary whose levels include the means of the fast and the slow end.

    Args:
        middle: Of the ends' requests, if they differ from the summary's: the ends are then the summary's means times
            the ratios of the ends to the middle.
    """
    levels = []
    for level, low, high, own in zip(summary.levels, fast.levels, slow.levels, (middle or summary).levels, strict=True):
        intervals = {}
        for name, mean in _means(level).items():
            a, b, base = (_means(each)[name] for each in (low, high, own))
            if mean is None or a is None or b is None or not base:
                continue
            ratio = 1.0 if middle is None else mean / base
            a, b = a * ratio, b * ratio
            intervals[str(name)] = Interval(share=INTERVAL_SHARE, low=min(mean, a, b), mean=mean, high=max(mean, a, b))
        levels.append(level.model_copy(update={"intervals": intervals}))
    return summary.model_copy(update={"levels": levels})


def with_intervals(summary: Summary, calibration: Calibration) -> Summary:
    """Return a summary whose levels include prediction intervals from a calibration's held-out errors."""
    levels = [level.model_copy(update={"intervals": _by_calibration(level, calibration)}) for level in summary.levels]
    return summary.model_copy(update={"levels": levels})


def _by_calibration(level: LevelSummary, calibration: Calibration) -> dict[str, Interval]:
    found = {}
    for name, mean in _means(level).items():
        if mean is not None and name in calibration.log_error:
            factor = math.exp(Z_95 * calibration.log_error[name])
            found[str(name)] = Interval(share=INTERVAL_SHARE, low=mean / factor, mean=mean, high=mean * factor)
    return found


def _means(level: LevelSummary) -> dict[Quantity, float | None]:
    return {
        "tokens_per_s": level.output_tokens_per_s,
        "itl_s": None if level.itl_s is None else level.itl_s.mean,
        "ttft_s": None if level.ttft_s is None else level.ttft_s.mean,
    }
