"""One replica under the demand's traffic in virtual time: windows of one load, each starting idle."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from engines.emulator import batcher_for
from engines.manifest import EngineManifest
from engines.steptime import NONE, PowerModel, Slowdown, StepCost
from loadtest.capacity.simulation.demand_requests import SimRequest
from loadtest.capacity.simulation.observations import Observations
from loadtest.capacity.simulation.traffic_sample import TrafficSample
from loadtest.results import Phase
from loadtest.simulate import Arrivals, Ended, EnergyMeter, Sent, VirtualServer
from loadtest.traffic import Turn

STATE_EVERY = 4  # the KV cache is sampled at one in this many ending requests


def sent_of(sample: TrafficSample) -> list[Sent]:
    """Return a window's requests in the virtual server's format."""
    return [_sent(place, request, sample) for place, request in enumerate(sample.requests)]


def _sent(number: int, request: SimRequest, sample: TrafficSample) -> Sent:
    phase: Phase = "warmup" if request.at_s < sample.measure_s else "measure" if request.at_s < sample.end_s else "fill"
    turn = Turn(number, phase, request.osl, request.class_name or None, max_tokens=request.max_tokens)
    return Sent(turn, request.at_s, request.isl, prefix_hashes=request.prefix_hashes)


def simulate(
    manifest: EngineManifest,
    samples: Sequence[TrafficSample],
    *,
    slowdown: Slowdown = NONE,
    ratios: StepCost | None = None,
    into: Observations | None = None,
    power: PowerModel | None = None,
) -> Observations:
    """Return the observations of one replica under windows of traffic.

    Args:
        ratios: On the parts of a step's cost, in addition to the slowdown.
        into: Observations of earlier windows to add to.
        power: Adds up the energy; None: it is not wanted.
    """
    found = Observations() if into is None else into
    for sample in samples:
        batcher = batcher_for(manifest, ratios=slowdown.parts(ratios))
        meter = None if power is None else EnergyMeter(power)
        host = slowdown.host_of(manifest.step_time)
        collect(VirtualServer(batcher, Arrivals(sent_of(sample)), host, meter=meter), sample, found)
    return found


def collect(server: VirtualServer, sample: TrafficSample, into: Observations) -> None:
    """Run a server until its measured requests have ended, and add them to the observations."""
    into.begin_window(sample)
    measure_s, end_s = sample.measure_s, sample.end_s
    open_requests = sum(measure_s <= each.at_s < end_s for each in sample.requests)
    ended: list[Ended] = []
    lead: list[Ended] = []
    for count, each in enumerate(_run(server, open_requests)):
        phase = each.sent.turn.phase
        if phase == "warmup":
            lead.append(each)
            continue
        if phase == "measure":
            ended.append(each)
        if count % STATE_EVERY == 0:
            into.note_state(server)
    into.add(server, ended, lead)


def _run(server: VirtualServer, open_requests: int) -> Iterator[Ended]:
    """Yield requests as they end, up to the last measured one; later ones only maintain the load."""
    if not open_requests:
        return
    for each in server.run():
        yield each
        open_requests -= each.sent.turn.phase == "measure"
        if not open_requests:
            return


def saturated_per_s(manifest: EngineManifest, sample: TrafficSample, slots: int, slowdown: Slowdown) -> float:
    """Return the requests per second of a replica that always has requests waiting.

    All requests of a window wait from the start. Replies of the first batch are cut to evenly spaced lengths, so that
    its requests end one by one, as later ones do. Requests are counted from the end of the first batch on, until none
    waits. If the window is too short for that, the rate is infinite.

    Args:
        slots: Size of the first batch.
    """
    requests = tuple(
        each._replace(at_s=0.0, osl=max(1, each.osl * (place + 1) // slots) if place < slots else each.osl)
        for place, each in enumerate(sample.requests)
    )
    at_once = replace(sample, requests=requests, measure_s=0.0, end_s=math.inf)
    batcher = batcher_for(manifest, ratios=slowdown.parts())
    server = VirtualServer(batcher, Arrivals(sent_of(at_once)), slowdown.host_of(manifest.step_time))
    ended = [each for each in server.run() if each.outcome == "ok"]
    if not ended:  # none fits the engine, so none is carried
        return math.inf
    left_s = server.left_s
    begun_s, ended_s = left_s[[each.spans[0][0] for each in ended]], left_s[[each.spans[-1][-1] for each in ended]]
    is_first = np.array([each.sent.turn.id < slots for each in ended])
    turned_over_s = float(ended_s[is_first].max(initial=0.0))
    last_begun_s = float(begun_s.max())
    if last_begun_s <= turned_over_s:
        return math.inf
    return int(((ended_s > turned_over_s) & (ended_s <= last_begun_s)).sum()) / (last_begun_s - turned_over_s)


def evened(sample: TrafficSample, share: float) -> TrafficSample:
    """Return the same requests in the same order, with send times moved partway to even spacing."""
    requests = sample.requests
    begin_s, gap_s = requests[0].at_s, (requests[-1].at_s - requests[0].at_s) / max(1, len(requests) - 1)
    moved = tuple(
        each._replace(at_s=each.at_s + share * (begin_s + place * gap_s - each.at_s))
        for place, each in enumerate(requests)
    )
    return replace(sample, requests=moved)
