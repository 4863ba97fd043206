"""Control laws compared by the minutes in which they miss an objective and by the GPU hours they pay for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from engines.autoscaling import (
    DEFAULT_DOWN,
    DEFAULT_UP,
    ColdStart,
    Policy,
    ScalingLaw,
    ScalingRules,
    Signal,
)
from engines.files import Strict
from loadtest.capacity.autoscaling.fluid import Followed, follow, step_s_of
from loadtest.capacity.autoscaling.replay import Replayed
from loadtest.capacity.autoscaling.response import Floats, ReplicaResponse
from loadtest.capacity.simulation.rate_curve import MINUTE_S

SHARES = (0.3, 0.5, 0.7)  # of the signal at the load that a replica carries: the targets tried
QUEUE_SHARES = (0.02, 0.05, 0.1)  # of the slots: a replica within its objectives has no long queue
MAX_RATIO = 2  # of the replicas of the fixed fleet: the laws' maximum
SURGE_MINUTES, CALM_MINUTES, SURGES = 15, 45, 4
EQUAL_MINUTES = 1  # laws whose missed minutes differ by no more are ranked by their GPU hours
# A replica that goes drains for minutes and comes back only after a cold start: be slow to send it away.
STEADY_UP = ScalingRules(stabilization_s=0, policies=(Policy(type="Pods", value=2, period_s=60),))
STEADY_DOWN = ScalingRules(stabilization_s=600, policies=(Policy(type="Pods", value=1, period_s=300),))
SIGNALS: tuple[Signal, ...] = ("in_flight", "queue", "kv_used", "ttft_p95")


class LawResult(Strict):
    """A law's day, and its surges.

    Attributes:
        day_missed_minutes: Minutes of the day (or trace) in which an objective was missed; `surge_missed_minutes` of
            the surges.
        gpu_hours: Of the day: from a replica's request to the end of its last request.
        mean_replicas: Mean of those paid for, over the day; `max_replicas` is their largest number.
    """

    law: ScalingLaw
    day_missed_minutes: int
    surge_missed_minutes: int
    gpu_hours: float
    mean_replicas: float
    max_replicas: int

    @property
    def missed_minutes(self) -> int:
        """Minutes of the day and of the surges together."""
        return self.day_missed_minutes + self.surge_missed_minutes


class CheckedLaw(Strict):
    """The recommended law request by request, over the minutes of the day in which it is tried most.

    Attributes:
        begin_h: Begin of these minutes.
        fluid_missed: What the fluid simulation says of the same minutes; likewise `fluid_up`, its replicas.
    """

    begin_h: float
    replayed: Replayed
    fluid_missed: tuple[bool, ...]
    fluid_up: tuple[int, ...]


class ScalingComparison(Strict):
    """Control laws over the demand's day and over surges.

    Attributes:
        fixed: The planned replicas without an autoscaler.
        laws: By missed minutes, then by GPU hours.
        best: Index of the recommended law.
        surge_per_s: Rate of a surge, and `calm_per_s` between surges.
        up: Replicas of the recommended law, fewest of each minute of the day.
        check: None: not replayed.
    """

    response: ReplicaResponse
    cold_start: ColdStart
    fixed: LawResult
    laws: tuple[LawResult, ...]
    best: int
    surge_per_s: float
    calm_per_s: float
    seeds: tuple[int, ...]
    minutes: int
    up: tuple[int, ...]
    check: CheckedLaw | None = None

    @property
    def chosen(self) -> LawResult:
        """The recommended law."""
        return self.laws[self.best]

    @property
    def pays(self) -> bool:
        """Whether the recommended law takes fewer GPU hours than the fixed replicas, or misses fewer minutes."""
        chosen, fixed = self.chosen, self.fixed
        return chosen.gpu_hours < fixed.gpu_hours or chosen.missed_minutes + EQUAL_MINUTES < fixed.missed_minutes


class ScalingInput(NamedTuple):
    """What laws are compared for.

    Attributes:
        rates_per_s: The planned day by minute, grown to the horizon.
        peak_per_s: The planned peak: the rate of a surge.
        replicas: Of the fixed fleet.
        min_replicas: The smallest number of replicas that survives the planned losses.
        max_replicas: Allowed by the demand's limits.
        gpus: Of each replica.
        sync_s: Time between two evaluations of a law.
    """

    rates_per_s: tuple[float, ...]
    peak_per_s: float
    response: ReplicaResponse
    cold_start: ColdStart
    replicas: int
    min_replicas: int
    max_replicas: int
    gpus: int
    seed: int
    sync_s: float = 15.0


def compare_laws(of: ScalingInput) -> tuple[ScalingComparison, Followed]:
    """Return all laws compared, and what the recommended one did over the day."""
    first = _laws(of)
    fixed = first[0].model_copy(update={"min_replicas": of.replicas, "max_replicas": of.replicas})
    step_s = step_s_of(fixed)
    day = _arrivals(of.rates_per_s, step_s, np.random.default_rng([of.seed, 1]))
    calm_per_s = float(np.mean(of.rates_per_s))
    cycle = [calm_per_s] * CALM_MINUTES + [of.peak_per_s] * SURGE_MINUTES
    surges = _arrivals(cycle * SURGES, step_s, np.random.default_rng([of.seed, 2]))
    *results, (fixed_result, _) = _results([*first, fixed], day, surges, of)
    best_targets = [
        _best_of([one for one in results if one[0].law.signal == signal])[0].law
        for signal in dict.fromkeys(law.signal for law in first)
    ]
    steady: dict[str, object] = {"up": STEADY_UP, "down": STEADY_DOWN}
    keda: dict[str, object] = {"controller": "keda"}
    others = [law.model_copy(update=changed) for law in best_targets for changed in (steady, keda, {**steady, **keda})]
    results += _results(others, day, surges, of)
    ordered = sorted(results, key=lambda one: (one[0].missed_minutes, one[0].gpu_hours))
    best = _best_of(ordered)
    return ScalingComparison(
        response=of.response,
        cold_start=of.cold_start,
        fixed=fixed_result,
        laws=tuple(one[0] for one in ordered),
        best=ordered.index(best),
        surge_per_s=of.peak_per_s,
        calm_per_s=calm_per_s,
        seeds=(of.seed,),
        minutes=len(of.rates_per_s),
        up=tuple(best[1].up_by_minute.min(axis=1).tolist()),
    ), best[1]


def _arrivals(rates_per_s: Sequence[float], step_s: float, rng: np.random.Generator) -> Floats:
    """Return Poisson arrivals per second, by step of the simulation; the rates are by minute."""
    means = np.repeat(np.asarray(rates_per_s, dtype=np.float64), round(MINUTE_S / step_s)) * step_s
    return rng.poisson(means).astype(np.float64) / step_s


def _laws(of: ScalingInput) -> list[ScalingLaw]:
    """Return each signal with each target, by Pods metrics, with the API's default limits."""
    response = of.response
    carried = np.array(response.carried_per_s)
    at = response.in_flight_at(carried)
    targets: dict[Signal, list[float]] = {
        "in_flight": [max(1, round(share * float(at))) for share in SHARES],
        "queue": [max(1, round(share * response.slots)) for share in QUEUE_SHARES],
        "kv_used": [max(0.001, round(share * float(response.kv_at(at)), 3)) for share in SHARES],
        "ttft_p95": [round(share * response.ttft_limit_s, 3) for share in SHARES] if response.ttft_limit_s else [],
    }
    lower = min(of.min_replicas, of.max_replicas)
    upper = max(lower, min(of.max_replicas, MAX_RATIO * of.replicas))
    return [
        ScalingLaw(
            controller="hpa", signal=signal, target=target, min_replicas=lower,
            max_replicas=upper, up=DEFAULT_UP, down=DEFAULT_DOWN, sync_s=of.sync_s,
        )
        for signal in SIGNALS for target in dict.fromkeys(targets[signal])  # small ones round to the same
    ]  # fmt: skip


def _best_of(results: Sequence[tuple[LawResult, Followed]]) -> tuple[LawResult, Followed]:
    """Return the law with the fewest GPU hours among those that miss as few minutes as any."""
    fewest = min(one[0].missed_minutes for one in results)
    among = [one for one in results if one[0].missed_minutes <= fewest + EQUAL_MINUTES]
    return min(among, key=lambda one: one[0].gpu_hours)


def _results(
    laws: Sequence[ScalingLaw], day: Floats, surges: Floats, of: ScalingInput
) -> list[tuple[LawResult, Followed]]:
    days = follow(laws, day, of.response, of.cold_start, begin_with=of.replicas)
    bursts = follow(laws, surges, of.response, of.cold_start, begin_with=of.replicas)
    return [
        (
            LawResult(
                law=law, day_missed_minutes=whole.missed_minutes, surge_missed_minutes=burst.missed_minutes,
                gpu_hours=round(whole.replica_hours * of.gpus, 3), mean_replicas=round(float(np.mean(whole.paid)), 3),
                max_replicas=whole.largest,
            ),
            whole,
        )
        for law, whole, burst in zip(laws, days, bursts, strict=True)
    ]  # fmt: skip


def hardest_minutes(followed: Followed, rates_per_s: Sequence[float], carried_per_s: float, minutes: int) -> int:
    """Return the first of the minutes in which a law's replicas are loaded most, relative to what they carry."""
    up = followed.up_by_minute.min(axis=1)
    tension = np.asarray(rates_per_s) / (np.maximum(up, 1) * carried_per_s)
    return max(0, min(int(np.argmax(tension)) - minutes // 2, len(up) - minutes))
