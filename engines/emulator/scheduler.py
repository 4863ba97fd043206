"""TensorRT-LLM's two-stage scheduler: KV block capacity, then the token budget of an iteration.

Follows `capacityScheduler.cpp` and `microBatchScheduler.cpp` of TensorRT-LLM 1.x for beam width 1. Decoding sequences
always run: each takes one of the `max_num_tokens` tokens, and none starts unless one is left.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from engines.emulator.acceptance import Draws
from engines.emulator.apart import PromptIterations
from engines.emulator.blocks import KvPool
from engines.emulator.request import BatcherSettings, FinishReason, Request
from engines.steptime import StepShape


class Sequence:
    """One request in the engine.

    Counters of a decoding sequence are not updated at each iteration; they follow from the iteration's index.

    Attributes:
        order: Arrival rank, used by the scheduler.
        final_tokens: Prompt and maximum output: what its blocks must hold at its end, as far as the scheduler can know.
        prompt_tokens: Tokens to compute before the next new one: the prompt, and after a pause the output so far.
        output_tokens: Output tokens at its end.
        cached_tokens: Prompt tokens whose KV is in the pool; not updated while decoding.
        shared_blocks: Blocks held by hash, the first ones of the prompt.
        has_blocks: Whether it holds blocks.
        decode_index: Iteration of its first decode step; -1 while it does not decode.
        first_new_index: Iteration of its first new token since it (re)started.
        first_iteration: The same; with prompts apart, where the others count decode steps, still the iteration.
        last_index: Iteration of its last token.
        produced_before: Tokens produced before it (re)started.
        spans: Finished periods as (first, last) iteration; one new token in each iteration of a span, or as many as
            `counts` says.
        counts: With speculation, the new tokens of each iteration, span after span; empty otherwise.
        accepted: With speculation, the draft tokens that its coming decode steps accept.
        emitted: With speculation, the tokens that it has emitted after each decode step since it (re)started, from 0.
        ended: Why it ended, once it has.
    """

    __slots__ = (
        "accepted",
        "arrival_s",
        "cached_tokens",
        "counts",
        "decode_index",
        "emitted",
        "ended",
        "final_tokens",
        "first_iteration",
        "first_new_index",
        "has_blocks",
        "last_index",
        "order",
        "output_tokens",
        "produced_before",
        "prompt_tokens",
        "request",
        "shared_blocks",
        "spans",
    )

    def __init__(self, request: Request, order: int, arrival_s: float, output_tokens: int) -> None:
        self.request = request
        self.order = order
        self.arrival_s = arrival_s
        self.prompt_tokens = request.prompt_tokens
        self.final_tokens = request.prompt_tokens + request.max_output_tokens
        self.output_tokens = output_tokens
        self.cached_tokens = 0
        self.shared_blocks = 0
        self.has_blocks = False
        self.decode_index = -1
        self.first_iteration = self.first_new_index = -1
        self.last_index = -1
        self.produced_before = 0
        self.spans: list[tuple[int, int]] = []
        self.counts: list[int] = []
        self.accepted: Draws | None = None
        self.emitted: list[int] = []
        self.ended: FinishReason | None = None

    @property
    def finish_reason(self) -> FinishReason:
        """Why it ends with its last token."""
        is_longest = self.output_tokens == self.request.max_output_tokens
        return FinishReason.LENGTH if is_longest else FinishReason.END_TOKEN

    def tokens_at(self, index: int) -> int:
        """Return the tokens whose KV it holds, or has blocks for, before iteration `index`."""
        if self.decode_index < 0:
            return self.prompt_tokens
        steps = index - self.decode_index
        return self.prompt_tokens + (self.emitted[steps] if self.emitted else steps)

    def produced_at(self, index: int) -> int:
        """Return the tokens it has produced before iteration `index`."""
        if self.decode_index < 0 or index <= self.first_new_index:
            return self.produced_before
        steps = index - self.decode_index
        return self.produced_before + 1 + (self.emitted[steps] if self.emitted else steps)

    def start(self, index: int) -> None:
        """Produce the first token in an iteration, and decode from the next one to the last token's."""
        self.first_new_index, self.decode_index = index, index + 1
        left = self.output_tokens - self.produced_before - 1
        if self.accepted is not None:
            self.emitted = self.accepted.emitted(left)
        self.last_index = index + (len(self.emitted) - 1 if self.emitted else left)

    def leave(self, last_index: int, apart: PromptIterations | None) -> None:
        """Close the current span: the latest token is that of iteration `last_index`."""
        self.spans += self._spans_to(last_index, apart)
        if self.accepted is not None:
            steps = last_index - self.first_new_index
            self.counts += self._counts_of(steps)
            self.accepted = self.accepted.after(steps)

    def progress(self, index: int, apart: PromptIterations | None) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        """Return its spans and counts before iteration `index`."""
        if self.decode_index < 0:
            return list(self.spans), tuple(self.counts)
        own = self._counts_of(index - 1 - self.first_new_index) if self.accepted is not None else []
        return [*self.spans, *self._spans_to(index - 1, apart)], (*self.counts, *own)

    def _spans_to(self, last_index: int, apart: PromptIterations | None) -> list[tuple[int, int]]:
        """Return the iterations of its tokens since it (re)started."""
        if apart is None:
            return [(self.first_new_index, last_index)]
        return apart.spans(self.first_iteration, self.decode_index, last_index)

    def _counts_of(self, steps: int) -> list[int]:
        """Return the tokens of the current span's iterations: its first token, and those of some decode steps."""
        return [1, *[after - before for before, after in pairwise(self.emitted[: steps + 1])]]


class Chunk(NamedTuple):
    """A prompt, or part of one, in an iteration: at most `tokens` new tokens."""

    sequence: Sequence
    tokens: int


@dataclass(slots=True)
class Iteration:
    """The current iteration, or a run of decode iterations that differ only in their growing contexts.

    Attributes:
        first_index: Index of the (first) iteration; the engine's first is 0.
        repeats: Iterations in this run; 1 from `Batcher.begin`.
        shape: Shape of the first iteration.
        seconds: Duration of the iteration; of a run, that of its last.
        chunks: Prompts, or chunks of prompts, computed in it.
        ends_s: End of each iteration of the run, on the clock of `begin_run`; empty from `begin`, an array if many.
    """

    first_index: int
    repeats: int
    shape: StepShape
    seconds: float
    chunks: list[Chunk] = field(default_factory=list)
    ends_s: list[float] | array[float] = field(default_factory=list)


def admissible(
    pending: Collection[Sequence], decoding: int, pool: KvPool, settings: BatcherSettings
) -> Iterator[Sequence]:
    """Yield the waiting sequences that may run, if running sequences are never paused (no-evict and static batch).

    All blocks that a sequence may need are counted, reusable or not. Sequences behind the first that does not fit do
    not start; those already started continue. Lazy: taking fewer leaves the others for a later iteration.
    """
    if settings.policy == "static_batch" and decoding:
        for sequence in pending:
            if sequence.has_blocks:
                yield sequence
        return
    spare = pool.available - pool.reserved
    gate = ReuseGate(pending, pool) if pool.reuse and len(pending) > 1 else None  # a single one waits for no other
    draft_tokens, blocks_for = settings.draft_tokens, pool.blocks_for
    waiting = iter(pending)
    for sequence in waiting:
        if not sequence.has_blocks:
            if gate and gate.holds_back(sequence):
                continue
            spare -= blocks_for(sequence.final_tokens + draft_tokens)
            if spare < 0:
                break
        yield sequence
    for sequence in waiting:
        if sequence.has_blocks:
            yield sequence


def fitting(pending: Iterable[Sequence], pool: KvPool) -> Iterator[Sequence]:
    """Yield the waiting sequences whose own blocks fit now, without counting their future output."""
    spare = pool.available
    for sequence in pending:
        if not sequence.has_blocks:
            spare -= pool.blocks_for(sequence.prompt_tokens)
        if sequence.has_blocks or spare >= 0:
            yield sequence


class ReuseGate:
    """Delays a prompt while another one is about to compute the block that it needs next."""

    def __init__(self, pending: Iterable[Sequence], pool: KvPool) -> None:
        self._pool = pool
        self._pending = pending
        self._coming: set[int] | None = None  # what prompts in progress will compute, once it is asked for

    def holds_back(self, sequence: Sequence) -> bool:
        """Return whether to wait; if not, the sequence's own first new block is registered as coming."""
        if not sequence.request.prefix_hashes:
            return False
        missing = self._pool.first_missing(sequence.request.prefix_hashes)
        if missing is None:
            return False
        if self._coming is None:
            self._coming = {
                content
                for each in self._pending
                if each.has_blocks
                for content in each.request.prefix_hashes[each.shared_blocks :]
            }
        if missing in self._coming:
            return True
        self._coming.add(missing)
        return False


def pack(candidates: Iterator[Sequence], token_budget: int, slots: int, settings: BatcherSettings) -> list[Chunk]:
    """Distribute an iteration's tokens among prompts, in order.

    Without chunking a prompt needs its whole length, and the first that does not fit blocks those behind it. With
    chunking, a chunk that does not complete its prompt is a whole number of KV blocks.

    Args:
        token_budget: `max_num_tokens` minus decoding tokens.
        slots: `max_batch_size` minus decoding sequences.
    """
    if slots <= 0 or token_budget <= 0:
        return []
    if not settings.chunked_context:
        return _pack_whole(candidates, token_budget, slots, settings.max_num_tokens)
    if settings.chunking == "first_come":
        return _pack_first_come(candidates, token_budget, slots, settings.tokens_per_block)
    return _pack_equal_progress(candidates, token_budget, slots, settings.tokens_per_block)


def _pack_whole(candidates: Iterator[Sequence], budget: int, slots: int, largest: int) -> list[Chunk]:
    """Pack whole prompts; one that outgrew the iteration while paused is computed in the largest possible chunks."""
    chunks: list[Chunk] = []
    for sequence in candidates:
        tokens = min(sequence.prompt_tokens - sequence.cached_tokens, largest)
        budget -= tokens
        if budget < 0:
            break
        chunks.append(Chunk(sequence, tokens))
        if len(chunks) == slots:
            break
    return chunks


def _pack_first_come(candidates: Iterator[Sequence], budget: int, slots: int, unit: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    for sequence in candidates:
        remaining = sequence.prompt_tokens - sequence.cached_tokens
        tokens = remaining if remaining <= budget else budget // unit * unit
        if tokens:
            chunks.append(Chunk(sequence, tokens))
            budget -= tokens
        slots -= 1
        if not slots or not budget:
            break
    return chunks


def _pack_equal_progress(candidates: Iterator[Sequence], budget: int, slots: int, unit: int) -> list[Chunk]:
    prompts = [sequence for _, sequence in zip(range(slots), candidates, strict=False)]
    remaining = [sequence.prompt_tokens - sequence.cached_tokens for sequence in prompts]
    given = [0] * len(prompts)
    progress = True
    while budget and progress:
        progress = False
        for index, largest in enumerate(remaining):
            more = min(unit, largest - given[index])
            if 0 < more <= budget:
                given[index] += more
                budget -= more
                progress = True
    return [Chunk(sequence, tokens) for sequence, tokens in zip(prompts, given, strict=True) if tokens]
