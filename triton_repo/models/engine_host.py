"""Shared by the models of all emulated engines: a batcher on the wall clock, and threads that send its tokens.

A Triton request may consist of several sequences: rows of its batch, or return sequences. Its final response is the one
that ends its last sequence.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from engines.emulator import Batcher, BatcherSettings, Iteration, QueueFullError, Request, RequestError, TokenEvent
from engines.manifest import EngineManifest, StepTimeChoice
from engines.steptime import power_model_for, step_time_for
from triton_repo.models.engine_clock import EngineClock
from triton_repo.models.engine_metrics import EngineMetrics
from triton_repo.models.inputs import RefusedError
from triton_repo.models.reply import Array, Reply
from triton_repo.models.sending import has_left, send_response
from triton_repo.models.server_end import end_with_server
from triton_repo.models.tensor_model import ServedModel

SENDER_THREADS = 3  # sending blocks: two threads keep up with a full server, a third covers a slow reader
STOPPED = "the emulated engine has stopped after a failed step; the server's log has the reason"
STEP_FAILED = "emulated engine: a step failed, its traceback is in this log; every request ends with an error"


@dataclass(slots=True)
class Sequence:
    """A sequence in progress.

    Attributes:
        made: Tokens delivered so far.
        responses: Steps that delivered them: fewer than `made` with speculation.
        first_scheduled_ns: When its prompt was first computed; monotonic wall time, like all times here.
        reused_blocks: KV blocks of its prompt found in the cache.
    """

    number: int
    call: Call
    prompt: Array
    reply: Reply
    limit: int
    batch_index: int = 0
    sequence_index: int = 0
    made: int = 0
    responses: int = 0
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    reused_blocks: int = 0
    output: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Call:
    """A Triton request in progress: its response sender, used as `sending.Answered` says, and its open sequences.

    Attributes:
        respond: Makes the response to a step's tokens of a sequence, or (none) to its end; returns None if nothing is
            sent yet.
    """

    client_id: str
    sender: Any
    respond: Callable[[Sequence, list[int], bool], Any]
    arrival_ns: int
    lane: int = 0
    open: set[int] = field(default_factory=set)
    finished: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


Batches = queue.SimpleQueue[list[tuple[Sequence, TokenEvent]] | None]


class EngineHost:
    """Runs the batcher of one emulated engine and sends its tokens.

    Args:
        backend: Triton's own module.
        settings: How the engine runs.
        time_scale: Wall seconds per engine second.
        period_s: Interval between metric updates and checks for cancelled requests.
        cancelled: The final response to a cancelled request; None: an empty one.
        cpp_backend: Whether to publish the metrics of TensorRT-LLM's C++ backend.
    """

    def __init__(
        self,
        backend: Any,
        manifest: EngineManifest,
        settings: BatcherSettings,
        *,
        time_scale: float,
        period_s: float,
        labels: dict[str, str],
        cancelled: Callable[[], Any] | None = None,
        cpp_backend: bool = True,
    ) -> None:
        self.settings = settings
        self.vocabulary = manifest.model.vocab_size
        self._backend = backend
        self._final = backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._cancelled = cancelled
        self._numbers = itertools.count()
        self._sequences: dict[int, Sequence] = {}
        self._by_client_id: dict[str, Call] = {}
        self._lock = threading.Lock()
        self._lanes: list[Batches] = [queue.SimpleQueue() for _ in range(SENDER_THREADS)]
        self._senders = [
            threading.Thread(target=self._send_lane, args=(lane,), name="sender", daemon=True) for lane in self._lanes
        ]
        # The server around this engine is real and takes real time: only the engine's share is emulated.
        alone = manifest.model_copy(update={"step_time": _without_server(manifest.step_time)})
        batcher = Batcher(settings, step_time_for(alone))
        self._clock = EngineClock(
            batcher,
            time_scale,
            self._dispatch,
            self._scheduled,
            self._clock_failed,
            power=power_model_for(manifest),
        )
        self._metrics = EngineMetrics(backend, labels, cpp_backend=cpp_backend)
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, args=(period_s,), name="watcher", daemon=True)

    def start(self) -> None:
        """Start the clock and the other threads."""
        end_with_server()
        for sender in self._senders:
            sender.start()
        self._watcher.start()
        self._clock.start()

    def close(self) -> None:
        """Stop the clock, the watcher and the senders."""
        self._stopping.set()
        self._clock.stop()
        for lane in self._lanes:
            lane.put(None)
        for thread in (self._watcher, *self._senders):
            thread.join(timeout=5)

    def room_for(self, prompt: Array) -> int:
        """Return the longest possible reply to a prompt within the engine's limits, in tokens."""
        return max(0, self.settings.longest_sequence_tokens - len(prompt))

    def sequence(self, call: Call, prompt: Array, limit: int, reply: Reply) -> Sequence:
        """Return a new sequence of a call, not yet queued."""
        return Sequence(next(self._numbers), call, prompt, reply, limit)

    def submit(self, call: Call, sequences: list[Sequence]) -> None:
        """Queue the sequences of one call, all or none.

        Raises:
            RequestError: The engine refuses one of them.
            RefusedError: The engine has stopped.
        """
        if not self._clock.is_running():
            raise RefusedError(STOPPED)
        largest = self.settings.max_queue_size
        if largest and len(sequences) > 1 and self._clock.state()[0].queued + len(sequences) > largest:
            raise QueueFullError(largest)
        call.lane = sequences[0].number % SENDER_THREADS
        with self._lock:
            for sequence in sequences:
                self._sequences[sequence.number] = sequence
                call.open.add(sequence.number)
            if call.client_id:
                self._by_client_id[call.client_id] = call
        try:
            for sequence in sequences:
                self._clock.submit(self._request(sequence))
        except RequestError:
            with call.lock:
                call.finished = True  # sequences queued before it may already have produced tokens
            self._abandon(call)
            raise

    def stop(self, client_id: str) -> None:
        """End the request with a client's id, if it exists."""
        call = self._by_client_id.get(client_id)
        if call is not None and (last := self._abandon(call)):
            self._end(last)

    def _request(self, sequence: Sequence) -> Request:
        settings = self.settings
        hashes: tuple[int, ...] = ()
        if settings.kv_reuse:  # the reply's blocks too: a conversation's next prompt starts with both
            ids = np.concatenate([sequence.prompt, sequence.reply.tokens(sequence.limit)])
            hashes = prefix_hashes(ids, settings.tokens_per_block)
        return Request(
            sequence.number,
            len(sequence.prompt),
            sequence.limit,
            prefix_hashes=hashes,
            ends_after_tokens=sequence.reply.ends_after,
        )

    def _scheduled(self, iteration: Iteration) -> None:
        """Record when prompts are first computed, and how many of their blocks were found in the cache."""
        now = time.monotonic_ns()
        for chunk in iteration.chunks:
            sequence = self._sequences.get(int(chunk.sequence.request.request_id))
            if sequence is not None and not sequence.first_scheduled_ns:
                sequence.first_scheduled_ns = now
                sequence.reused_blocks = chunk.sequence.shared_blocks

    def _dispatch(self, events: list[TokenEvent]) -> None:
        """Hand a step's tokens to the sender threads; all tokens of a request use the same thread, in order."""
        batches: list[list[tuple[Sequence, TokenEvent]]] = [[] for _ in self._lanes]
        with self._lock:
            for event in events:
                sequence = self._sequences.get(int(event.request_id))
                if sequence is not None:
                    batches[sequence.call.lane].append((sequence, event))
                    if event.is_final:
                        del self._sequences[sequence.number]
        for lane, batch in zip(self._lanes, batches, strict=True):
            if batch:
                lane.put(batch)

    def _send_lane(self, batches: Batches) -> None:
        """Send what comes to a lane until its end."""
        while (batch := batches.get()) is not None:
            for sequence, event in batch:
                with sequence.call.lock:
                    if not sequence.call.finished:
                        self._send_or_drop(sequence, event)

    def _send_or_drop(self, sequence: Sequence, event: TokenEvent) -> None:
        """Send a token; where Triton refuses it, end that one call and say so: the others go on."""
        try:
            self._send(sequence, event)
        except self._backend.TritonModelException as error:
            sequence.call.finished = True
            self._backend.Logger.log_error(f"emulated engine: a response was not sent: {error}")
            self._abandon(sequence.call)

    def _clock_failed(self) -> None:
        """End every request: no step will be taken for them."""
        self._backend.Logger.log_error(STEP_FAILED)
        for sequence in list(self._sequences.values()):
            call = sequence.call
            with call.lock:
                if not call.finished:
                    call.finished = True
                    error = self._backend.InferenceResponse(error=self._backend.TritonError(STOPPED))
                    call.sender.send(error, flags=self._final)
            self._forget(call)

    def _send(self, sequence: Sequence, event: TokenEvent) -> None:
        call = sequence.call
        if event.token_index == 0:
            sequence.first_token_ns = time.monotonic_ns()
        places = range(event.token_index, event.token_index + event.tokens)
        tokens = [token for place in places if (token := sequence.reply.token(place)) is not None]
        sequence.made += len(tokens)
        sequence.responses += 1
        response = call.respond(sequence, tokens, event.is_final)
        if event.is_final:
            call.open.discard(sequence.number)
            call.finished = not call.open
        flags = self._final if call.finished else 0
        if response is not None:
            send_response(call.sender, response, flags)
        elif call.finished:
            call.sender.send(flags=flags)
        if call.finished:
            self._metrics.ended(prompt_tokens=len(sequence.prompt), output_tokens=sequence.made)
            self._forget(call)

    def _watch(self, period_s: float) -> None:
        """Publish metrics and check for cancelled requests every `period_s`."""
        while not self._stopping.wait(period_s):
            self._metrics.publish(*self._clock.latest_iteration(), energy_j=self._clock.energy_j())
            for call in {id(sequence.call): sequence.call for sequence in list(self._sequences.values())}.values():
                if has_left(call) and (last := self._abandon(call)):
                    self._end(last)

    def _abandon(self, call: Call) -> Sequence | None:
        """Remove a call's sequences from the engine; return the last one that was running."""
        last = None
        for number in list(call.open):
            cancelled = self._clock.cancel(number)
            with self._lock:
                sequence = self._sequences.pop(number, None)
            last = sequence if cancelled else last
        self._forget(call)
        return last

    def _end(self, last: Sequence) -> None:
        """End a cancelled request's reply; its tokens that are still queued for sending are dropped."""
        call = last.call
        with call.lock:
            if not call.finished:
                call.finished = True
                self._metrics.ended(prompt_tokens=len(last.prompt), output_tokens=last.made)
                if self._cancelled is None:
                    call.sender.send(flags=self._final)
                else:
                    call.sender.send(self._cancelled(), flags=self._final)

    def _forget(self, call: Call) -> None:
        with self._lock:
            if self._by_client_id.get(call.client_id) is call:
                del self._by_client_id[call.client_id]


def times_ns(sequence: Sequence) -> dict[str, int]:
    """Return a sequence's times of arrival, first computation and tokens: wall time on the server's steady clock.

    Durations of an emulated engine are multiplied by its time scale, and so are these.
    """
    return {
        "arrival_time_ns": sequence.call.arrival_ns,
        "first_scheduled_time_ns": sequence.first_scheduled_ns,
        "first_token_time_ns": sequence.first_token_ns,
        "last_token_time_ns": time.monotonic_ns(),
    }


class Drafts(NamedTuple):
    """The draft tokens of a sequence so far: proposed, and accepted."""

    total: int
    accepted: int

    @property
    def rate(self) -> float:
        """Share of the proposed ones that were accepted; 0 without speculation."""
        return self.accepted / self.total if self.total else 0.0


def drafts_of(sequence: Sequence, draft_tokens: int) -> Drafts:
    """Return a sequence's drafts: every step but the prompt's own verified `draft_tokens` of them."""
    steps = max(0, sequence.responses - 1)
    return Drafts(steps * draft_tokens, max(0, sequence.made - sequence.responses) if draft_tokens else 0)


def new_blocks(sequence: Sequence, tokens_per_block: int) -> int:
    """Return the number of KV blocks a sequence allocated, beyond those found in the cache."""
    tokens = len(sequence.prompt) + sequence.made
    return -(-tokens // tokens_per_block) - sequence.reused_blocks


def prefix_hashes(ids: np.ndarray[Any, Any], tokens_per_block: int) -> tuple[int, ...]:
    """Return one hash per full block of a prompt and its reply, each covering all blocks before it."""
    hashes: list[int] = []
    before = 0
    for begin in range(0, len(ids) - tokens_per_block + 1, tokens_per_block):
        before = hash((before, ids[begin : begin + tokens_per_block].tobytes()))
        hashes.append(before)
    return tuple(hashes)


def _without_server(choice: StepTimeChoice) -> StepTimeChoice:
    """Return step times with the server's share of the engine's loop, without what the real server here adds.

    The Triton around this model is real, so network, tokenizer and streaming have their real cost. TensorRT-LLM's C++
    backend, whose callbacks block the engine's loop, is not here; its share of each iteration is emulated.
    """
    if choice.host is None:
        return choice
    return choice.model_copy(
        update={"host": choice.host.model_copy(update={"request_s": 0.0, "latency_s": 0.0, "stream_token_s": 0.0})}
    )


class EmulatedModel(ServedModel):
    """A Triton Python-backend model around an engine's host."""

    refusals = (RequestError, *ServedModel.refusals)
    _host: EngineHost

    def finalize(self) -> None:
        """Stop the engine."""
        self._host.close()
