"""What a run would show: the scenario's users against the batcher on a virtual clock; nothing is measured here.

The same batcher runs behind the emulated server on the wall clock. What a prediction leaves out is everything above
the engine: network, server, tokenizing, client.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from engines.emulator.engine import Batcher, Iteration
from engines.emulator.request import Request
from engines.emulator.scheduler import Sequence
from engines.emulator.settings import batcher_for
from engines.files import MadeBy, Source
from engines.manifest import EngineManifest
from loadtest.records import Level, RequestRecord, RunManifest, Sample, ServerFacts
from loadtest.scenario import Scenario
from loadtest.traffic import ClosedLoop, Turn

SAMPLES_PER_LEVEL = 400
# From a reply's last token to the server seeing the same user's next request. Any value above zero and well below a
# step does: what matters is that the engine has begun its next iteration by then, so that the request waits it out.
TURNAROUND_S = 0.5e-3
_BATCH_SERIES = 'nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="generation_requests"}'


@dataclass(frozen=True, slots=True)
class Prediction:
    """A run that was computed: what a run folder holds, in memory."""

    run: RunManifest
    records: list[RequestRecord]
    samples: list[Sample]


def predict(scenario: Scenario, manifest: EngineManifest, *, made_by: MadeBy, made_from: list[Source]) -> Prediction:
    """Return what a scenario's closed loop would show of an engine; seconds are engine seconds."""
    records: list[RequestRecord] = []
    samples: list[Sample] = []
    levels: list[Level] = []
    began_s, next_id = 0.0, 0
    for index, concurrency in enumerate(scenario.concurrency):
        loop = ClosedLoop(
            concurrency, scenario.lengths.osl, scenario.requests, scenario.warmup_requests, first_id=next_id
        )
        level = _VirtualLevel(batcher_for(manifest), loop, index, scenario.lengths.isl, began_s)
        level.run()
        records += level.records
        samples += level.samples()
        levels.append(level.facts(scenario))
        began_s, next_id = level.now_s, loop.next_id
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


@dataclass(slots=True)
class _Sent:
    """A request on its way."""

    turn: Turn
    user: int
    sent_s: float


@dataclass(slots=True)
class _VirtualLevel:
    """One level on a virtual clock; an idle batcher of its own, as after a pause."""

    batcher: Batcher
    loop: ClosedLoop
    level: int
    prompt_tokens: int
    now_s: float
    records: list[RequestRecord] = field(default_factory=list)
    _begin_s: float = 0.0
    _free: deque[tuple[float, int]] = field(default_factory=deque)  # users, by when their next request arrives
    _on_way: dict[int, _Sent] = field(default_factory=dict)
    _ends_s: list[float] = field(default_factory=list)  # of every iteration, by its index
    _decoding: list[int] = field(default_factory=list)  # sequences in generation, by iteration

    def run(self) -> None:
        """Run the level until its last measured request has ended."""
        self._begin_s = self.now_s
        self._free = deque((self.now_s, user) for user in range(self.loop.concurrency))
        while not self.loop.is_over:
            while self._free and self._free[0][0] <= self.now_s:
                self._send(*self._free.popleft())
            next_s = self._free[0][0] if self._free else math.inf
            iteration = self.batcher.begin_run(self.now_s, next_s)
            if iteration is None:
                self.now_s = next_s
                continue
            self._note_ends(iteration)
            self.now_s = self._ends_s[-1]
            for sequence in self.batcher.advance(iteration):
                self._complete(sequence)
        for number, sent in self._on_way.items():
            self._record(sent, self._times(self.batcher.spans_of(number)), "cancelled")

    def samples(self) -> list[Sample]:
        """Return the batch size on an even grid of instants, as a server's metrics would be sampled."""
        instants = np.linspace(self._begin_s, self.now_s, SAMPLES_PER_LEVEL)
        places = np.searchsorted(self._ends_s, instants).clip(0, len(self._ends_s) - 1)
        return [
            Sample(t_s=float(t), values={_BATCH_SERIES: float(self._decoding[place])})
            for t, place in zip(instants, places, strict=True)
        ]

    def facts(self, scenario: Scenario) -> Level:
        """Return what the level was."""
        return Level(
            concurrency=self.loop.concurrency,
            isl=scenario.lengths.isl,
            osl=scenario.lengths.osl,
            begin_s=self._begin_s,
            measure_s=self._begin_s if self.loop.measure_s is None else self.loop.measure_s,
            end_s=self.now_s,
            complete=True,
        )

    def _send(self, sent_s: float, user: int) -> None:
        turn = self.loop.next_turn(user, sent_s)
        self._on_way[turn.id] = _Sent(turn, user, sent_s)
        self.batcher.submit(Request(turn.id, self.prompt_tokens, turn.output_tokens, sent_s), self.now_s)

    def _note_ends(self, iteration: Iteration) -> None:
        shape, repeats = iteration.shape, iteration.repeats
        if repeats == 1:
            seconds = np.array([iteration.seconds])
        else:
            line = self.batcher.step_time.decode_line(shape.decode_sequences, shape.decode_context_tokens)
            contexts = shape.decode_context_tokens + shape.decode_sequences * np.arange(repeats)
            seconds = line.base_s + line.per_context_token_s * contexts
        self._ends_s += (self.now_s + np.cumsum(seconds)).tolist()
        self._decoding += [shape.decode_sequences] * repeats

    def _complete(self, sequence: Sequence) -> None:
        sent = self._on_way.pop(int(sequence.request.request_id))
        self._record(sent, self._times(sequence.spans), "ok")
        self.loop.note_end(sent.turn, self.now_s)
        self._free.append((self.now_s + TURNAROUND_S, sent.user))

    def _times(self, spans: list[tuple[int, int]]) -> tuple[float, ...]:
        return tuple(end_s for first, last in spans for end_s in self._ends_s[first : last + 1])

    def _record(self, sent: _Sent, times: tuple[float, ...], outcome: Literal["ok", "cancelled"]) -> None:
        self.records.append(
            RequestRecord(
                id=sent.turn.id,
                level=self.level,
                phase=sent.turn.phase,
                scheduled_s=sent.sent_s,
                sent_s=sent.sent_s,
                token_times_s=times,
                done_s=self.now_s,
                prompt_tokens=self.prompt_tokens,
                output_tokens=len(times),
                outcome=outcome,
            )
        )
