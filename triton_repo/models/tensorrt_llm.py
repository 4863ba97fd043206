"""The emulated `tensorrt_llm` model: a batcher on the wall clock behind TensorRT-LLM's tensors and metrics.

Only time and bookkeeping are emulated. The tokens of a reply are the prompt's own, over again, to the full length
asked for; sampling parameters are accepted and change nothing; what needs a model's numbers (logits, log
probabilities, several beams or sequences) is refused.
"""

from __future__ import annotations

import itertools
import json
import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engines.emulator.request import Request, RequestError, TokenEvent
from engines.emulator.settings import batcher_for
from engines.files import read_json
from engines.manifest import EngineManifest
from triton_repo.models.engine_clock import EngineClock
from triton_repo.models.engine_metrics import EngineMetrics

SENDER_THREADS = 3  # sending blocks; two keep up with a full server, a third covers a slow reader
REFUSED_FLAGS = ("return_log_probs", "return_context_logits", "return_generation_logits")
SINGLE = ("beam_width", "num_return_sequences")


@dataclass(slots=True)
class Job:
    """One request on its way: where its tokens go and what they are.

    Whoever touches `sender` holds `lock` and has seen that `finished` is not set: after the final response Triton has
    freed what is behind the sender, and merely asking it whether it was cancelled ends the server's process.
    """

    number: int
    client_id: str
    sender: Any
    prompt: np.ndarray[Any, Any]
    streaming: bool
    echo_prompt: bool
    extras: dict[str, bool]
    arrival_ns: int
    first_token_ns: int = 0
    made: int = 0
    finished: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    lane: int = 0
    output: list[int] = field(default_factory=list)


class EmulatedEngineModel:
    """Triton Python-backend model; `backend` is Triton's own module, set by the entry point."""

    backend: Any = None

    def initialize(self, args: dict[str, str]) -> None:
        """Load the manifest beside the model and start the clock."""
        config = json.loads(args["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        manifest = read_json(folder / parameters["emulator_manifest"], EngineManifest)
        batcher = batcher_for(manifest, max_queue_size=int(parameters["emulator_max_queue_size"]))
        self._tokens_per_block = manifest.kv_cache.tokens_per_block
        self._reuse = manifest.runtime.kv_reuse
        self._numbers = itertools.count()
        self._jobs: dict[int, Job] = {}
        self._by_client_id: dict[str, int] = {}
        self._lock = threading.Lock()
        self._lanes: list[queue.SimpleQueue[list[tuple[Job, TokenEvent]] | None]] = [
            queue.SimpleQueue() for _ in range(SENDER_THREADS)
        ]
        self._senders = [
            threading.Thread(target=self._send_lane, args=(lane,), name="sender", daemon=True) for lane in self._lanes
        ]
        self._clock = EngineClock(batcher, float(parameters["emulator_time_scale"]), self._dispatch)
        labels = {"model": args["model_name"], "version": args["model_version"]}
        self._metrics = EngineMetrics(self.backend, labels)
        self._stopping = threading.Event()
        period_ms = min(int(parameters["stats_check_period_ms"]), int(parameters["cancellation_check_period_ms"]))
        self._watcher = threading.Thread(target=self._watch, args=(period_ms / 1000,), name="watcher", daemon=True)
        for thread in (*self._senders, self._watcher):
            thread.start()
        self._clock.start()

    def execute(self, requests: list[Any]) -> None:
        """Queue requests; their tokens are sent by the sender threads as the clock makes them."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except (RequestError, _RefusedError) as error:
                self._send_error(sender, str(error))

    def finalize(self) -> None:
        """Stop the clock, the watcher and the senders."""
        self._stopping.set()
        self._clock.stop()
        for lane in self._lanes:
            lane.put(None)
        for thread in (*self._senders, self._watcher):
            thread.join(timeout=5)

    def _accept(self, request: Any, sender: Any) -> None:
        inputs = _Inputs(self.backend, request)
        client_id = request.request_id()
        if inputs.flag("stop"):
            self._stop(client_id, sender)
            return
        prompt = inputs.prompt()
        output_tokens = inputs.number("request_output_len")
        if output_tokens is None:
            raise _RefusedError("request_output_len is not present in the request")
        if output_tokens < 1:
            raise _RefusedError(f"request_output_len is {output_tokens}; at least 1 is needed")
        inputs.refuse_unemulated()
        extras = {name: inputs.flag(f"return_{name}") for name in ("num_input_tokens", "num_output_tokens")}
        extras["perf_metrics"] = inputs.flag("return_perf_metrics")
        job = Job(
            next(self._numbers),
            client_id,
            sender,
            prompt,
            inputs.flag("streaming"),
            not inputs.flag("exclude_input_in_output"),
            extras,
            time.monotonic_ns(),
        )
        job.lane = job.number % SENDER_THREADS
        with self._lock:
            self._jobs[job.number] = job
            if client_id:
                self._by_client_id[client_id] = job.number
        said = np.concatenate([prompt, np.resize(prompt, output_tokens)])  # prompt and reply: later prompts repeat both
        hashes = prefix_hashes(said, self._tokens_per_block) if self._reuse else ()
        try:
            self._clock.submit(Request(job.number, len(prompt), output_tokens, prefix_hashes=hashes))
        except RequestError:
            self._forget(job)
            raise
        self._metrics.saw_prompt(len(prompt))

    def _stop(self, client_id: str, sender: Any) -> None:
        """End the request of this id, as TensorRT-LLM's backend does for `stop`: an empty final answer to both."""
        if not client_id:
            raise _RefusedError("Trying to stop a request but request ID is not provided")
        number = self._by_client_id.get(client_id)
        if number is not None and self._clock.cancel(number):
            job = self._jobs[number]
            self._forget(job)
            self._finish_empty(job)
        sender.send(flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _dispatch(self, events: list[TokenEvent]) -> None:
        """Hand a step's tokens to the senders; all of one request go by the same one, in order."""
        batches: list[list[tuple[Job, TokenEvent]]] = [[] for _ in self._lanes]
        with self._lock:
            for event in events:
                job = self._jobs.get(int(event.request_id))
                if job is not None:
                    batches[job.lane].append((job, event))
                    if event.is_final:
                        self._drop(job)
        for lane, batch in zip(self._lanes, batches, strict=True):
            if batch:
                lane.put(batch)

    def _send_lane(self, lane: queue.SimpleQueue[list[tuple[Job, TokenEvent]] | None]) -> None:
        while (batch := lane.get()) is not None:
            for job, event in batch:
                with job.lock:
                    if not job.finished:
                        self._send_token(job, event)

    def _send_token(self, job: Job, event: TokenEvent) -> None:
        job.made += 1
        if event.token_index == 0:
            job.first_token_ns = time.monotonic_ns()
        final = self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL if event.is_final else 0
        token = int(job.prompt[event.token_index % len(job.prompt)])
        if job.streaming:
            job.sender.send(self._response(job, [token], event.is_final), flags=final)
        else:
            job.output.append(token)
            if event.is_final:
                tokens = [*(job.prompt.tolist() if job.echo_prompt else []), *job.output]
                job.sender.send(self._response(job, tokens, True), flags=final)
        if event.is_final:
            job.finished = True
            self._metrics.saw_reply(job.made)

    def _response(self, job: Job, tokens: list[int], final: bool) -> Any:
        tensor = self.backend.Tensor
        outputs = [
            tensor("output_ids", np.array([[tokens]], np.int32)),
            tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
        ]
        if any(job.extras.values()):
            outputs += self._extras(job, final)
        return self.backend.InferenceResponse(outputs)

    def _extras(self, job: Job, final: bool) -> list[Any]:
        tensor = self.backend.Tensor
        outputs = []
        if job.extras["num_input_tokens"]:
            outputs.append(tensor("num_input_tokens", np.array([[len(job.prompt)]], np.int32)))
        if job.extras["num_output_tokens"]:
            outputs.append(tensor("num_output_tokens", np.array([[job.made]], np.int32)))
        if job.extras["perf_metrics"] and final:
            times = (("arrival_time_ns", job.arrival_ns), ("first_token_time_ns", job.first_token_ns))
            outputs += [tensor(name, np.array([[value]], np.int64)) for name, value in times]
            outputs.append(tensor("last_token_time_ns", np.array([[time.monotonic_ns()]], np.int64)))
        return outputs

    def _watch(self, period_s: float) -> None:
        """Publish metrics and look for cancelled requests, at most every `period_s`."""
        while not self._stopping.wait(period_s):
            self._metrics.publish(*self._clock.state())
            for job in list(self._jobs.values()):
                with job.lock:
                    cancelled = not job.finished and job.sender.is_cancelled()
                if cancelled and self._clock.cancel(job.number):
                    self._forget(job)
                    self._finish_empty(job)

    def _finish_empty(self, job: Job) -> None:
        """End a cancelled request's reply; tokens still on their way to a sender are dropped there."""
        with job.lock:
            if not job.finished:
                job.finished = True
                job.sender.send(flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _forget(self, job: Job) -> None:
        with self._lock:
            self._drop(job)

    def _drop(self, job: Job) -> None:
        self._jobs.pop(job.number, None)
        if self._by_client_id.get(job.client_id) == job.number:
            del self._by_client_id[job.client_id]

    def _send_error(self, sender: Any, message: str) -> None:
        error = self.backend.InferenceResponse(error=self.backend.TritonError(message))
        sender.send(error, flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class _RefusedError(Exception):
    """A request that the emulated engine cannot answer."""


class _Inputs:
    """Typed reads of one request's tensors."""

    def __init__(self, backend: Any, request: Any) -> None:
        self._backend = backend
        self._request = request

    def _get(self, name: str) -> Any:
        return self._backend.get_input_tensor_by_name(self._request, name)

    def number(self, name: str) -> int | None:
        tensor = self._get(name)
        return None if tensor is None else int(tensor.as_numpy().reshape(-1)[0])

    def flag(self, name: str) -> bool:
        return bool(self.number(name))

    def prompt(self) -> np.ndarray[Any, Any]:
        tensor = self._get("input_ids")
        if tensor is None:
            raise _RefusedError("input_ids or encoder_input_features is not present in the request")
        ids = tensor.as_numpy().reshape(-1)
        length = self.number("input_lengths")
        if length is not None and 0 < length < len(ids):
            ids = ids[:length]
        if len(ids) == 0:
            raise _RefusedError("input_ids is empty")
        return np.array(ids)

    def refuse_unemulated(self) -> None:
        for name in REFUSED_FLAGS:
            if self.flag(name):
                raise _RefusedError(f"{name} is not emulated: an emulated engine has no numbers behind its tokens")
        for name in SINGLE:
            if (self.number(name) or 1) > 1:
                raise _RefusedError(f"{name} above 1 is not emulated")


def prefix_hashes(said: np.ndarray[Any, Any], tokens_per_block: int) -> tuple[int, ...]:
    """Return one hash for each full block of a prompt and its reply, each covering the blocks before it."""
    hashes: list[int] = []
    before = 0
    for begin in range(0, len(said) - tokens_per_block + 1, tokens_per_block):
        before = hash((before, said[begin : begin + tokens_per_block].tobytes()))
        hashes.append(before)
    return tuple(hashes)
