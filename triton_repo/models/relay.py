"""The relayed `tensorrt_llm` model: TensorRT-LLM's tensors in front of a server that runs a real model.

Prompts go to the server as token ids, and each of its tokens is sent on at once. Latencies measured through this model
are the server's, plus those of Triton and of this relay. Inputs without a counterpart in the server's API are
refused. `return_perf_metrics` has no effect: the API does not report when the server began a prompt.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from triton_repo.models.completions import CompletionsServer, Exchange, RelayError
from triton_repo.models.inputs import Inputs, RefusedError
from triton_repo.models.parameters import parameters_of
from triton_repo.models.reply import Words, prompt_words
from triton_repo.models.sending import has_left, send_response
from triton_repo.models.server_end import end_with_server
from triton_repo.models.tensor_model import NOT_DECOUPLED_STREAM, REFUSED_FLAGS, REFUSED_INPUTS, TensorModel

MAX_REQUESTS = 1024  # each is a thread and a connection
ACTIVE, MAX = "active", "max"
# TensorRT-LLM's gauge of requests: draining and the pages read it.
FAMILY, LABEL = "nv_trt_llm_request_metrics", "request_type"
# Sampling inputs, and the server's names of them.
WHOLE = {"runtime_top_k": "top_k", "min_tokens": "min_tokens", "seed": "seed"}
REAL = {
    "temperature": "temperature",
    "runtime_top_p": "top_p",
    "repetition_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}


@dataclass(slots=True)
class Relayed:
    """One request in flight.

    Attributes:
        stop_words: Token sequences that end the reply and are part of it.
        finished: Set with `lock` held. The sender must not be used afterwards.
    """

    client_id: str
    sender: Any
    exchange: Exchange
    streaming: bool
    prompt: list[int]
    echo_prompt: bool
    counts: tuple[bool, bool]
    end_id: int | None
    stop_words: Words
    made: list[int] = field(default_factory=list)
    finished: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class RelayModel(TensorModel):
    """The model, as its entry point hands it to Triton."""

    def initialize(self, args: dict[str, str]) -> None:
        """Look for the server and its model; without them Triton does not load this model."""
        config = json.loads(args["model_config"])
        parameters = parameters_of(config)
        self._configure(config)
        self._vocabulary = int(parameters["vocabulary"])
        self._model = parameters["engine_model"]
        self._server = CompletionsServer(parameters["engine_url"])
        if self._model not in (names := self._server.models()):
            raise RelayError(f"{parameters['engine_url']} serves {', '.join(names) or 'no model'}, not {self._model}")
        self._final = self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL
        self._running: dict[int, Relayed] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        labels = {"model": args["model_name"], "version": args["model_version"]}
        gauges = self.backend.MetricFamily
        self._family = gauges(name=FAMILY, description="Requests relayed", kind=gauges.GAUGE)
        # Triton publishes a metric as long as its object lives.
        self._active, self._max = (self._family.Metric(labels={LABEL: kind, **labels}) for kind in (ACTIVE, MAX))
        self._max.set(float(config.get("max_batch_size", 0)))
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watcher.start()
        end_with_server()

    def finalize(self) -> None:
        """Cancel the requests in flight."""
        self._stopping.set()
        for call in list(self._running.values()):
            call.exchange.cancel()
        self._watcher.join(timeout=5)

    def _begin(self, inputs: Inputs, client_id: str, sender: Any) -> None:
        call = self._call(inputs, client_id, sender)
        with self._lock:
            if len(self._running) >= MAX_REQUESTS:
                raise RefusedError(f"{MAX_REQUESTS} requests are in flight, the most that are relayed at a time")
            self._running[id(call)] = call
        threading.Thread(target=self._relay, args=(call,), name="relay", daemon=True).start()

    def _refuse(self, inputs: Inputs) -> None:
        if inputs.rows > 1:
            raise RefusedError("a batch of several prompts is not relayed; send a request for each")
        if not self._decoupled and inputs.flag("streaming"):
            raise RefusedError(NOT_DECOUPLED_STREAM)
        for name in ("beam_width", "num_return_sequences"):
            if (inputs.number(name) or 1) > 1:
                raise RefusedError(f"{name} above 1 is not relayed")
        for name in REFUSED_FLAGS:
            if inputs.flag(name):
                raise RefusedError(f"{name} is not relayed: the server behind does not return it by token id")
        for name in REFUSED_INPUTS:
            if inputs.size(name):
                raise RefusedError(f"{name} is not relayed")
        if any(prompt_words(inputs.numbers("bad_words_list", 0))):  # preprocessing sends one of no words
            raise RefusedError("bad_words_list is not relayed: the server behind takes words, not token ids")

    def _call(self, inputs: Inputs, client_id: str, sender: Any) -> Relayed:
        prompt = inputs.prompt(0, self._vocabulary).tolist()
        output_tokens = self._output_tokens(inputs)
        if len(prompt) > self._most_prompt:
            raise RefusedError(f"the prompt has {len(prompt)} tokens; at most {self._most_prompt:g} are allowed here")
        end_id = inputs.number("end_id")
        ends = end_id is not None and end_id >= 0
        options: dict[str, Any] = {"ignore_eos": True, "stop_token_ids": [end_id] if ends else []}
        options |= {theirs: inputs.number(ours) for ours, theirs in WHOLE.items() if inputs.size(ours)}
        options |= {theirs: inputs.real(ours) for ours, theirs in REAL.items() if inputs.size(ours)}
        if options.get("top_k") == 1 or not (options.get("top_k") or options.get("top_p")):
            options["temperature"] = 0.0  # TensorRT-LLM is greedy unless top k or top p says otherwise
        return Relayed(
            client_id,
            sender,
            self._server.start(self._model, prompt, output_tokens, options),
            streaming=inputs.flag("streaming"),
            prompt=prompt,
            echo_prompt=self._echoes_prompt(inputs),
            counts=(inputs.flag("return_num_input_tokens"), inputs.flag("return_num_output_tokens")),
            end_id=end_id if ends else None,
            stop_words=prompt_words(inputs.numbers("stop_words_list", 0)),
        )

    def _relay(self, call: Relayed) -> None:
        """Send the reply's tokens as they arrive; the last response carries the final flag."""
        try:
            for piece in call.exchange.pieces():
                tokens, is_stopped = self._kept(call, list(piece.tokens), piece.finish_reason)
                call.made += tokens
                is_final = is_stopped or piece.finish_reason is not None
                self._respond(call, tokens, is_final=is_final)
                if is_final:
                    return
            self._respond(call, [], is_final=True)
        except RelayError as error:
            self._end(call, str(error))
        finally:
            call.exchange.cancel()
            with self._lock:
                self._running.pop(id(call), None)

    def _kept(self, call: Relayed, tokens: list[int], reason: str | None) -> tuple[list[int], bool]:
        """Return the tokens to send, without an end token, and whether a stop word ends the reply."""
        if reason == "stop" and call.end_id is not None and tokens[-1:] == [call.end_id]:
            tokens = tokens[:-1]
        for count in range(1, len(tokens) + 1) if call.stop_words else ():
            so_far = call.made + tokens[:count]
            if any(word and tuple(so_far[-len(word) :]) == word for word in call.stop_words):
                return tokens[:count], True
        return tokens, False

    def _respond(self, call: Relayed, tokens: list[int], *, is_final: bool) -> None:
        if not call.streaming:
            if not is_final:
                return
            tokens = [*(call.prompt if call.echo_prompt else []), *call.made]
        elif not tokens and not is_final:
            return
        tensor = self.backend.Tensor
        outputs = [
            tensor("output_ids", np.array([[tokens]], np.int32)),
            tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
        ]
        for name, value, asked in zip(
            ("num_input_tokens", "num_output_tokens"), (len(call.prompt), len(tokens)), call.counts, strict=True
        ):
            if asked:
                outputs.append(tensor(name, np.array([[value]], np.int32)))
        self._send(call, self.backend.InferenceResponse(outputs), is_final=is_final)

    def _end(self, call: Relayed, message: str) -> None:
        error = self.backend.InferenceResponse(error=self.backend.TritonError(message))
        self._send(call, error, is_final=True)

    def _send(self, call: Relayed, response: Any, *, is_final: bool) -> None:
        with call.lock:
            if not call.finished:
                call.finished = is_final
                send_response(call.sender, response, self._final if is_final else 0)

    def _watch(self) -> None:
        """Publish the number of requests in flight and cancel those whose clients have left, at a fixed interval."""
        published = -1
        while not self._stopping.wait(self._period_s):
            calls = list(self._running.values())
            if len(calls) != published:
                published = len(calls)
                self._active.set(float(published))
            for call in calls:
                if has_left(call):
                    self._finish(call)

    def _cancel(self, client_id: str) -> None:
        for call in [call for call in list(self._running.values()) if call.client_id == client_id]:
            self._finish(call)

    def _finish(self, call: Relayed) -> None:
        with call.lock:
            if not call.finished:
                call.finished = True
                call.sender.send(flags=self._final)
        call.exchange.cancel()
