"""A load against the batcher on a virtual clock, with host times.

The batcher is the one that runs behind the emulated server on the wall clock. Memory grows with iterations and requests
in flight, not with tokens: the caller decides what to keep of ended requests.
"""

from __future__ import annotations

import heapq
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from engines.emulator import Batcher, Iteration, Request, RequestError, Sequence
from engines.spec import Host
from loadtest.simulate.energy import EnergyMeter
from loadtest.traffic import ClosedLoop, Turn

# From a reply's last token to the same user's next request. Any value above zero and well below a step works: the
# engine has started its next iteration by then, which the request has to wait for.
TURNAROUND_S = 0.5e-3

_NONE_ENDED: tuple[Ended, ...] = ()
_Floats = npt.NDArray[np.float64]


class Sent(NamedTuple):
    """A request in flight.

    Attributes:
        user: Its user in a closed loop; 0 in an open one.
        prefix_hashes: One per full KV block of prompt and reply; empty if their content is unknown.
    """

    turn: Turn
    sent_s: float
    prompt_tokens: int
    user: int = 0
    prefix_hashes: tuple[int, ...] = ()


class Ended(NamedTuple):
    """A finished request.

    Attributes:
        spans: Periods in the engine, each as (first, last) iteration; one token in each iteration of a span, or as many
            as `counts` says.
        cause: Why it was refused; None if it was not.
        cached_tokens: Prompt tokens found in the KV cache; None if its content is unknown.
        counts: With speculation, the tokens of each iteration, span after span; empty: one each.
    """

    sent: Sent
    spans: list[tuple[int, int]]
    outcome: Literal["ok", "cancelled", "rejected"]
    cause: str | None = None
    cached_tokens: int | None = None
    counts: tuple[int, ...] = ()


class Traffic(Protocol):
    """The source of requests, and the end of the simulation."""

    @property
    def next_s(self) -> float:
        """Send time of the next request; infinity if that depends on a reply."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether everything to be measured has ended."""
        ...

    def send(self) -> Sent:
        """Take the next request."""
        ...

    def note_end(self, sent: Sent, now_s: float, *, ok: bool = True) -> None:
        """Record the end of a request, successful or refused."""
        ...


class Contents:
    """The identity of requests' KV blocks: none, or equal hashes for equal contents.

    Args:
        tokens_per_block: Of the engine; None: blocks are never reused, so none is identified.
    """

    def __init__(self, tokens_per_block: int | None = None) -> None:
        self._tokens_per_block = tokens_per_block

    def sent(self, turn: Turn, sent_s: float, user: int = 0) -> Sent:
        """Return a turn as a request in flight.

        Raises:
            ValueError: The turn belongs to no conversation and has no prompt.
        """
        if turn.state is None:
            raise ValueError(f"request {turn.id} has no conversation and therefore no prompt")
        hashes = () if self._tokens_per_block is None else turn.state.block_hashes(self._tokens_per_block)
        return Sent(turn, sent_s, turn.state.prompt_tokens, user, hashes)


@dataclass(slots=True)
class Users:
    """The users of a closed loop, each waiting for its reply and thinking before the next request.

    Args:
        begin_s: When all of them are free for the first time.
    """

    loop: ClosedLoop
    begin_s: float = 0.0
    contents: Contents = field(default_factory=Contents)
    _free: list[tuple[float, int, int]] = field(default_factory=list)
    _freed: int = 0

    def __post_init__(self) -> None:
        """Make every user free at the start."""
        for user in range(self.loop.concurrency):
            self._let_free(user, self.begin_s)

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
        sent_s, _, user = heapq.heappop(self._free)
        return self.contents.sent(self.loop.next_turn(user, sent_s), sent_s, user)

    def note_end(self, sent: Sent, now_s: float, *, ok: bool = True) -> None:
        """Record a reply as read; its user is free after a moment, or after its think time."""
        self.loop.note_end(sent.turn, now_s, sent.turn.output_tokens if ok else None)
        self._let_free(sent.user, now_s + max(TURNAROUND_S, self.loop.wait_s(sent.user)))

    def _let_free(self, user: int, at_s: float) -> None:
        # Of several free at the same time, the one that was freed first sends first.
        heapq.heappush(self._free, (at_s, self._freed, user))
        self._freed += 1


@dataclass(slots=True)
class Arrivals:
    """Requests of an open loop: times drawn beforehand, never delayed by a slow server.

    Args:
        requests: By time, the last one measured.
        follow: Returns the conversation's next request after a reply (when its tokens left; whether it succeeded).
    """

    requests: Iterable[Sent]
    follow: Callable[[Sent, float, bool], Sent | None] | None = None
    _coming: Iterator[Sent] = field(init=False)
    _next: Sent | None = None
    _later: list[tuple[float, int, Sent]] = field(default_factory=list)
    _open: int = 0

    def __post_init__(self) -> None:
        """Fetch the first request."""
        self._coming = iter(self.requests)
        self._next = next(self._coming, None)

    @property
    def next_s(self) -> float:
        """When the next request is sent."""
        later_s = self._later[0][0] if self._later else math.inf
        return min(self._next.sent_s, later_s) if self._next is not None else later_s

    @property
    def is_over(self) -> bool:
        """Whether all measured requests have ended, and none is left."""
        return self._next is None and not self._open

    def send(self) -> Sent:
        """Take the next request."""
        if self._next is None or (self._later and self._later[0][0] <= self._next.sent_s):
            return heapq.heappop(self._later)[2]
        sent, self._next = self._next, next(self._coming, None)
        self._open += sent.turn.phase == "measure"
        return sent

    def note_end(self, sent: Sent, now_s: float, *, ok: bool = True) -> None:
        """Record the end of a request; the next turn is due after its user's think time."""
        self._open -= sent.turn.phase == "measure"
        later = self.follow(sent, now_s, ok) if self.follow is not None else None
        if later is not None:
            self._open += later.turn.phase == "measure"
            heapq.heappush(self._later, (later.sent_s, later.turn.id, later))


@dataclass(slots=True)
class VirtualServer:
    """An engine and its host under some traffic; starts with an idle batcher.

    Attributes:
        now_s: The virtual clock.
        steps: Completed iterations or runs of them; empty unless `keep_steps` is set.
        begin_s: When the traffic started.
        meter: Adds up the energy; None: it is not wanted, or not known.
    """

    batcher: Batcher
    traffic: Traffic
    host: Host = field(default_factory=Host)
    now_s: float = 0.0
    keep_steps: bool = False
    steps: list[Iteration] = field(default_factory=list)
    begin_s: float = 0.0
    meter: EnergyMeter | None = None
    _arriving: deque[tuple[float, Sent]] = field(default_factory=deque)  # on their way to the engine's queue
    _intake_free_s: float = 0.0
    _next_s: float = -math.inf  # when the next request of the traffic passes the host, or earlier
    _on_way: dict[int, Sent] = field(default_factory=dict)
    _found: dict[int, int] = field(default_factory=dict)  # blocks of each prompt that need not be computed
    _refused: list[Ended] = field(default_factory=list)
    _left_s: array[float] = field(default_factory=lambda: array("d"))  # when each iteration's tokens left, by its index
    _decoding: list[int] = field(default_factory=list)  # sequences in generation, by run; `_repeats`: its iterations
    _repeats: list[int] = field(default_factory=list)

    def run(self) -> Iterator[Ended]:
        """Yield requests as they end, until the traffic is over; then the remaining ones as cancelled."""
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
                    raise RuntimeError("the engine is idle, no user will send, and the traffic is not over")
                self.now_s = next_s
                continue
            yield from self._step(iteration)
        for number, sent in self._on_way.items():
            spans, counts = self.batcher.progress_of(number)
            yield Ended(sent, spans, "cancelled", counts=counts)
        for _, sent in self._arriving:
            yield Ended(sent, [], "cancelled")

    def advance_to(self, until_s: float) -> Iterator[Ended]:
        """Run every iteration that starts before a time, and yield what ends; for incremental simulation.

        What the traffic has by then is admitted; nothing else may arrive before `until_s`.
        """
        self._next_s = -math.inf  # the traffic may have more than before
        while self.now_s < until_s:
            self._admit()
            if self._refused:
                yield from self._take_refused()
                continue
            next_s = min(self._next_ready_s(), until_s)
            iteration = self.batcher.begin_run(self.now_s, next_s)
            if iteration is not None:
                yield from self._step(iteration)
            elif next_s == math.inf:
                return
            else:
                self.now_s = next_s

    @property
    def left_s(self) -> _Floats:
        """When the tokens of each iteration left for the clients, by the iteration's index."""
        return np.array(self._left_s)

    @property
    def decoding(self) -> npt.NDArray[np.int64]:
        """Sequences in generation, by the iteration's index."""
        return np.repeat(np.array(self._decoding, dtype=np.int64), self._repeats)

    def token_times_s(self, ended: Ended) -> tuple[float, ...]:
        """Return when each token of a request left."""
        times_s = [left_s for first, last in ended.spans for left_s in self._left_s[first : last + 1]]
        if not ended.counts:
            return tuple(times_s)
        return tuple(time_s for time_s, count in zip(times_s, ended.counts, strict=True) for _ in range(count))

    def first_and_last_s(self, ended: Ended) -> tuple[float, float]:
        """Return when the first and the last token of a reply left."""
        return self._left_s[ended.spans[0][0]], self._left_s[ended.spans[-1][1]]

    def _admit(self) -> None:
        """Move requests that have passed the host into the engine's queue."""
        if self._next_s <= self.now_s:
            self._take_in()
        while self._arriving and self._arriving[0][0] <= self.now_s:
            self._submit(*self._arriving.popleft())

    def _take_in(self) -> None:
        """Take requests from the traffic that have passed the host."""
        traffic, request_s, latency_s = self.traffic, self.host.request_s, self.host.latency_s
        while (next_s := max(self._intake_free_s, traffic.next_s) + request_s + latency_s) <= self.now_s:
            sent = traffic.send()
            self._intake_free_s = max(self._intake_free_s, sent.sent_s) + request_s
            self._arriving.append((self._intake_free_s + latency_s, sent))
        self._next_s = next_s

    def _submit(self, ready_s: float, sent: Sent) -> None:
        turn = sent.turn
        try:
            self.batcher.submit(
                Request(
                    turn.id,
                    sent.prompt_tokens,
                    turn.asked_tokens,
                    ready_s,
                    sent.prefix_hashes,
                    None if turn.max_tokens is None else turn.output_tokens,
                ),
                self.now_s,
            )
        except RequestError as error:
            self._refused.append(Ended(sent, [], "rejected", str(error)))
        else:
            self._on_way[turn.id] = sent

    def _take_refused(self) -> Iterator[Ended]:
        refused, self._refused = self._refused, []
        for ended in refused:
            self.traffic.note_end(ended.sent, self.now_s, ok=False)
            yield ended
        self._next_s = self._next_sent_ready_s()

    def _next_sent_ready_s(self) -> float:
        return max(self._intake_free_s, self.traffic.next_s) + self.host.request_s + self.host.latency_s

    def _next_ready_s(self) -> float:
        return self._arriving[0][0] if self._arriving else self._next_s

    def _step(self, iteration: Iteration) -> Iterable[Ended]:
        """Run an iteration, or a run of them, and return the requests it ended."""
        if self.meter is not None:
            self.meter.note(iteration, self.now_s)
        self.now_s = iteration.ends_s[-1]
        self._left_s.extend(self._leave_s(iteration))
        self._decoding.append(iteration.shape.decode_sequences)
        self._repeats.append(iteration.repeats)
        if self.keep_steps:
            self.steps.append(iteration)
        # Before the first chunk is computed, shared blocks are those that were found.
        for sequence, _ in iteration.chunks:
            if sequence.request.prefix_hashes:
                self._found.setdefault(int(sequence.request.request_id), sequence.shared_blocks)
        sequences = self.batcher.advance(iteration)
        if not sequences:
            return _NONE_ENDED
        ended = [self._end(sequence) for sequence in sequences]
        self._next_s = self._next_sent_ready_s()
        return ended

    def _end(self, sequence: Sequence) -> Ended:
        number = int(sequence.request.request_id)
        sent = self._on_way.pop(number)
        self.traffic.note_end(sent, self._left_s[sequence.spans[-1][1]])
        cached_tokens = self._cached_tokens(number) if self._found else None
        return Ended(sent, sequence.spans, "ok", None, cached_tokens, tuple(sequence.counts))

    def _cached_tokens(self, number: int) -> int | None:
        blocks = self._found.pop(number, None)
        return None if blocks is None else blocks * self.batcher.settings.tokens_per_block

    def _leave_s(self, iteration: Iteration) -> list[float] | array[float]:
        """Return when the tokens of each iteration leave: a queue served at the streaming rate limit."""
        if not self.host.stream_token_s:
            return iteration.ends_s
        shape = iteration.shape
        each_s = (shape.decode_sequences + shape.prefill_sequences) * self.host.stream_token_s
        before_s = self._left_s[-1] if self._left_s else 0.0
        if iteration.repeats == 1:
            return [max(iteration.ends_s[0], before_s) + each_s]
        ends_s = np.array(iteration.ends_s)
        places = np.arange(1, len(ends_s) + 1)
        starts_s = np.maximum.accumulate(np.maximum(ends_s, before_s) - (places - 1) * each_s)
        return array("d", (starts_s + places * each_s).tobytes())
