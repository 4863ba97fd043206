"""The emulated `tensorrt_llm` model: a batcher on the wall clock behind TensorRT-LLM's tensors and metrics.

Only time and bookkeeping are emulated. A reply repeats the prompt's own tokens up to the requested length, an end token
or a stop word. Sampling parameters are accepted and have no effect; anything that needs a real model (logits, log
probabilities, beams, drafts, grammars) is refused.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from engines.emulator import BatcherSettings, PromptTooLongError
from triton_repo.models.engine_host import Call, EmulatedModel, EngineHost, Sequence, drafts_of, new_blocks, times_ns
from triton_repo.models.engine_settings import batcher_settings, model_files
from triton_repo.models.inputs import Inputs, RefusedError
from triton_repo.models.reply import Reply, Rules, prompt_words
from triton_repo.models.tensor_model import NOT_DECOUPLED_STREAM, REFUSED_FLAGS, REFUSED_INPUTS, TensorModel

NOT_DECOUPLED_BATCH = "Batch size > 1 requires the tensorrt_llm backend to be using decoupled transaction policy"
NO_LOOKAHEAD = (
    "Cannot set the request lookahead decoding configuration when model instance lookahead parameters are not set."
)


@dataclass(frozen=True, slots=True)
class ReplyOptions:
    """The outputs a request asks for."""

    streaming: bool
    echo_prompt: bool
    input_tokens: bool
    output_tokens: bool
    performance: bool
    batch: int
    sequences: int


class EmulatedEngineModel(EmulatedModel, TensorModel):
    """The model, as its entry point hands it to Triton."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the manifest and start the clock."""
        config, parameters, _, manifest = model_files(args)
        self._configure(config)
        self._host = EngineHost(
            self.backend,
            manifest,
            batcher_settings(config, manifest),
            time_scale=float(parameters["emulator_time_scale"]),
            period_s=self._period_s,
            labels={"model": args["model_name"], "version": args["model_version"]},
        )
        self._host.start()

    def _begin(self, inputs: Inputs, client_id: str, sender: Any) -> None:
        options = self._options(inputs)
        call = Call(client_id, sender, partial(self._respond, options), time.monotonic_ns())
        rows = [self._sequences(inputs, row, call, options.sequences) for row in range(inputs.rows)]
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

    def _options(self, inputs: Inputs) -> ReplyOptions:
        sequences = max(1, inputs.number("num_return_sequences") or 1)
        if sequences > self._host.settings.max_batch_size:
            raise RefusedError(
                f"num_return_sequences is {sequences}; at most {self._host.settings.max_batch_size}, the engine's "
                "max_batch_size, is answered here"
            )
        return ReplyOptions(
            streaming=inputs.flag("streaming"),
            echo_prompt=self._echoes_prompt(inputs),
            input_tokens=inputs.flag("return_num_input_tokens"),
            output_tokens=inputs.flag("return_num_output_tokens"),
            performance=inputs.flag("return_perf_metrics"),
            batch=inputs.rows,
            sequences=sequences,
        )

    def _sequences(self, inputs: Inputs, row: int, call: Call, count: int) -> list[Sequence]:
        """Return the sequences of one row of a request's batch, not yet queued."""
        prompt = inputs.prompt(row, self._host.vocabulary)
        output_tokens = self._output_tokens(inputs, row)
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

    def _cancel(self, client_id: str) -> None:
        self._host.stop(client_id)

    def _respond(self, options: ReplyOptions, sequence: Sequence, tokens: list[int], is_final: bool) -> Any:
        if not options.streaming:
            sequence.output += tokens
            if not is_final:
                return None
            tokens = [*(sequence.prompt.tolist() if options.echo_prompt else []), *sequence.output]
        tensor = self.backend.Tensor
        outputs = [
            tensor("output_ids", np.array([[tokens]], np.int32)),
            tensor("sequence_length", np.array([[len(tokens)]], np.int32)),
        ]
        return self.backend.InferenceResponse(outputs + self._extras(options, sequence, len(tokens), is_final))

    def _extras(self, options: ReplyOptions, sequence: Sequence, tokens: int, final: bool) -> list[Any]:
        """Return the requested outputs other than the tokens."""
        tensor = self.backend.Tensor
        numbers: dict[str, int] = {}
        if options.batch > 1:
            numbers["batch_index"] = sequence.batch_index
        if options.sequences > 1:
            numbers["sequence_index"] = sequence.sequence_index
        if options.input_tokens:
            numbers["num_input_tokens"] = len(sequence.prompt)
        if options.output_tokens:
            numbers["num_output_tokens"] = tokens  # of this response, as in TensorRT-LLM
        outputs = [tensor(name, np.array([[value]], np.int32)) for name, value in numbers.items()]
        if options.performance and final:
            outputs += performance(tensor, sequence, self._host.settings)
        return outputs


def performance(tensor: Any, sequence: Sequence, settings: BatcherSettings) -> list[Any]:
    """Return the outputs of `return_perf_metrics`."""
    blocks, drafts = new_blocks(sequence, settings.tokens_per_block), drafts_of(sequence, settings.draft_tokens)
    numbers = {
        "kv_cache_alloc_new_blocks": blocks,
        "kv_cache_reused_blocks": sequence.reused_blocks,
        "kv_cache_alloc_total_blocks": blocks,
        "total_accepted_draft_tokens": drafts.accepted,
        "total_draft_tokens": drafts.total,
    }
    outputs = [tensor(name, np.array([[value]], np.int32)) for name, value in numbers.items()]
    outputs += [tensor(name, np.array([[value]], np.int64)) for name, value in times_ns(sequence).items()]
    return [*outputs, tensor("acceptance_rate", np.full((1, 1), drafts.rate, np.float32))]


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
