"""Replicas over the day: what an autoscaler that looks at the rate, and waits for machines, would keep up."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from engines.files import Strict
from loadtest.capacity.inputs import Autoscaling, Availability
from loadtest.capacity.replica_count import size_for
from loadtest.capacity.simulation import SLOT_S, RateCurve

REPORT_SLOTS = 5  # slots that one point of the report stands for


class Point(Strict):
    """Some minutes of the day.

    Attributes:
        at_h: Hours from midnight, or from the trace's beginning.
        rate_per_s: Highest of these minutes.
        needed: Replicas without spare ones that the rate takes, most of these minutes.
        up: Replicas there, fewest of these minutes.
    """

    at_h: float
    rate_per_s: float
    needed: int
    up: int


class Day(Strict):
    """An autoscaled day.

    Attributes:
        mean_replicas: Over the day, paid for from the moment they are asked for.
        most_replicas: At one time.
        short_minutes: In which fewer were up than the rate takes with its headroom.
        overloaded_minutes: In which they could not have carried the rate at all, headroom and all.
        steepest_h: When rate and replicas were furthest apart.
        is_day: Whether the curve is a whole day.
    """

    mean_replicas: float
    most_replicas: int
    short_minutes: float
    overloaded_minutes: float
    steepest_h: float
    is_day: bool
    points: list[Point]


class Ups(Strict):
    """Replicas that were up, by slot of the curve."""

    up: tuple[int, ...]


def autoscaled(
    curve: RateCurve,
    growth: float,
    replica_per_s: float,
    availability: Availability,
    scaling: Autoscaling,
    *,
    seed: int,
) -> tuple[Day, Ups]:
    """Return a day of an autoscaler, and the replicas up in each slot.

    Every `interval_s` it counts the requests since it last looked, and asks for as many replicas as that rate takes
    with headroom and spare ones; they come `start_up_s` later. It gives replicas back once fewer have been enough for
    `scale_down_after_s`. A day's curve is gone through twice, and the second time is told: no morning begins cold.
    """
    rates = curve.rates_per_s * growth
    rounds = 2 if curve.is_day else 1
    ups, paid = _followed(np.tile(rates, rounds), replica_per_s, availability, scaling, np.random.default_rng(seed))
    ups, paid = ups[-len(rates) :], paid[-len(rates) :]
    needed = np.array([size_for(max(rate, 1e-9), replica_per_s, availability).needed for rate in rates])
    tension = rates / (np.array(ups) * replica_per_s)
    return Day(
        mean_replicas=float(np.mean(paid)),
        most_replicas=int(max(paid)),
        short_minutes=float((needed > np.array(ups)).sum() * SLOT_S / 60),
        overloaded_minutes=float((tension > 1).sum() * SLOT_S / 60),
        steepest_h=float(np.argmax(tension) * SLOT_S / 3600),
        is_day=curve.is_day,
        points=_points(rates.tolist(), needed.tolist(), ups),
    ), Ups(up=tuple(ups))


def _followed(
    rates: np.ndarray, replica_per_s: float, availability: Availability, scaling: Autoscaling, rng: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Return the replicas up, and those paid for, in each slot."""
    start_slots = math.ceil(scaling.start_up_s / SLOT_S)
    every = max(1, round(scaling.interval_s / SLOT_S))
    patience = max(1, math.ceil(scaling.scale_down_after_s / (every * SLOT_S)))
    up = size_for(max(float(rates[0]), 1e-9), replica_per_s, availability).total
    coming: deque[tuple[int, int]] = deque()  # (slot, replicas), in order
    recent: deque[int] = deque(maxlen=patience)
    ups, paid = [], []
    for slot in range(len(rates)):
        while coming and coming[0][0] <= slot:
            up += coming.popleft()[1]
        if slot and slot % every == 0:
            counted = rng.poisson(rates[slot - every : slot].sum() * SLOT_S) / (every * SLOT_S)
            wanted = size_for(max(counted, 1e-9), replica_per_s, availability).total
            recent.append(wanted)
            asked = up + sum(count for _, count in coming)
            if wanted > asked:
                coming.append((slot + start_slots, wanted - asked))
            elif len(recent) == patience and max(recent) < up and not coming:
                up = max(recent)
        ups.append(up)
        paid.append(up + sum(count for _, count in coming))
    return ups, paid


def _points(rates: list[float], needed: list[int], ups: list[int]) -> list[Point]:
    return [
        Point(
            at_h=begin * SLOT_S / 3600,
            rate_per_s=max(rates[begin : begin + REPORT_SLOTS]),
            needed=max(needed[begin : begin + REPORT_SLOTS]),
            up=min(ups[begin : begin + REPORT_SLOTS]),
        )
        for begin in range(0, len(rates), REPORT_SLOTS)
    ]
