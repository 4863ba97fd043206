"""The iteration loop of an in-flight batcher; time is passed in."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator

from engines.emulator.acceptance import Acceptance
from engines.emulator.admission import Estimate
from engines.emulator.apart import PromptIterations
from engines.emulator.blocks import KvPool
from engines.emulator.growth import DrawnGrowth, Growth, SteadyGrowth
from engines.emulator.lines import DecodeLines, decode_run
from engines.emulator.request import (
    BatcherSettings,
    BatcherState,
    FinishReason,
    PromptTooLongError,
    QueueFullError,
    Request,
    RequestId,
    TokenEvent,
)
from engines.emulator.scheduler import Chunk, Iteration, Sequence, admissible, fitting, pack
from engines.steptime import StepShape, StepTime, attended_tokens


class Batcher:
    """In-flight batcher of one engine: pure and deterministic, with the time passed to each call.

    A wall-clock driver repeats: ``submit`` as requests arrive; ``begin(now)``; sleep ``iteration.seconds``;
    ``finish(iteration)``; send the tokens. ``begin`` returns None when there is nothing to do until the next
    ``submit``. Not thread-safe: hold a lock around each call (not while sleeping). Between ``begin`` and ``finish``,
    ``submit`` and ``cancel`` are allowed: a new request waits for the next iteration, and a cancelled one gets no token
    from the current one.

    A virtual-clock driver calls ``begin_run`` and ``advance`` instead: iterations that only decode are processed in
    runs, and a sequence's token times are read from its spans when it ends.
    """

    def __init__(self, settings: BatcherSettings, step_time: StepTime) -> None:
        self.settings = settings
        self.step_time = step_time
        self._pool = KvPool(
            settings.kv_blocks, settings.tokens_per_block, reuse=settings.kv_reuse, host_blocks=settings.host_blocks
        )
        self._apart = PromptIterations() if settings.prompts_apart else None
        self._index = 0  # of iterations, or with prompts apart of decode steps
        self._grown = 0  # the first iteration whose blocks have not been allocated yet
        self._orders = 0
        self._queue: deque[Sequence] = deque()
        self._pending: dict[int, Sequence] = {}  # by order: active, prompt not yet complete
        self._decoding: dict[int, Sequence] = {}  # by order; the sequence started last is the last one
        self._by_id: dict[RequestId, Sequence] = {}
        self._context_tokens = 0  # sum over decoding sequences, before the next iteration
        self._acceptance = Acceptance(settings.acceptance, settings.acceptance_seed) if settings.acceptance else None
        self._growth: Growth = (
            SteadyGrowth(settings.tokens_per_block)
            if self._acceptance is None
            else DrawnGrowth(settings.tokens_per_block, settings.draft_tokens)
        )
        self._estimate = None if settings.new_token_ratio is None else Estimate(settings.new_token_ratio)
        self._draft_steps = self._accepted = 0
        self._ends: list[tuple[int, int]] = []  # heap of (last index, order)
        self._lines = DecodeLines(step_time)
        self._longest_prompt = settings.longest_prompt_tokens
        self._longest_sequence = settings.longest_sequence_tokens
        self._latest = StepShape()
        self._paused = 0
        self._onboarded = 0  # tokens copied back from host memory for the iteration being scheduled

    def submit(self, request: Request, now_s: float) -> None:
        """Queue a request.

        Raises:
            QueueFullError: The queue is full.
            PromptTooLongError: The prompt exceeds the engine's limits.
            ValueError: The id is in use, or a length is below 1.
        """
        request_id, prompt_tokens, largest_output, _, _, ends_after_tokens = request
        if request_id in self._by_id:
            raise ValueError(f"request id {request_id} is in use")
        if prompt_tokens < 1 or largest_output < 1:
            raise ValueError("a prompt and a reply have at least one token")
        if prompt_tokens > self._longest_prompt:
            raise PromptTooLongError(prompt_tokens, self._longest_prompt)
        if self.settings.max_queue_size and len(self._queue) >= self.settings.max_queue_size:
            raise QueueFullError(self.settings.max_queue_size)
        if self._estimate is not None and not self._by_id:
            self._estimate.reset()
        room = self._longest_sequence - prompt_tokens
        if largest_output > room:
            largest_output = room
            request = request._replace(max_output_tokens=room)
        output = min(largest_output, ends_after_tokens) if ends_after_tokens else largest_output
        sequence = Sequence(request, self._orders, now_s, output)
        if self._acceptance is not None:
            sequence.accepted = self._acceptance.draw(output)
        self._orders += 1
        self._by_id[request_id] = sequence
        if self._queue or len(self._pending) + len(self._decoding) >= self.settings.max_batch_size:
            self._queue.append(sequence)
        else:
            self._pending[sequence.order] = sequence

    def cancel(self, request_id: RequestId) -> bool:
        """End a request now and free its blocks; return whether it existed. No token event follows."""
        sequence = self._by_id.get(request_id)
        if sequence is None:
            return False
        if sequence.order in self._decoding:
            self._stop_decoding(sequence)
        elif sequence.order in self._pending:
            del self._pending[sequence.order]
        else:
            self._queue.remove(sequence)
        self._end(sequence, FinishReason.CANCELLED)
        return True

    def begin(self, now_s: float) -> Iteration | None:  # noqa: ARG002 (the clock of policies that age requests)
        """Schedule the next iteration; None if no request can run."""
        chunks = self._schedule()
        if not chunks and not self._decoding:
            return None
        shape = self._latest = self._shape(chunks)
        return Iteration(self._iteration(), 1, shape, self.step_time.seconds(shape), chunks)

    def begin_run(self, now_s: float, until_s: float) -> Iteration | None:
        """Schedule one iteration with prompts, or a run of decode iterations up to `until_s` or a sequence's end."""
        chunks = self._schedule()
        count = len(self._decoding)
        if chunks:
            shape = self._latest = self._shape(chunks)
            seconds = self.step_time.seconds(shape)
            return Iteration(self._iteration(), 1, shape, seconds, chunks, [now_s + seconds])
        if not count:
            return None
        context = self._context_tokens
        shape = self._latest = StepShape(count, context)
        # With prompts apart, what is paused now is asked again before the next step.
        max_steps = 1 if self._paused and self._apart is not None else self._first_end() - self._index + 1
        if self.settings.policy == "max_utilization":
            max_steps = self._growth.steps_in_memory(self._index, self._pool.available, max_steps)
        line = self._lines.at(count, context)
        contexts = self._growth.contexts_from(self._index, context, max_steps - 1, count)
        seconds, ends_s = decode_run(line, context, contexts, now_s, until_s)
        return Iteration(self._iteration(), len(ends_s), shape, seconds, chunks, ends_s)

    def finish(self, iteration: Iteration) -> list[TokenEvent]:
        """Complete an iteration; return its tokens, those of decoding sequences first."""
        index = self._index
        made = [
            (sequence, first := sequence.produced_at(index), sequence.produced_at(index + 1) - first)
            for sequence in (() if self._stand_still(iteration.chunks) else self._decoding.values())
        ]
        made += [(sequence, sequence.produced_before, 1) for sequence in self._completing(iteration)]
        self.advance(iteration)
        return [TokenEvent(each.request.request_id, first, each.ended, tokens) for each, first, tokens in made]

    def advance(self, iteration: Iteration) -> list[Sequence]:
        """Complete an iteration or a run; return the sequences that ended, with complete spans."""
        end = self._index
        if not self._stand_still(iteration.chunks):
            end += iteration.repeats
            self._grow_to(end)
            self._note_tokens_to(end)
        starting: list[Sequence] = []
        if iteration.chunks:
            starting += self._completing(iteration)
            for chunk in iteration.chunks:
                self._cache(chunk)
        elif self._estimate is not None:
            self._estimate.decay(iteration.repeats)
        self._index = end
        ended = []
        while self._ends and self._ends[0][0] < end:
            index, order = heapq.heappop(self._ends)
            if self._is_current(index, order):
                ended.append(self._complete(self._decoding[order]))
        ended += [sequence for sequence in starting if self._start_decoding(sequence, iteration.first_index)]
        if self._apart is not None and iteration.chunks:
            self._apart.note(end, self._decoding.values())
        if self._queue:
            self._fetch()
        return ended

    def progress_of(self, request_id: RequestId) -> tuple[list[tuple[int, int]], tuple[int, ...]]:
        """Return the spans and counts of a running request so far; see `Sequence`."""
        return self._by_id[request_id].progress(self._index, self._apart)

    def reusable_blocks(self, hashes: tuple[int, ...]) -> int:
        """Return how many first blocks of a prompt with these hashes can be found here, for KV-aware routers."""
        return next((place for place, content in enumerate(hashes) if not self._pool.holds(content)), len(hashes))

    def soonest_end_s(self, now_s: float) -> float:
        """Return a time before which no current request ends, regardless of later arrivals; infinity without requests.

        Every request needs as many iterations as it has tokens left, and no iteration is shorter than one that only
        decodes the currently decoding sequences.
        """
        steps = self._first_end() - self._index + 1 if self._decoding else math.inf
        for waiting in (self._pending.values(), self._queue):
            for sequence in waiting:
                left = sequence.output_tokens - sequence.produced_before
                steps = min(steps, -(-left // (1 + len(self.settings.acceptance))))
        if math.isinf(steps):
            return math.inf
        line = self.step_time.decode_line(max(1, len(self._decoding)), self._context_tokens)
        return now_s + (steps - 1) * (line.base_s + line.per_context_token_s * self._context_tokens)

    def snapshot(self) -> BatcherState:
        """Return the current values of TensorRT-LLM's metrics."""
        active = len(self._pending) + len(self._decoding)
        scheduled = self._latest.decode_sequences + self._latest.prefill_sequences
        pool = self._pool
        return BatcherState(
            active=active,
            max_requests=self.settings.max_batch_size,
            scheduled=scheduled,
            context=self._latest.prefill_sequences,
            waiting=max(0, active - scheduled),
            queued=len(self._queue),
            generation_requests=self._latest.decode_sequences,
            total_context_tokens=self._latest.prefill_tokens,
            paused=self._paused,
            kv_max_blocks=pool.blocks,
            kv_free_blocks=pool.available,
            kv_used_blocks=pool.used,
            kv_tokens_per_block=pool.tokens_per_block,
            kv_reused_blocks=pool.reused_total,
            iteration_counter=self._iteration(),
            drafted_total=self._draft_steps * self.settings.draft_tokens,
            accepted_total=self._accepted,
            draft_steps_total=self._draft_steps,
        )

    def rest(self) -> None:
        """Note that the engine is idle: nothing is scheduled until the next request."""
        self._latest = StepShape()

    def _schedule(self) -> list[Chunk]:
        """Allocate the blocks of the next iteration, and choose the prompts it computes."""
        if self._queue:
            self._fetch()
        self._onboarded = self._paused = 0
        if self._apart is None:
            self._grow()
        chunks = self._start_chunks() if self._pending else []
        if self._apart is not None and not chunks:
            self._grow()
        return chunks

    def _iteration(self) -> int:
        """Return the number of iterations so far, which is the index of the next one."""
        return self._index + (0 if self._apart is None else len(self._apart))

    def _stand_still(self, chunks: list[Chunk]) -> bool:
        """Whether decoding sequences stand still in an iteration with these prompts."""
        return self._apart is not None and bool(chunks)

    def _fetch(self) -> None:
        """Move requests from the queue to the active set, in order, while there is a slot."""
        while self._queue and len(self._pending) + len(self._decoding) < self.settings.max_batch_size:
            sequence = self._queue.popleft()
            self._pending[sequence.order] = sequence

    def _grow(self) -> None:
        """Allocate the next blocks of decoding sequences; while there are too few, pause the sequence started last."""
        while (count := self._growth.blocks_at(self._index)) > self._pool.available:
            self._pause(next(reversed(self._decoding.values())))
        if self._paused and self._estimate is not None:
            self._estimate.estimate_again(self._decoding.values(), self._index)
        self._grown = self._index + 1
        if count:
            self._take_growth(count)

    def _grow_to(self, end: int) -> None:
        """Allocate the blocks of a run's iterations up to `end`, except the first, which has its own."""
        self._grown = end
        if end > self._index + 1 and (count := self._growth.blocks_between(self._index + 1, end)):
            self._take_growth(count)

    def _note_tokens_to(self, end: int) -> None:
        """Count what an iteration, or a run up to `end`, adds to the decoding sequences."""
        steps = (end - self._index) * len(self._decoding)
        gained = self._growth.tokens_between(self._index, end, len(self._decoding))
        self._context_tokens += gained
        if self._acceptance is not None:
            self._draft_steps += steps
            self._accepted += gained - steps
        self._growth.forget(self._index, end)

    def _take_growth(self, count: int) -> None:
        self._pool.take(count)
        if self.settings.policy != "max_utilization":
            self._pool.reserved -= count

    def _start_chunks(self) -> list[Chunk]:
        decoding = len(self._decoding) if self._apart is None else 0
        budget = self.settings.max_num_tokens - decoding * self.settings.step_tokens
        slots = self.settings.max_batch_size - len(self._decoding)
        if not slots or budget <= 0:
            return []
        chunks = []
        for chunk in pack(self._candidates(), budget, slots, self.settings):
            sequence = chunk.sequence
            if not sequence.has_blocks:
                self._take_prompt(sequence)
            remaining = sequence.prompt_tokens - sequence.cached_tokens
            chunks.append(chunk if chunk.tokens <= remaining else Chunk(sequence, remaining))
        return chunks

    def _candidates(self) -> Iterator[Sequence]:
        if self.settings.policy != "max_utilization":
            return admissible(self._pending.values(), len(self._decoding), self._pool, self.settings)
        if self._estimate is not None:
            pending, decoding = self._pending.values(), self._decoding.values()
            return self._estimate.startable(pending, decoding, self._index, self._pool)
        return fitting(self._pending.values(), self._pool)

    def _take_prompt(self, sequence: Sequence) -> None:
        sequence.has_blocks = True
        if sequence.spans and not sequence.request.prefix_hashes:
            kept = self._pool.take_again(sequence.order, sequence.prompt_tokens)
            sequence.cached_tokens = kept * self.settings.tokens_per_block
        else:
            found = self._pool.take_prompt(sequence.prompt_tokens, sequence.request.prefix_hashes)
            self._onboarded += found.onboarded * self.settings.tokens_per_block
            sequence.shared_blocks = found.reused
            sequence.cached_tokens = found.reused * self.settings.tokens_per_block
        if self.settings.policy != "max_utilization":
            self._pool.reserved += self._to_come(sequence, self._pool.blocks_for(sequence.prompt_tokens))

    def _to_come(self, sequence: Sequence, held: int) -> int:
        return self._pool.blocks_for(sequence.final_tokens + self.settings.draft_tokens) - held

    def _shape(self, chunks: list[Chunk]) -> StepShape:
        decoding, context_tokens = len(self._decoding), self._context_tokens
        if self._stand_still(chunks):
            decoding = context_tokens = 0
        new = attended = 0
        for sequence, tokens in chunks:
            new += tokens
            attended += attended_tokens(tokens, sequence.cached_tokens)
        return StepShape(decoding, context_tokens, len(chunks), new, attended, self._onboarded)

    def _completing(self, iteration: Iteration) -> Iterator[Sequence]:
        """Yield the sequences whose prompt is completed by this iteration."""
        for sequence, tokens in iteration.chunks:
            if sequence.ended is None and sequence.cached_tokens + tokens == sequence.prompt_tokens:
                yield sequence

    def _cache(self, chunk: Chunk) -> None:
        sequence, tokens = chunk
        if sequence.ended is not None:
            return
        sequence.cached_tokens += tokens
        if sequence.request.prefix_hashes:
            self._publish(sequence, sequence.cached_tokens)

    def _publish(self, sequence: Sequence, cached_tokens: int) -> None:
        """Make the full blocks of a sequence available to later prompts."""
        full = min(cached_tokens // self.settings.tokens_per_block, len(sequence.request.prefix_hashes))
        if full > sequence.shared_blocks:
            hashes = sequence.request.prefix_hashes[:full]
            sequence.shared_blocks = self._pool.publish(hashes, sequence.shared_blocks)

    def _start_decoding(self, sequence: Sequence, iteration: int) -> bool:
        """Start decoding a sequence in the next iteration; return whether it has ended instead."""
        del self._pending[sequence.order]
        index = self._index - 1
        sequence.first_iteration = iteration
        sequence.start(index)
        if sequence.last_index == index:
            sequence.leave(index, self._apart)
            sequence.decode_index = -1
            self._end(sequence, sequence.finish_reason)
            return True
        self._decoding[sequence.order] = sequence
        self._context_tokens += sequence.prompt_tokens
        self._growth.start(sequence)
        heapq.heappush(self._ends, (sequence.last_index, sequence.order))
        return False

    def _stop_decoding(self, sequence: Sequence) -> None:
        del self._decoding[sequence.order]
        if self._estimate is not None:
            self._estimate.is_full = False
        self._context_tokens -= sequence.tokens_at(self._index)
        self._growth.stop(sequence, self._index)

    def _first_end(self) -> int:
        while self._ends and not self._is_current(*self._ends[0]):
            heapq.heappop(self._ends)
        return self._ends[0][0]

    def _is_current(self, last_index: int, order: int) -> bool:
        """Whether a heap entry is current: paused and cancelled sequences leave stale entries."""
        sequence = self._decoding.get(order)
        return sequence is not None and sequence.last_index == last_index

    def _complete(self, sequence: Sequence) -> Sequence:
        sequence.leave(sequence.last_index, self._apart)
        if sequence.request.prefix_hashes:
            self._publish(sequence, sequence.tokens_at(self._index))
        self._stop_decoding(sequence)
        self._end(sequence, sequence.finish_reason)
        return sequence

    def _end(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.ended = reason
        del self._by_id[sequence.request.request_id]
        self._release(sequence)

    def _release(self, sequence: Sequence, *, paused: bool = False) -> None:
        if not sequence.has_blocks:
            return
        held = self._pool.blocks_for(self._growth.held_tokens(sequence, self._grown))
        if self.settings.policy != "max_utilization":
            self._pool.reserved -= self._to_come(sequence, held)
        hashes = sequence.request.prefix_hashes
        owner = sequence.order if paused and not hashes else None
        self._pool.release(held, hashes[: sequence.shared_blocks], paused=owner)
        sequence.has_blocks = False

    def _pause(self, sequence: Sequence) -> None:
        """Free a sequence's blocks; it will restart with its output so far as part of its prompt.

        What is left of its blocks by then is not computed again; see `KvPool`.
        """
        self._stop_decoding(sequence)
        self._release(sequence, paused=True)
        produced = sequence.produced_at(self._index)
        sequence.leave(self._index - 1, self._apart)
        sequence.prompt_tokens = sequence.request.prompt_tokens + produced
        sequence.produced_before = produced
        sequence.cached_tokens = sequence.shared_blocks = 0
        sequence.decode_index = sequence.first_new_index = -1
        self._pending = {sequence.order: sequence, **self._pending}
        self._paused += 1
