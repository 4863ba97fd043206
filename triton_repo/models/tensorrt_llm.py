"""The emulated `tensorrt_llm` model: a batcher on the wall clock behind TensorRT-LLM's tensors and metrics.

Only time and bookkeeping are emulated. A reply repeats the prompt's own tokens up to the requested length, an end token
or a stop word. Sampling parameters are accepted and have no effect; anything that needs a real model (logits, log
probabilities, beams, drafts, grammars) is refused.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engines.emulator import PromptTooLongError
from triton_repo.models.engine_host import Call, EmulatedModel, EngineHost, Sequence, new_blocks, times_ns
from triton_repo.models.engine_settings import batcher_settings, model_files
from triton_repo.models.inputs import Inputs, RefusedError
from triton_repo.models.parameters import flag, number
from triton_repo.models.reply import Reply, Rules, prompt_words

REFUSED_FLAGS = ("return_log_probs", "return_context_logits", "return_generation_logits")
# Inputs that need a real model, with the reason.
REFUSED_INPUTS = {
    "draft_input_ids": "the number of accepted draft tokens depends on a model's logits",
    "encoder_input_features": "the engine is no encoder-decoder model",
    "prompt_embedding_table": "the engine has no embeddings",
    "mrope_rotary_cos_sin": "the engine accepts text only",
    "cross_attention_mask": "the engine is no encoder-decoder model",
    "lora_task_id": "the engine has no LoRA adapters",
    "lora_weights": "the engine has no LoRA adapters",
    "guided_decoding_guide_type": "a grammar needs tokens chosen by a model",
    "retention_token_range_starts": "blocks are evicted by last use only",
    "context_phase_params": "prompts and replies are computed in one engine",
}
NOT_DECOUPLED_BATCH = "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"
NOT_DECOUPLED_STREAM = "Streaming is only supported if model is deployed using decoupled mode."
NO_LOOKAHEAD = (
    "Cannot set the request lookahead decoding configuration when model instance lookahead parameters are not set."
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The outputs a request asks for."""

    streaming: bool
    echo_prompt: bool
    input_tokens: bool
    output_tokens: bool
    performance: bool
    batch: int
    sequences: int


class EmulatedEngineModel(EmulatedModel):
    """The model, as its entry point hands it to Triton."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the manifest and start the clock."""
        config, parameters, _, manifest = model_files(args)
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._exclude_prompt = flag(parameters, "exclude_input_in_output", default=False)
        self._most_output = number(parameters, "max_output_tokens", math.inf)
        self._most_prompt = number(parameters, "max_prompt_tokens", math.inf)
        period_ms = min(number(parameters, f"{what}_check_period_ms", 100) for what in ("stats", "cancellation"))
        self._host = EngineHost(
            self.backend,
            manifest,
            batcher_settings(config, manifest),
            time_scale=float(parameters["emulator_time_scale"]),
            period_s=period_ms / 1000,
            labels={"model": args["model_name"], "version": args["model_version"]},
        )
        self._host.start()

    def _accept(self, request: Any, sender: Any) -> None:
        inputs = Inputs(self.backend, request)
        client_id = request.request_id()
        if inputs.flag("stop"):
            self._stop(client_id, sender)
            return
        self._refuse(inputs)
        wanted = self._wanted(inputs)
        call = Call(client_id, sender, partial(self._respond, wanted), time.monotonic_ns())
        rows = [self._sequences(inputs, row, call, wanted.sequences) for row in range(inputs.rows)]
        sequences = [sequence for row in rows for sequence in row]
        try:
            for sequence in sequences:
                if len(sequence.prompt) > self._most_prompt:
                    raise PromptTooLongError(len(sequence.prompt), int(self._most_prompt))
            self._host.submit(call, sequences)
        except PromptTooLongError as error:
            raise RefusedError(
                f"Executor failed process requestId {sequences[0].number} due to the following error: {error}"
            ) from error

    def _refuse(self, inputs: Inputs) -> None:
        """Refuse what TensorRT-LLM's backend refuses, then what is not emulated."""
        if not self._decoupled and inputs.rows > 1:
            raise RefusedError(NOT_DECOUPLED_BATCH)
        if not self._decoupled and inputs.flag("streaming"):
            raise RefusedError(NOT_DECOUPLED_STREAM)
        _refuse_unemulated(inputs)

    def _wanted(self, inputs: Inputs) -> Wanted:
        exclude = inputs.number("exclude_input_in_output")
        sequences = max(1, inputs.number("num_return_sequences") or 1)
        if sequences > self._host.settings.max_batch_size:
            raise RefusedError(
                f"num_return_sequences is {sequences}; at most {self._host.settings.max_batch_size}, the engine's "
                "max_batch_size, is answered here"
            )
        return Wanted(
            streaming=inputs.flag("streaming"),
            echo_prompt=not (self._exclude_prompt if exclude is None else exclude),
            input_tokens=inputs.flag("return_num_input_tokens"),
            output_tokens=inputs.flag("return_num_output_tokens"),
            performance=inputs.flag("return_perf_metrics"),
            batch=inputs.rows,
            sequences=sequences,
        )

    def _sequences(self, inputs: Inputs, row: int, call: Call, count: int) -> list[Sequence]:
        """Return the sequences of one row of a request's batch, not yet queued."""
        prompt = inputs.prompt(row, self._host.vocabulary)
        output_tokens = inputs.number("request_output_len", row)
        if output_tokens is None:
            raise RefusedError("request_output_len is not present in the request")
        if output_tokens < 1:
            raise RefusedError(f"request_output_len is {output_tokens}; at least 1 is needed")
        if output_tokens > self._most_output:
            raise RefusedError(
                f"request_output_len is {output_tokens}; at most {self._most_output:g} is allowed here "
                "(max_output_tokens)"
            )
        rules = Rules(
            inputs.number("end_id", row),
            inputs.number("min_tokens", row) or 0,
            prompt_words(inputs.numbers("stop_words_list", row)),
            prompt_words(inputs.numbers("bad_words_list", row)),
        )
        limit = min(output_tokens, max(1, self._host.room_for(prompt)))
        reply = Reply(prompt, limit, rules, vocabulary=self._host.vocabulary)
        made = []
        for index in range(count):
            sequence = self._host.sequence(call, prompt, output_tokens, reply)
            sequence.batch_index, sequence.sequence_index = row, index
            made.append(sequence)
        return made

    def _stop(self, client_id: str, sender: Any) -> None:
        """End the request with this id; as in TensorRT-LLM's backend, both get an empty final response."""
        if not client_id:
            raise RefusedError("Trying to stop a request but request ID is not provided")
        self._host.stop(client_id)
        sender.send(flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _respond(self, wanted: Wanted, sequence: Sequence, token: int | None, is_final: bool) -> Any:
        tokens = [] if token is None else [token]
        if not wanted.streaming:
            sequence.output += tokens
            if not is_final:
                return None
            tokens = [*(sequence.prompt.tolist() if wanted.echo_prompt else []), *sequence.output]
        tensor = self.backend.Tensor
        outputs = [
            tensor("output_ids", np.array([[tokens]], np.int32)),
            tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
        ]
        return self.backend.InferenceResponse(outputs + self._extras(wanted, sequence, len(tokens), is_final))

    def _extras(self, wanted: Wanted, sequence: Sequence, tokens: int, final: bool) -> list[Any]:
        """Return the requested outputs other than the tokens."""
        tensor = self.backend.Tensor
        numbers: dict[str, int] = {}
        if wanted.batch > 1:
            numbers["batch_index"] = sequence.batch_index
        if wanted.sequences > 1:
            numbers["sequence_index"] = sequence.sequence_index
        if wanted.input_tokens:
            numbers["num_input_tokens"] = len(sequence.prompt)
        if wanted.output_tokens:
            numbers["num_output_tokens"] = tokens  # of this response, as in TensorRT-LLM
        outputs = [tensor(name, np.array([[value]], np.int32)) for name, value in numbers.items()]
        if wanted.performance and final:
            outputs += performance(tensor, sequence, self._host.settings.tokens_per_block)
        return outputs


def performance(tensor: Any, sequence: Sequence, tokens_per_block: int) -> list[Any]:
    """Return the outputs of `return_perf_metrics`; the engine drafts no tokens, so none are accepted."""
    blocks = new_blocks(sequence, tokens_per_block)
    numbers = {
        "kv_cache_alloc_new_blocks": blocks,
        "kv_cache_reused_blocks": sequence.reused_blocks,
        "kv_cache_alloc_total_blocks": blocks,
        "total_accepted_draft_tokens": 0,
        "total_draft_tokens": 0,
    }
    outputs = [tensor(name, np.array([[value]], np.int32)) for name, value in numbers.items()]
    outputs += [tensor(name, np.array([[value]], np.int64)) for name, value in times_ns(sequence).items()]
    return [*outputs, tensor("acceptance_rate", np.zeros((1, 1), np.float32))]


def _refuse_unemulated(inputs: Inputs) -> None:
    """Refuse inputs that need a real model."""
    for name in REFUSED_FLAGS:
        if inputs.flag(name):
            raise RefusedError(f"{name} is not emulated: an emulated engine computes no logits")
    if (inputs.number("beam_width") or 1) > 1:
        raise RefusedError("beam_width above 1 is not emulated: beams depend on a model's logits")
    if inputs.number("lookahead_window_size"):
        raise RefusedError(NO_LOOKAHEAD)
    for name, why in REFUSED_INPUTS.items():
        if inputs.size(name):
            raise RefusedError(f"{name} is not emulated: {why}")
