"""One replica under the demand's traffic in virtual time: windows of one load, each starting idle."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

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


def evened(sample: TrafficSample, share: float) -> TrafficSample:
    """Return the same requests in the same order, with send times moved partway to even spacing."""
    requests = sample.requests
    begin_s, gap_s = requests[0].at_s, (requests[-1].at_s - requests[0].at_s) / max(1, len(requests) - 1)
    moved = tuple(
        each._replace(at_s=each.at_s + share * (begin_s + place * gap_s - each.at_s))
        for place, each in enumerate(requests)
    )
    return replace(sample, requests=moved)
