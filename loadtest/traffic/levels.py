"""The request sequence of a scenario's levels, independent of sockets and clocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from engines.errors import UserError
from loadtest.results import Level, Phase
from loadtest.scenario import Arrival, Poisson, Process, Scenario, Trace, arrivals_of
from loadtest.traffic.conversations import (
    SAMPLED_CONVERSATIONS,
    ConversationSampler,
    ConversationState,
    LengthStats,
    length_stats_of,
)

FILL_ALLOWANCE = 3  # conversations per user beyond the measured ones: warm-up, and maintaining the load at the end


@dataclass(frozen=True, slots=True)
class LevelPlan:
    """One level of a scenario: a number of users, or an arrival process.

    Attributes:
        rate_per_s: Requests per second of an open loop; for a trace or a changing rate, the mean.
        arrivals: Arrivals of an open loop, in order; empty for a closed loop.
        failed_rows: Rows of a trace skipped because they have no prompt or no reply.
        begun: What each arrival starts.
        isl: Mean prompt tokens of its requests; 0 until counted.
        osl: Mean reply tokens, likewise.
    """

    concurrency: int | None
    rate_per_s: float | None = None
    arrivals: tuple[Arrival, ...] = ()
    failed_rows: int = 0
    begun: Literal["requests", "conversations"] = "requests"
    isl: int = 0
    osl: int = 0

    def played(self, *, begin_s: float, measure_s: float, end_s: float, complete: bool) -> Level:
        """Return the record of the level as it was run; times in engine seconds since the start of the run."""
        return Level(
            concurrency=self.concurrency,
            rate_per_s=self.rate_per_s,
            begun=self.begun,
            failed_rows=self.failed_rows,
            isl=self.isl,
            osl=self.osl,
            begin_s=begin_s,
            measure_s=measure_s,
            end_s=end_s,
            complete=complete,
        )

    def phase_of(self, arrival: Arrival, warmup_ratio: float) -> Phase:
        """Return whether a request of an open loop is measured."""
        return self.phase_at(arrival.at_s, warmup_ratio)

    def phase_at(self, at_s: float, warmup_ratio: float) -> Phase:
        """Return the phase of requests sent at a time of an open loop; after its last arrival, the load decreases."""
        last_s = self.arrivals[-1].at_s
        if at_s < warmup_ratio * last_s:
            return "warmup"
        return "measure" if at_s <= last_s else "fill"

    def limit_s(self, scenario: Scenario, time_scale: float = 1.0) -> float:
        """Return the wall seconds after which the level is ended, complete or not."""
        return (self.arrivals[-1].at_s * time_scale if self.arrivals else 0.0) + scenario.level_timeout_s

    def conversations(self, scenario: Scenario) -> int:
        """Return the number of conversations the level starts; an upper estimate for a closed loop."""
        if self.concurrency is None:
            return len(self.arrivals)
        return scenario.requests_of(self.concurrency) + (scenario.warmup_requests + FILL_ALLOWANCE) * self.concurrency

    def counted(self, scenario: Scenario, sampler: ConversationSampler) -> LevelPlan:
        """Return the level with the mean lengths of its requests, in whole tokens."""
        length_stats = self.length_stats(scenario, sampler)
        return replace(self, isl=round(length_stats.isl), osl=round(length_stats.osl))

    def length_stats(self, scenario: Scenario, sampler: ConversationSampler) -> LengthStats:
        """Return the statistics of the level's requests; estimated from the first ones if there are very many."""
        stated = [arrival for arrival in self.arrivals if arrival.isl is not None and arrival.osl is not None]
        if stated:
            return length_stats_of([each.isl or 0 for each in stated], [each.osl or 0 for each in stated])
        return sampler.at_most(sampler.lengths_of(range(min(SAMPLED_CONVERSATIONS, self.conversations(scenario)))))


def plans_of(scenario: Scenario) -> list[LevelPlan]:
    """Return a scenario's levels with arrivals drawn from its seed; the same for a prediction and a run.

    Raises:
        UserError: A process or a trace has no requests, or too many.
    """
    if scenario.arrivals is not None:
        return [_open_plan(scenario, scenario.arrivals, None)]
    if scenario.rate_per_s is not None:
        rates = scenario.rate_per_s
        return [_open_plan(scenario, Poisson(rate_per_s=r, duration_s=scenario.duration_s), r) for r in rates]
    return [LevelPlan(concurrency) for concurrency in scenario.concurrency]


def _open_plan(scenario: Scenario, process: Process | Trace, rate_per_s: float | None) -> LevelPlan:
    found, failed_rows = arrivals_of(process, rng=np.random.default_rng(scenario.seed), folder=Path())
    begin_s, end_s = found[0].at_s, found[-1].at_s
    if end_s <= begin_s:
        if isinstance(process, Trace):
            raise UserError(
                f"{process.path}: all its requests are at one point in time",
                hint="an open loop needs requests at two times at least",
            )
        raise UserError("the arrivals contain only one point in time", hint="use a longer duration_s or a higher rate")
    mean_per_s = rate_per_s or round((len(found) - 1) / (end_s - begin_s), 4)
    converse = any(kind.conversation for kind in scenario.kinds)
    return LevelPlan(None, mean_per_s, found, failed_rows, "conversations" if converse else "requests")


@dataclass(slots=True)
class Turn:
    """The next request of a user.

    Attributes:
        output_tokens: Reply length: exactly, or at most, as `exact` says.
        class_name: Class of a mix; None where there is one kind of request.
        conversation: Number of the conversation it is a turn of; None of a single request.
        place: Its place in that conversation, from 0.
        state: The state of its conversation; None without conversations.
        max_tokens: Reply tokens asked for at most, where the model is expected to end at `output_tokens`; None: those.
    """

    id: int
    phase: Phase
    output_tokens: int
    class_name: str | None = None
    conversation: int | None = None
    place: int = 0
    exact: bool = True
    state: ConversationState | None = None
    max_tokens: int | None = None

    @property
    def asked_tokens(self) -> int:
        """Requested maximum of reply tokens."""
        return self.output_tokens if self.max_tokens is None else self.max_tokens


def turn_of(state: ConversationState, number: int, phase: Phase, output_tokens: int | None = None) -> Turn:
    """Return the next turn of a conversation as the request with this id."""
    kind = state.kind
    largest = state.exchange.max_tokens or kind.lengths.max_tokens
    return Turn(
        number,
        phase,
        state.exchange.reply_tokens if output_tokens is None else output_tokens,
        kind.name,
        None if kind.conversation is None else state.conversation.number,
        state.place,
        kind.is_exact and largest is None,
        state,
        largest,
    )
