"""Predicts a run: a scenario's load against the batcher on a virtual clock.

Without a calibration or an engine profile, everything above the engine is omitted: network, server, tokenization,
client. With one, host times are included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines.calibration import Calibration, LoadGenerator
from engines.emulator import batcher_for
from engines.errors import UserError
from engines.files import MadeBy, Source, write_json
from engines.manifest import EngineManifest
from engines.outputs import whole_folder
from engines.spec import Factors
from engines.steptime import NONE, Slowdown, power_model_for
from loadtest.results import (
    REQUESTS_NAME,
    RUN_NAME,
    SAMPLES_NAME,
    Columns,
    Level,
    RequestRecord,
    RunManifest,
    Sample,
    ServerFacts,
)
from loadtest.scenario import Scenario, Trace
from loadtest.simulate.energy import EnergyMeter
from loadtest.simulate.requests import SimulatedRequests, record_lines
from loadtest.simulate.virtual_server import Arrivals, Contents, Sent, Traffic, Users, VirtualServer
from loadtest.traffic import ConversationSampler, LevelPlan, Rows, closed_loop, open_loop, plans_of, turn_of

SAMPLES_PER_LEVEL = 400
_BATCH_SERIES = 'nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="generation_requests"}'
_ENERGY_SERIES = "modelled_gpu_energy_joules_total"
_COUNT_SERIES = 'nv_trt_llm_general_metrics{general_type="iteration_counter"}'


@dataclass(frozen=True)
class Prediction:
    """A predicted run in memory, with the content of a run folder."""

    run: RunManifest
    columns: Columns
    samples: list[Sample]

    @cached_property
    def records(self) -> list[RequestRecord]:
        """The individual requests, with every token's time."""
        return [RequestRecord.model_validate_json(line) for line in record_lines(self.columns)]


def predict(
    scenario: Scenario,
    manifest: EngineManifest,
    *,
    made_by: MadeBy,
    made_from: list[Source],
    rows: Mapping[str, Rows] | None = None,
    queued: bool = False,
    slowdown: Slowdown = NONE,
) -> Prediction:
    """Predict a scenario's results on an engine, in engine seconds.

    A free reply is assumed to have its maximum length.

    Args:
        rows: By prompt file, its token counts; see `conversations.ConversationSampler`.
        queued: The users of a level send one request each, all at once, and no more.
        slowdown: An end of the prediction's interval.
    """
    sampler = ConversationSampler(scenario, rows)
    contents = _contents(scenario, manifest, sampler)
    requests = SimulatedRequests()
    samples: list[Sample] = []
    levels: list[Level] = []
    began_s, next_id = 0.0, 0
    host, ratios = slowdown.host_of(manifest.step_time), slowdown.parts()
    power, joules = power_model_for(manifest), 0.0
    for index, plan in enumerate([plan.counted(scenario, sampler) for plan in plans_of(scenario)]):
        start = _LevelStart(index, began_s, next_id)
        traffic = (
            _queue(plan, sampler, contents, start) if queued else _traffic(scenario, plan, sampler, contents, start)
        )
        meter = None if power is None else EnergyMeter(power, began_s, joules)
        server = VirtualServer(batcher_for(manifest, ratios=ratios), traffic, host, now_s=began_s, meter=meter)
        requests.begin_level()
        for ended in server.run():
            requests.add(ended, index, server.now_s)
        requests.end_level(server.left_s)
        joules = joules if meter is None else meter.latest_j
        samples += _samples(server)
        levels.append(
            plan.played(
                begin_s=began_s,
                measure_s=requests.measure_s if math.isfinite(requests.measure_s) else began_s,
                end_s=server.now_s,
                complete=True,
            )
        )
        began_s, next_id = server.now_s, 1 + (requests.last_id if requests.last_id >= 0 else next_id)
    engine = manifest.title
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
    return Prediction(run, requests.columns(), samples)


def write_prediction(found: Prediction, out: Path, *, force: bool) -> None:
    """Write a run folder like run-load's, marked as predicted.

    Raises:
        UserError: `out` is not empty and `force` is not set, or it may not be replaced.
    """
    with whole_folder(out, made_by=found.run.made_by, force=force) as folder:
        write_json(folder / RUN_NAME, found.run)
        _write_lines(folder / REQUESTS_NAME, record_lines(found.columns))
        _write_lines(folder / SAMPLES_NAME, (sample.model_dump_json() for sample in found.samples))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def calibrated(manifest: EngineManifest, calibration: Calibration, sha256: str) -> EngineManifest:
    """Return an engine's manifest with the parameters of a calibration."""
    factors = _with_drafting(calibration.factors, manifest.step_time.factors)
    choice = calibration.step_time(sha256).model_copy(update={"factors": factors})
    blocks = max(1, round(manifest.kv_cache.blocks * calibration.engine.usable_kv_ratio))
    cache = manifest.kv_cache.model_copy(update={"blocks": blocks})
    return manifest.model_copy(update={"step_time": choice, "kv_cache": cache})


def _with_drafting(factors: Factors, prior: Factors | None) -> Factors:
    """Return calibrated factors with the prior's times of drafting, which a calibration does not fit."""
    if prior is None:
        return factors
    names = ("draft_pass_s", "verify_s", "draft_prompt_s", "tree_s")
    return factors.model_copy(update={name: getattr(prior, name) for name in names})


def like(scenario: Scenario, generator: LoadGenerator) -> Scenario:
    """Return a closed-loop scenario that sends like the load generator of a calibration's points."""
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


def at_once(scenario: Scenario) -> Scenario:
    """Return a scenario whose levels are static batches: all requests together, one time, all measured.

    Raises:
        UserError: The scenario is an open loop.
    """
    if scenario.is_open:
        raise UserError("a static batch has no arrivals", hint="give its sizes with --concurrency 1,8,64")
    changed = {"warmup_requests": 0, "start": "together", "requests": 1, "requests_per_user": 1, "window_s": 0.0}
    return scenario.model_copy(update=changed)


def bare(manifest: EngineManifest, scenario: Scenario) -> EngineManifest:
    """Return the engine alone, with room for the scenario's whole largest batch and its prompts in one iteration."""
    largest = max(scenario.concurrency)
    sampler = ConversationSampler(scenario)
    drawn = [sampler.begin(number) for number in range(largest)]
    longest = max(each.prompt_tokens + each.exchange.reply_tokens for each in drawn)
    limits = manifest.limits.model_copy(
        update={
            "max_batch_size": max(manifest.limits.max_batch_size, largest),
            "max_num_tokens": max(manifest.limits.max_num_tokens, sum(each.prompt_tokens for each in drawn)),
        }
    )
    needed = -(-longest // manifest.kv_cache.tokens_per_block) * largest
    cache = manifest.kv_cache.model_copy(update={"blocks": max(manifest.kv_cache.blocks, needed)})
    choice = manifest.step_time.model_copy(update={"host": None})
    return manifest.model_copy(update={"limits": limits, "kv_cache": cache, "step_time": choice})


class _LevelStart(NamedTuple):
    """Number of a level, its begin on the virtual clock, and the id of its first request."""

    level: int
    begin_s: float
    first_id: int


def _traffic(
    scenario: Scenario, plan: LevelPlan, sampler: ConversationSampler, contents: Contents, start: _LevelStart
) -> Traffic:
    """Return the traffic of a level that starts now."""
    level, begin_s, first_id = start
    if plan.concurrency is not None:
        loop = closed_loop(
            scenario,
            plan.concurrency,
            first_id=first_id,
            begin_conversation=lambda number: sampler.begin(number, level),
        )
        return Users(loop, begin_s, contents)
    opened = open_loop(scenario, plan, sampler, level=level, first_id=first_id)
    requests = (
        contents.sent(opened.turn(place), begin_s + arrival.at_s) for place, arrival in enumerate(plan.arrivals)
    )

    def follow(sent: Sent, ended_s: float, ok: bool) -> Sent | None:
        found = opened.follow(sent.turn, ended_s - begin_s, sent.turn.output_tokens if ok else None)
        return None if found is None else contents.sent(found[1], begin_s + found[0])

    return Arrivals(requests, follow)


def _queue(plan: LevelPlan, sampler: ConversationSampler, contents: Contents, start: _LevelStart) -> Traffic:
    """Return a level's requests, one per user, all sent at its start."""
    states = (sampler.begin(number, start.level) for number in range(plan.concurrency or 0))
    turns = (turn_of(state, start.first_id + number, "measure") for number, state in enumerate(states))
    return Arrivals(contents.sent(turn, start.begin_s) for turn in turns)


def _contents(scenario: Scenario, manifest: EngineManifest, sampler: ConversationSampler) -> Contents:
    """Return how requests' KV blocks are identified; not at all if the engine can never reuse one."""
    can_find = manifest.runtime.kv_reuse and (sampler.shares_blocks or isinstance(scenario.arrivals, Trace))
    return Contents(manifest.kv_cache.tokens_per_block if can_find else None)


def _samples(server: VirtualServer) -> list[Sample]:
    """Return batch size and iterations on a regular time grid, as a server's metrics would be sampled."""
    left_s, decoding = server.left_s, server.decoding
    if not len(left_s):
        return []
    instants = np.linspace(server.begin_s, server.now_s, SAMPLES_PER_LEVEL)
    places = np.searchsorted(left_s, instants).clip(0, len(left_s) - 1)
    samples = [
        Sample(t_s=float(t), values={_BATCH_SERIES: float(decoding[place]), _COUNT_SERIES: float(place)})
        for t, place in zip(instants, places, strict=True)
    ]
    if server.meter is None:
        return samples
    return [
        sample.model_copy(update={"values": {**sample.values, _ENERGY_SERIES: joules}})
        for sample, joules in zip(samples, server.meter.read(instants).tolist(), strict=True)
    ]
