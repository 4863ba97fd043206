"""Replica counts over the day for an autoscaler that follows the request rate and waits for machines to start."""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from engines.files import Strict
from loadtest.capacity.inputs import Autoscaling, Availability
from loadtest.capacity.replica_count import size_for
from loadtest.capacity.simulation import SLOT_S, RateCurve

REPORT_SLOTS = 5  # slots of the curve per point of the report


class Point(Strict):
    """A few minutes of the day.

    Attributes:
        at_h: Hours since midnight, or since the start of the trace.
        rate_per_s: Highest rate of these minutes.
        needed: Most replicas that the rate needs in these minutes, without spares.
        up: Fewest replicas running in these minutes.
    """

    at_h: float
    rate_per_s: float
    needed: int
    up: int


class Day(Strict):
    """A day of an autoscaled deployment.

    Attributes:
        mean_replicas: Mean over the day; a replica is paid for from the moment it is requested.
        most_replicas: Largest number at one time.
        short_minutes: Minutes with fewer replicas than the rate needs with headroom.
        overloaded_minutes: Minutes with fewer replicas than the rate needs even without headroom.
        steepest_h: Time of the largest ratio of the rate to the capacity of the running replicas.
        is_day: Whether the curve covers a whole day.
    """

    mean_replicas: float
    most_replicas: int
    short_minutes: float
    overloaded_minutes: float
    steepest_h: float
    is_day: bool
    points: list[Point]


class Ups(Strict):
    """Running replicas in each slot of the curve."""

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
    """Return an autoscaler's day, and the running replicas in each slot.

    Every `interval_s` the autoscaler computes the rate since its last check and requests the replicas that this rate
    needs, with headroom and spares; they are ready `start_up_s` later. It removes replicas once fewer have sufficed for
    `scale_down_after_s`. A whole day is simulated twice and the second pass is reported, so no day starts cold.
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
    """Return the running replicas and the paid replicas in each slot."""
    start_slots = math.ceil(scaling.start_up_s / SLOT_S)
    every = max(1, round(scaling.interval_s / SLOT_S))
    patience = max(1, math.ceil(scaling.scale_down_after_s / (every * SLOT_S)))
    up = size_for(max(float(rates[0]), 1e-9), replica_per_s, availability).total
    coming: deque[tuple[int, int]] = deque()  # (slot, replicas), in order of slots
    recent: deque[int] = deque(maxlen=patience)
    ups, paid = [], []
    for slot in range(len(rates)):
        while coming and coming[0][0] <= slot:
            up += coming.popleft()[1]
        if slot and slot % every == 0:
            counted = rng.poisson(rates[slot - every : slot].sum() * SLOT_S) / (every * SLOT_S)
            wanted = size_for(max(counted, 1e-9), replica_per_s, availability).total
            recent.append(wanted)
            requested = up + sum(count for _, count in coming)
            if wanted > requested:
                coming.append((slot + start_slots, wanted - requested))
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
