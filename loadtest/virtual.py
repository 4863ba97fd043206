"""A load against the batcher on a virtual clock: who sends when, what the host adds, when each token leaves.

The batcher is the one that runs behind the emulated server on the wall clock. Memory grows with iterations and with
requests under way, never with tokens: what is to be kept of an ended request is its reader's choice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engines.emulator.engine import Batcher, Iteration
from engines.emulator.request import Request, RequestError
from engines.spec.deployment import Host
from loadtest.traffic import ClosedLoop, Turn

# From a reply's last token to the same user's next request. Any value above zero and well below a step does: what
# matters is that the engine has begun its next iteration by then, so that the request waits it out.
TURNAROUND_S = 0.5e-3

_Floats = npt.NDArray[np.float64]


class Sent(NamedTuple):
    """A request on its way.

    Attributes:
        user: Of a closed loop.
        prefix_hashes: One for each full KV block of the prompt; empty where nothing is known of its content.
    """

    turn: Turn
    sent_s: float
    prompt_tokens: int
    user: int = 0
    prefix_hashes: tuple[int, ...] = ()


class Ended(NamedTuple):
    """A request that is over.

    Attributes:
        spans: Stays in the engine, each as (first, last) iteration; one token in each iteration of a span.
        cause: Why it was refused; None unless it was.
    """

    sent: Sent
    spans: list[tuple[int, int]]
    outcome: Literal["ok", "cancelled", "rejected"]
    cause: str | None = None


class Traffic(Protocol):
    """Who sends what, and when there is nothing more to see."""

    @property
    def next_s(self) -> float:
        """When the next request is sent; infinity where that waits for a reply."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether all that was to be measured has ended."""
        ...

    def send(self) -> Sent:
        """Take the next request."""
        ...

    def note_end(self, sent: Sent, now_s: float) -> None:
        """Take a request as ended."""
        ...


@dataclass(slots=True)
class Users:
    """The users of a closed loop, each waiting for its reply.

    Args:
        begin_s: When all of them are free for the first time.
    """

    loop: ClosedLoop
    prompt_tokens: int
    begin_s: float = 0.0
    _free: deque[tuple[float, int]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        """Let every user be free at the beginning."""
        self._free.extend((self.begin_s, user) for user in range(self.loop.concurrency))

    @property
    def next_s(self) -> float:
        """When the next user is free."""
        return self._free[0][0] if self._free else math.inf

    @property
    def is_over(self) -> bool:
        """Whether all measured requests have ended."""
        return self.loop.is_over

    def send(self) -> Sent:
        """Let the next free user send."""
        sent_s, user = self._free.popleft()
        return Sent(self.loop.next_turn(user, sent_s), sent_s, self.prompt_tokens, user)

    def note_end(self, sent: Sent, now_s: float) -> None:
        """Take a reply as read; its user is free after a moment."""
        self.loop.note_end(sent.turn, now_s)
        self._free.append((now_s + TURNAROUND_S, sent.user))


@dataclass(slots=True)
class Arrivals:
    """Requests of an open loop: times drawn beforehand, never delayed by a slow server.

    Args:
        requests: In order of their times; those of phase `measure` are waited for.
    """

    requests: Sequence[Sent]
    _next: int = 0
    _open: int = 0

    def __post_init__(self) -> None:
        """Count what has to end."""
        self._open = sum(sent.turn.phase == "measure" for sent in self.requests)

    @property
    def next_s(self) -> float:
        """When the next request is sent."""
        return self.requests[self._next].sent_s if self._next < len(self.requests) else math.inf

    @property
    def is_over(self) -> bool:
        """Whether all measured requests have ended."""
        return not self._open

    def send(self) -> Sent:
        """Take the next request."""
        self._next += 1
        return self.requests[self._next - 1]

    def note_end(self, sent: Sent, now_s: float) -> None:  # noqa: ARG002 (an open loop does not care when)
        """Take a request as ended."""
        self._open -= sent.turn.phase == "measure"


@dataclass(slots=True)
class VirtualServer:
    """An engine and its host under some traffic; an idle batcher of its own, as after a pause.

    Attributes:
        now_s: The virtual clock.
        steps: Iterations done, as (iteration or run of them, its first one's index); kept where asked for.
        begin_s: When the traffic began.
    """

    batcher: Batcher
    traffic: Traffic
    host: Host = field(default_factory=Host)
    now_s: float = 0.0
    keep_steps: bool = False
    steps: list[Iteration] = field(default_factory=list)
    begin_s: float = 0.0
    _arriving: deque[tuple[float, Sent]] = field(default_factory=deque)  # on their way to the engine's queue
    _intake_free_s: float = 0.0
    _on_way: dict[int, Sent] = field(default_factory=dict)
    _refused: list[Ended] = field(default_factory=list)
    _left_s: list[float] = field(default_factory=list)  # when the tokens of each iteration left, by its index
    _decoding: list[int] = field(default_factory=list)  # sequences in generation, by iteration

    def run(self) -> Iterator[Ended]:
        """Yield requests as they end, until the traffic is over; then, as cancelled, those still under way."""
        self.begin_s = self.now_s
        while not self.traffic.is_over:
            self._admit()
            if self._refused:
                yield from self._take_refused()
                continue
            next_s = self._next_ready_s()
            iteration = self.batcher.begin_run(self.now_s, next_s)
            if iteration is None:
                if next_s == math.inf:
                    raise RuntimeError("the engine is idle, nobody is to send, and the traffic is not over")
                self.now_s = next_s
                continue
            yield from self._step(iteration)
        for number, sent in self._on_way.items():
            yield Ended(sent, self.batcher.spans_of(number), "cancelled")
        for _, sent in self._arriving:
            yield Ended(sent, [], "cancelled")

    @property
    def left_s(self) -> _Floats:
        """When the tokens of each iteration left for the clients, by the iteration's index."""
        return np.asarray(self._left_s)

    @property
    def decoding(self) -> npt.NDArray[np.int64]:
        """Sequences in generation, by the iteration's index."""
        return np.asarray(self._decoding, dtype=np.int64)

    def token_times_s(self, ended: Ended) -> tuple[float, ...]:
        """Return when each token of a request left."""
        return tuple(left_s for first, last in ended.spans for left_s in self._left_s[first : last + 1])

    def first_and_last_s(self, ended: Ended) -> tuple[float, float]:
        """Return when the first and the last token of a reply left."""
        return self._left_s[ended.spans[0][0]], self._left_s[ended.spans[-1][1]]

    def _admit(self) -> None:
        """Let every request enter the engine's queue that has come through the host by now."""
        while self._next_sent_ready_s() <= self.now_s:
            sent = self.traffic.send()
            self._intake_free_s = max(self._intake_free_s, sent.sent_s) + self.host.request_s
            self._arriving.append((self._intake_free_s, sent))
        while self._arriving and self._arriving[0][0] <= self.now_s:
            self._submit(*self._arriving.popleft())

    def _submit(self, ready_s: float, sent: Sent) -> None:
        turn = sent.turn
        try:
            self.batcher.submit(
                Request(turn.id, sent.prompt_tokens, turn.output_tokens, ready_s, prefix_hashes=sent.prefix_hashes),
                self.now_s,
            )
        except RequestError as error:
            self._refused.append(Ended(sent, [], "rejected", str(error)))
        else:
            self._on_way[turn.id] = sent

    def _take_refused(self) -> Iterator[Ended]:
        refused, self._refused = self._refused, []
        for ended in refused:
            self.traffic.note_end(ended.sent, self.now_s)
            yield ended

    def _next_sent_ready_s(self) -> float:
        return max(self._intake_free_s, self.traffic.next_s) + self.host.request_s

    def _next_ready_s(self) -> float:
        return self._arriving[0][0] if self._arriving else self._next_sent_ready_s()

    def _step(self, iteration: Iteration) -> Iterator[Ended]:
        ends_s = self.now_s + self._cumulative_s(iteration)
        self.now_s = float(ends_s[-1])
        self._left_s += self._leave_s(ends_s, iteration).tolist()
        self._decoding += [iteration.shape.decode_sequences] * iteration.repeats
        if self.keep_steps:
            self.steps.append(iteration)
        for sequence in self.batcher.advance(iteration):
            sent = self._on_way.pop(int(sequence.request.request_id))
            self.traffic.note_end(sent, self._left_s[sequence.spans[-1][1]])
            yield Ended(sent, sequence.spans, "ok")

    def _cumulative_s(self, iteration: Iteration) -> _Floats:
        """Return how long after the start each iteration of a run ends."""
        shape, repeats = iteration.shape, iteration.repeats
        if repeats == 1:
            return np.array([iteration.seconds])
        line = self.batcher.step_time.decode_line(shape.decode_sequences, shape.decode_context_tokens)
        contexts = shape.decode_context_tokens + shape.decode_sequences * np.arange(repeats)
        return np.asarray(np.cumsum(line.base_s + line.per_context_token_s * contexts))

    def _leave_s(self, ends_s: _Floats, iteration: Iteration) -> _Floats:
        """Return when the tokens of each iteration leave: a queue served at the streaming ceiling."""
        if not self.host.stream_token_s:
            return ends_s
        shape = iteration.shape
        each_s = (shape.decode_sequences + shape.prefill_sequences) * self.host.stream_token_s
        before_s = self._left_s[-1] if self._left_s else 0.0
        places = np.arange(1, len(ends_s) + 1)
        starts_s = np.maximum.accumulate(np.maximum(ends_s, before_s) - (places - 1) * each_s)
        return np.asarray(starts_s + places * each_s)
