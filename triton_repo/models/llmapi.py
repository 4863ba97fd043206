"""The emulated model of TensorRT-LLM's LLM API: text in, text out, one Triton model.

It behaves like upstream's model: each streamed response contains the whole text so far, the values of
`sampling_param_return_perf_metrics` are text, a cancelled request ends with an error. As in the emulated engine of the
in-flight batching models, tokens are the prompt's own, and only time is emulated.

Source:
    TensorRT-LLM, triton_backend/all_models/llmapi/tensorrt_llm/1/model.py and helpers.py, 1.0 to 1.2; LoRA inputs: PR
    14079 (1.3).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from triton_repo.models.engine_host import Call, EmulatedModel, EngineHost, Sequence, drafts_of, new_blocks, times_ns
from triton_repo.models.engine_settings import llmapi_settings, model_files
from triton_repo.models.inputs import RefusedError
from triton_repo.models.limits import InputLimits, LimitError
from triton_repo.models.reply import Array, Reply, Rules
from triton_repo.models.text import Detokenizer, TextStream, load_tokenizer, special_tokens

DEFAULT_MAX_TOKENS = 32  # defaults of the LLM API's SamplingParams
CANCELLED = "Request cancelled by client"
NO_STREAMING = "Streaming is only supported in decoupled mode."
NO_ID = "A request id must be provided for request cancellation"
# Inputs that need a real model, and the only value that is accepted.
REFUSED = {"sampling_param_best_of": 1, "return_cumulative_logprob": 0}
ADAPTER = ("lora_id", "lora_name", "lora_path")  # required together
STATS_PERIOD_S = 0.1


@dataclass(slots=True)
class ReplyOptions:
    """What a request asks for, and the text of its reply so far.

    Attributes:
        stop: Strings that end the text; they are not part of it.
        stopped_by: The one that ended it.
    """

    streaming: bool
    finish_reason: bool
    stop_reason: bool
    performance: bool
    stop: list[str]
    stream: TextStream
    text: str = ""
    stopped_by: str | None = field(default=None)


class EmulatedLlmApiModel(EmulatedModel):
    """The model, as its entry point hands it to Triton."""

    refusals = (*EmulatedModel.refusals, LimitError)
    error_prefix = "Error generating request: "

    def initialize(self, args: dict[str, str]) -> None:
        """Load model.yaml, manifest and tokenizer, and start the clock."""
        _, parameters, folder, manifest = model_files(args)
        document = yaml.safe_load((folder / "model.yaml").read_text(encoding="utf-8"))
        settings = document["triton_config"]
        tokenizer_folder = Path(parameters["tokenizer_dir"])
        self._tokenizer = load_tokenizer(tokenizer_folder)
        self._end_id = special_tokens(tokenizer_folder, self._tokenizer).end_id
        self._detokenizer = Detokenizer(self._tokenizer)
        self._decoupled = bool(settings["decoupled"])
        self._limits = InputLimits(parameters, self._tokenizer)
        self._host = EngineHost(
            self.backend,
            manifest,
            llmapi_settings(document, manifest),
            time_scale=float(parameters["emulator_time_scale"]),
            period_s=min(STATS_PERIOD_S, int(settings.get("cancellation_check_period_ms", 100)) / 1000),
            labels={"model": args["model_name"], "version": args["model_version"]},
            cancelled=self._cancelled,
            cpp_backend=False,
        )
        self._host.start()

    def _accept(self, request: Any, sender: Any) -> None:
        inputs = _Inputs(self.backend, request)
        client_id = request.request_id()
        if inputs.scalar("stop"):
            self._stop(client_id, sender)
            return
        prompt = self._prompt(inputs)
        output_tokens = self._output_tokens(inputs)
        _require_whole_adapter(inputs)
        options = self._options(inputs)
        call = Call(client_id, sender, partial(self._respond, options), time.monotonic_ns())
        limit = min(output_tokens, max(1, self._host.room_for(prompt)))
        reply = self._reply(prompt, limit, options)
        self._host.submit(call, [self._host.sequence(call, prompt, output_tokens, reply)])

    def _prompt(self, inputs: _Inputs) -> Array:
        texts = inputs.texts("text_input")
        if not texts:
            raise RefusedError("text_input is missing from the request")
        self._limits.require_text(texts[:1], "the prompt")
        ids = self._tokenizer.encode(texts[0]).ids
        self._limits.require_prompt(ids)
        return np.array(ids, np.int32)

    def _output_tokens(self, inputs: _Inputs) -> int:
        requested = inputs.scalar("sampling_param_max_tokens")
        tokens = DEFAULT_MAX_TOKENS if requested is None else int(requested)
        self._limits.require_reply(tokens, "sampling_param_max_tokens")
        return tokens

    def _options(self, inputs: _Inputs) -> ReplyOptions:
        for name, allowed in REFUSED.items():
            if int(inputs.scalar(name) or allowed) != allowed:
                raise RefusedError(f"{name} is not emulated: an emulated engine computes no logits")
        streaming = bool(inputs.scalar("streaming"))
        if streaming and not self._decoupled:
            raise RefusedError(NO_STREAMING)
        return ReplyOptions(
            streaming=streaming,
            finish_reason=bool(inputs.scalar("return_finish_reason")),
            stop_reason=bool(inputs.scalar("return_stop_reason")),
            performance=bool(inputs.scalar("sampling_param_return_perf_metrics")),
            stop=self._stop_strings(inputs),
            stream=self._detokenizer.stream(),
        )

    def _stop_strings(self, inputs: _Inputs) -> list[str]:
        strings = [text for text in inputs.texts("sampling_param_stop") if text]
        self._limits.require_text(strings, "sampling_param_stop")
        return strings

    def _reply(self, prompt: Array, limit: int, options: ReplyOptions) -> Reply:
        """Return the reply, cut after the token whose text completes a stop string."""
        reply = Reply(prompt, limit, Rules(self._end_id), vocabulary=self._host.vocabulary)
        if options.stop:
            tail, stream, longest = "", self._detokenizer.stream(), max(map(len, options.stop))
            for index in range(limit if reply.ends_after is None else reply.ends_after):
                token = reply.token(index)
                tail = tail[-longest:] + ("" if token is None else stream.push([token]))
                if any(stop in tail for stop in options.stop):
                    reply.cut(index + 1)
                    break
        return reply

    def _stop(self, client_id: str, sender: Any) -> None:
        """End the request with this id; as upstream, both requests end with an error that says so."""
        if not client_id:
            self._send_error(sender, NO_ID)
            return
        self._host.stop(client_id)
        sender.send(self._cancelled(), flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _cancelled(self) -> Any:
        error = self.backend.TritonError(CANCELLED, self.backend.TritonError.CANCELLED)
        return self.backend.InferenceResponse(error=error)

    def _respond(self, options: ReplyOptions, sequence: Sequence, tokens: list[int], is_final: bool) -> Any:
        if tokens:
            options.text += options.stream.push(tokens)
        if is_final:
            options.text += options.stream.finish()
            self._cut(options)
        if not options.streaming and not is_final:
            return None
        outputs = [self._texts("text_output", options.text)]
        if options.finish_reason:
            reason = "length" if sequence.reply.why == "length" else "stop"
            outputs.append(self._texts("finish_reason", reason if is_final else "None"))
        if options.stop_reason:
            outputs.append(self._texts("stop_reason", str(options.stopped_by)))
        if options.performance and is_final:
            outputs += [self._texts(name, str(value)) for name, value in self._performance(sequence).items()]
        return self.backend.InferenceResponse(outputs)

    def _cut(self, options: ReplyOptions) -> None:
        found = [(options.text.find(stop), stop) for stop in options.stop if stop in options.text]
        if found:
            at, options.stopped_by = min(found)
            options.text = options.text[:at]

    def _performance(self, sequence: Sequence) -> dict[str, float]:
        blocks = new_blocks(sequence, self._host.settings.tokens_per_block)
        drafts = drafts_of(sequence, self._host.settings.draft_tokens)
        found = sequence.reused_blocks
        missed = -(-len(sequence.prompt) // self._host.settings.tokens_per_block) - found
        return {
            "kv_cache_reused_block": found,
            "kv_cache_hit_rate": found / (found + missed),
            "kv_cache_alloc_new_blocks": blocks,
            "kv_cache_alloc_total_blocks": blocks,
            "kv_cache_missed_block": missed,
            **times_ns(sequence),
            "acceptance_rate": drafts.rate,
            "total_accepted_draft_tokens": drafts.accepted,
            "total_draft_tokens": drafts.total,
        }

    def _texts(self, name: str, text: str) -> Any:
        return self.backend.Tensor(name, np.array([text.encode("utf-8")], dtype=object))


def _require_whole_adapter(inputs: _Inputs) -> None:
    """Refuse an incomplete LoRA adapter; a complete one is accepted and has no effect on the emulation."""
    given = [name for name in ADAPTER if inputs.texts(name)]
    if given and len(given) < len(ADAPTER):
        raise RefusedError(f"{', '.join(ADAPTER)} must be provided together; only {', '.join(given)} was sent")


class _Inputs:
    """Typed access to one request's tensors."""

    def __init__(self, backend: Any, request: Any) -> None:
        self._backend = backend
        self._request = request

    def scalar(self, name: str) -> float | None:
        """Return a single value; None if not sent."""
        values = self._get(name)
        if values is None:
            return None
        if values.size != 1:
            raise RefusedError(f"Expected a scalar tensor for tensor {name}")
        return float(values.reshape(-1)[0])

    def texts(self, name: str) -> list[str]:
        """Return strings; empty if not sent."""
        values = self._get(name)
        found: list[Any] = [] if values is None else list(values.reshape(-1))
        return [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in found]

    def _get(self, name: str) -> Array | None:
        tensor = self._backend.get_input_tensor_by_name(self._request, name)
        return None if tensor is None else np.asarray(tensor.as_numpy())
