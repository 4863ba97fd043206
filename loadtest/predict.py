"""What a run would show: a scenario's load against the batcher on a virtual clock; nothing is measured here.

Without a calibration everything above the engine is left out: network, server, tokenizing, client. With one, the host's
share is in, and the means carry an interval as wide as the calibration was off on what it had not seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.calibration import Calibration, LoadGenerator, Quantity
from engines.emulator.settings import batcher_for
from engines.files import MadeBy, Source
from engines.manifest import EngineManifest, StepTimeChoice
from engines.spec.deployment import Host
from loadtest.arrivals import HASH_BLOCK_TOKENS, Poisson, Process, Trace, arrivals_of
from loadtest.metrics import Interval, LevelSummary, Summary
from loadtest.records import Level, Phase, RequestRecord, RunManifest, Sample, ServerFacts
from loadtest.scenario import Scenario
from loadtest.traffic import ClosedLoop, Turn
from loadtest.virtual import Arrivals, Ended, Sent, Traffic, Users, VirtualServer

SAMPLES_PER_LEVEL = 400
INTERVAL_SHARE = 0.9
_NORMAL_90 = 1.645  # standard deviations either side that hold nine tenths of a normal distribution
_BATCH_SERIES = 'nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="generation_requests"}'


@dataclass(frozen=True, slots=True)
class Prediction:
    """A run that was computed: what a run folder holds, in memory."""

    run: RunManifest
    records: list[RequestRecord]
    samples: list[Sample]


def predict(scenario: Scenario, manifest: EngineManifest, *, made_by: MadeBy, made_from: list[Source]) -> Prediction:
    """Return what a scenario would show of an engine; seconds are engine seconds."""
    records: list[RequestRecord] = []
    samples: list[Sample] = []
    levels: list[Level] = []
    began_s, next_id = 0.0, 0
    host = manifest.step_time.host or Host()
    for index, (level, traffic) in enumerate(_levels(scenario, manifest.kv_cache.tokens_per_block)):
        shifted = traffic(began_s, next_id)
        server = VirtualServer(batcher_for(manifest), shifted, host, now_s=began_s)
        records += [_record(server, ended, index) for ended in server.run()]
        samples += _samples(server)
        measured = [record for record in records if record.level == index and record.phase == "measure"]
        levels.append(
            level.model_copy(
                update={
                    "begin_s": began_s,
                    "rate_per_s": _offered_per_s(traffic, shifted),
                    "measure_s": min((record.sent_s for record in measured), default=began_s),
                    "end_s": server.now_s,
                }
            )
        )
        began_s, next_id = server.now_s, len(records)
    engine = f"{manifest.model.name} {manifest.precision.name} on {manifest.gpu.name}"
    facts = ServerFacts(
        url="-", protocol="-", model="tensorrt_llm", triton_version="-", emulated=False, time_scale=1.0, engine=engine
    )
    run = RunManifest(
        made_by=made_by,
        made_from=made_from,
        kind="predicted",
        time_scale=1.0,
        server=facts,
        scenario=scenario,
        levels=levels,
    )
    return Prediction(run, records, samples)


def calibrated(manifest: EngineManifest, calibration: Calibration, sha256: str) -> EngineManifest:
    """Return an engine's manifest with what a calibration found of its deployment."""
    choice = StepTimeChoice(
        source=calibration.source, factors=calibration.factors, host=calibration.host, calibration=sha256
    )
    blocks = max(1, round(manifest.kv_cache.blocks * calibration.engine.usable_kv_ratio))
    cache = manifest.kv_cache.model_copy(update={"blocks": blocks})
    return manifest.model_copy(update={"step_time": choice, "kv_cache": cache})


def like(scenario: Scenario, generator: LoadGenerator) -> Scenario:
    """Return a closed-loop scenario that sends as the generator of a calibration's points did."""
    if generator.start == "staggered" or scenario.is_open:
        return scenario
    return scenario.model_copy(
        update={
            "warmup_requests": 1,
            "start": "together",
            "requests": 1,
            "requests_per_user": generator.rounds,
            "window_s": generator.window_s,
        }
    )


def with_intervals(summary: Summary, calibration: Calibration) -> Summary:
    """Return a summary whose levels carry how far their means may be off."""
    levels = [level.model_copy(update={"intervals": _intervals(level, calibration)}) for level in summary.levels]
    return summary.model_copy(update={"levels": levels})


def _intervals(level: LevelSummary, calibration: Calibration) -> dict[str, Interval]:
    means: dict[Quantity, float | None] = {
        "tokens_per_s": level.output_tokens_per_s,
        "itl_s": None if level.itl_s is None else level.itl_s.mean,
        "ttft_s": None if level.ttft_s is None else level.ttft_s.mean,
    }
    found = {}
    for name, mean in means.items():
        if mean is not None and name in calibration.log_error:
            factor = math.exp(_NORMAL_90 * calibration.log_error[name])
            found[str(name)] = Interval(share=INTERVAL_SHARE, low=mean / factor, mean=mean, high=mean * factor)
    return found


@dataclass(frozen=True, slots=True)
class _Closed:
    """A level's users, once it is known when it begins."""

    scenario: Scenario
    concurrency: int

    def __call__(self, begin_s: float, first_id: int) -> Traffic:
        scenario = self.scenario
        loop = ClosedLoop(
            self.concurrency,
            scenario.lengths.osl,
            max(scenario.requests, scenario.requests_per_user * self.concurrency),
            scenario.warmup_requests,
            first_id=first_id,
            window_s=scenario.window_s,
            staggered=scenario.start == "staggered",
        )
        return Users(loop, scenario.lengths.isl, begin_s)


@dataclass(frozen=True, slots=True)
class _Open:
    """A level's arrivals, once it is known when it begins."""

    scenario: Scenario
    process: Process | Trace
    tokens_per_block: int

    def __call__(self, begin_s: float, first_id: int) -> Traffic:
        scenario = self.scenario
        rng = np.random.default_rng(scenario.seed)
        found = arrivals_of(self.process, rng=rng, folder=Path()).arrivals
        measured_from_s = scenario.warmup_ratio * found[-1].at_s
        lengths = scenario.lengths
        return Arrivals(
            [
                Sent(
                    Turn(first_id + place, _phase(each.at_s, measured_from_s), each.osl or lengths.osl),
                    begin_s + each.at_s,
                    each.isl or lengths.isl,
                    prefix_hashes=_block_hashes(each.prefix_hashes, self.tokens_per_block),
                )
                for place, each in enumerate(found)
            ]
        )


def _offered_per_s(asked: _Closed | _Open, traffic: Traffic) -> float | None:
    """Return the rate an open loop sent at: as asked for where it is one number, else what its arrivals come to."""
    if not isinstance(asked, _Open) or not isinstance(traffic, Arrivals):
        return None
    if isinstance(asked.process, Poisson):
        return asked.process.rate_per_s
    first, last = traffic.requests[0].sent_s, traffic.requests[-1].sent_s
    return round((len(traffic.requests) - 1) / (last - first), 4) if last > first else None


def _phase(at_s: float, measured_from_s: float) -> Phase:
    return "warmup" if at_s < measured_from_s else "measure"


def _block_hashes(hashes: tuple[int, ...], tokens_per_block: int) -> tuple[int, ...]:
    """Return a trace's hashes, each of 512 tokens, as hashes of the engine's smaller blocks."""
    each = HASH_BLOCK_TOKENS // tokens_per_block
    return tuple(content * each + place for content in hashes for place in range(each))


def _levels(scenario: Scenario, tokens_per_block: int) -> Iterator[tuple[Level, _Closed | _Open]]:
    lengths = scenario.lengths
    blank = Level(concurrency=1, isl=lengths.isl, osl=lengths.osl, begin_s=0, measure_s=0, end_s=0, complete=True)
    if scenario.arrivals is not None:
        yield blank.model_copy(update={"concurrency": None}), _Open(scenario, scenario.arrivals, tokens_per_block)
    elif scenario.rate_per_s is not None:
        for rate in scenario.rate_per_s:
            process = Poisson(rate_per_s=rate, duration_s=scenario.duration_s)
            level = blank.model_copy(update={"concurrency": None, "rate_per_s": rate})
            yield level, _Open(scenario, process, tokens_per_block)
    else:
        for concurrency in scenario.concurrency:
            yield blank.model_copy(update={"concurrency": concurrency}), _Closed(scenario, concurrency)


def _record(server: VirtualServer, ended: Ended, level: int) -> RequestRecord:
    times_s = server.token_times_s(ended)
    sent = ended.sent
    return RequestRecord(
        id=sent.turn.id,
        level=level,
        phase=sent.turn.phase,
        scheduled_s=sent.sent_s,
        sent_s=sent.sent_s,
        token_times_s=times_s,
        done_s=times_s[-1] if ended.outcome == "ok" else server.now_s,
        prompt_tokens=sent.prompt_tokens,
        output_tokens=len(times_s),
        outcome=ended.outcome,
        error=ended.cause,
    )


def _samples(server: VirtualServer) -> list[Sample]:
    """Return the batch size on an even grid of instants, as a server's metrics would be sampled."""
    left_s, decoding = server.left_s, server.decoding
    if not len(left_s):
        return []
    instants = np.linspace(server.begin_s, server.now_s, SAMPLES_PER_LEVEL)
    places = np.searchsorted(left_s, instants).clip(0, len(left_s) - 1)
    return [
        Sample(t_s=float(t), values={_BATCH_SERIES: float(decoding[place])})
        for t, place in zip(instants, places, strict=True)
    ]
