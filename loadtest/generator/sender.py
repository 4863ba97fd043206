"""Sends requests: the state shared by a load generator's users, one request, and a level."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gevent
import gevent.socket
from pydantic_core import to_json

from loadtest.client import Connection, ServerConnections, UnreachableError, whole_microseconds
from loadtest.client.protocols import protocol_for
from loadtest.client.protocols.base import Reply, RequestSpec
from loadtest.generator.journal import FLUSH_S, Journal
from loadtest.generator.plan import GeneratorPlan
from loadtest.generator.progress import LiveStats
from loadtest.results import RequestRecord
from loadtest.traffic import (
    ClosedLoop,
    ConversationSampler,
    ConversationState,
    LevelPlan,
    Lookahead,
    OpenLoop,
    Prompt,
    PromptMaker,
    Turn,
)

PROBE_S = 0.25  # interval of checks for a server that went away
OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
NO_MORE_FILES = "no more connections can be opened: raise the limit of open files (ulimit -n), or lower the load"
TICK_S = 0.05  # interval of the generator's own timer: it is timed, and is when a level is found to be over
RECORDED_AT_ONCE = 16  # ended requests: together they take less time than apart, and delay what is due meanwhile


class SenderState:
    """State shared by the users of a run: plan, prompts, current level, journal.

    Args:
        worker: Index of this process among `workers`; each has its own users, or sends every `workers`-th arrival.
        watch: Live statistics of records; None if another process keeps them.
    """

    def __init__(
        self,
        plan: GeneratorPlan,
        journal: Journal,
        *,
        worker: int = 0,
        workers: int = 1,
        watch: LiveStats | None = None,
    ) -> None:
        self.plan = plan
        self.maker = PromptMaker(plan.scenario, Path(plan.prompts))
        self.sampler = ConversationSampler(plan.scenario, self.maker.rows)
        self.ahead = Lookahead(self.sampler, self.maker, 0)
        self.journal = journal
        self.worker, self.workers = worker, workers
        self.watch = watch
        self.began_monotonic_s = plan.began_monotonic_s
        self.loop = ClosedLoop(1, self.begin_conversation, 1, 0, 0)
        self.opened: OpenLoop | None = None
        self.level = 0
        self.level_plan = LevelPlan(None)
        self.open_began_s = 0.0
        self.user_numbers: Iterator[int] = iter(())
        self.is_over = False  # no user starts another request
        self.suffices = False  # results are conclusive: the level ends with the requests that have ended
        self.is_out_of_time = False  # the level reached its time limit with measured requests in flight
        self.stopped: str | None = None
        self.spare: list[Connection] = []  # idle connections of an open loop
        scenario = plan.scenario
        self.connections = ServerConnections(
            plan.endpoint,
            protocol_for(plan.endpoint, scenario.model, environment=os.environ, extra=scenario.extra_body),
            silence_s=scenario.request_timeout_s,
            reply_s=scenario.reply_timeout_s,
            began_s=self.began_monotonic_s,
        )
        self._away: tuple[float, str] | None = None
        self._away_s = self._asked_s = 0.0
        self._ended: list[Callable[[], dict[str, Any]]] = []  # return the fields of records to be written
        self._recorded_s = 0.0

    def now_s(self) -> float:
        """Return seconds since the start of the run, on the same clock as the monitor."""
        return time.monotonic() - self.began_monotonic_s

    def begin_conversation(self, number: int) -> ConversationState:
        """Start a conversation of the current level."""
        return self.ahead.begin(number)

    def note_sent(self, turn: Turn, prompt: Prompt, scheduled_s: float) -> None:
        """Record a request as in flight."""
        sent_s = round(self.now_s(), 6)
        if_lost = {
            "id": turn.id,
            "level": self.level,
            "phase": turn.phase,
            "scheduled_s": scheduled_s,
            "sent_s": sent_s,
            "token_times_s": (),
            "done_s": sent_s,
            "prompt_tokens": prompt.tokens,
            "output_tokens": 0,
            "outcome": "lost",
            "error": "in flight in a worker that was lost",
            "asked_tokens": turn.output_tokens if turn.exact else None,
            "class_name": turn.class_name,
            "conversation": turn.conversation,
            "turn": turn.place,
            "worker": self.worker,
        }
        self.journal.note_sent(turn.id, to_json(if_lost).decode())
        if self.plan.texts is not None:
            prompt_fields = {"text": prompt.text} if prompt.text else {"ids": prompt.ids}
            self.journal.note_text(json.dumps({"id": turn.id, "tokens": prompt.tokens, **prompt_fields}))

    def note_end(self, fields: Callable[[], dict[str, Any]]) -> None:
        """Record the end of a request, given what returns its record's fields: soon, with those of other requests."""
        self._ended.append(fields)
        if len(self._ended) >= RECORDED_AT_ONCE or time.monotonic() - self._recorded_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Write the records of all requests that have ended; make as many prompts for a closed loop's next ones."""
        ended, self._ended = self._ended, []
        self._recorded_s = time.monotonic()
        for fields_of in ended:
            fields = fields_of()
            times_s = whole_microseconds(fields.pop("times_s"))
            record = RequestRecord(**fields, token_times_s=times_s, output_tokens=len(times_s), worker=self.worker)
            self.journal.note_end(record)
            if self.watch is not None:
                self.watch.note(record)
        self.journal.flush()
        if ended and self.opened is None and not self.loop.is_over:
            self.ahead.make(self.loop.next_conversations(RECORDED_AT_ONCE))

    def note_reach(self, failure: Exception | None) -> None:
        """Record whether a request reached the server; after a while without any, the server is considered gone.

        Where this process may open no more connections, the run ends: such failures are not the server's.
        """
        if isinstance(failure, OSError) and failure.errno in OUT_OF_FILES:
            self.stopped = self.stopped or NO_MORE_FILES
            return
        if not isinstance(failure, UnreachableError):
            self._back()
        elif self._away is None:
            self._away = (self.now_s(), str(failure))
            gevent.spawn(self._await_server)

    @property
    def gone(self) -> str | None:
        """Why the server is considered gone: it has accepted no connections for longer than allowed."""
        if self._away is None or self.now_s() - self._away[0] < self.plan.scenario.unreachable_s:
            return None
        return self._away[1]

    @property
    def is_away(self) -> bool:
        """Whether the server currently accepts no connections."""
        return self._away is not None

    def take_away_s(self) -> float:
        """Return how long no connections were accepted since the last call."""
        now_s = self.now_s()
        since_s = 0.0 if self._away is None else now_s - max(self._away[0], self._asked_s)
        taken, self._away_s, self._asked_s = self._away_s + since_s, 0.0, now_s
        return taken

    @property
    def why_end(self) -> str | None:
        """Why the run cannot continue; None if it can."""
        return self.stopped or self.journal.failed or self.gone

    def _await_server(self) -> None:
        """Check for a server that accepts connections again, as long as the run continues."""
        endpoint = self.plan.endpoint
        while self._away is not None:
            gevent.sleep(PROBE_S)
            with contextlib.suppress(OSError):
                gevent.socket.create_connection((endpoint.host, endpoint.port), timeout=1).close()
                self._back()

    def _back(self) -> None:
        if self._away is not None:
            self._away_s += self.now_s() - max(self._away[0], self._asked_s)
            self._away = None


def send(shared: SenderState, connection: Connection, turn: Turn, scheduled_s: float) -> int | None:
    """Send one request, read its reply, write its record in any case; return its tokens, None if it failed.

    Raises:
        ValueError: The turn belongs to no conversation, so its prompt is unknown.
    """
    if turn.state is None:
        raise ValueError(f"request {turn.id} has no conversation and therefore no prompt")
    prompt = shared.ahead.prompt(turn.state)
    spec = RequestSpec(f"r{turn.id}", prompt, turn.asked_tokens, turn.exact, shared.maker.end_id)
    reply = Reply(content=[] if shared.maker.wants_reply(turn.state) else None)
    shared.note_sent(turn, prompt, scheduled_s)
    try:
        connection.ask(spec, reply, may_wait=turn.state.kind.conversation is None)
        shared.note_reach(reply.failure)
    finally:
        shared.note_end(partial(_fields_of, shared, turn, spec, reply, scheduled_s))
    if reply.rest is not None:  # whole; what follows does not depend on its tokens
        return spec.output_tokens
    if reply.outcome(spec)[0] != "ok":
        return None
    shared.maker.keep(turn.state, len(reply.times_s), reply.content)
    return len(reply.times_s)


def _fields_of(shared: SenderState, turn: Turn, spec: RequestSpec, reply: Reply, scheduled_s: float) -> dict[str, Any]:
    """Return the fields of an ended request's record, but for its tokens: `times_s` has when each arrived."""
    if reply.rest is not None:
        reply.rest()
    outcome, error = reply.outcome(spec)
    if outcome == "cancelled" and shared.is_out_of_time:  # the server did not answer in time
        outcome, error = "timeout", "in flight at the level's time limit"
    prompt_tokens, cached_tokens = reply.prompt_tokens or spec.prompt.tokens, reply.cached_tokens
    if cached_tokens is not None:  # a reused KV block counts whole, even if part of it was computed
        cached_tokens = min(cached_tokens, prompt_tokens)
    return {
        "id": turn.id,
        "level": shared.level,
        "phase": "fill" if shared.suffices and outcome == "cancelled" else turn.phase,
        "scheduled_s": scheduled_s,
        "sent_s": round(reply.sent_s, 6),
        "times_s": reply.times_s,
        "done_s": round(reply.done_s, 6),
        "prompt_tokens": prompt_tokens,
        "outcome": outcome,
        "error": error,
        "asked_tokens": turn.output_tokens if turn.exact else None,
        "bundled_tokens": reply.bundled_tokens,
        "queue_s": reply.queue_s,
        "cached_tokens": cached_tokens,
        "class_name": turn.class_name,
        "conversation": turn.conversation,
        "turn": turn.place,
        "finish_reason": reply.finish_reason,
    }
