"""Shared by the models behind the tensors of `tensorrt_llm`, emulated or relayed: accepting, refusing and stopping."""

from __future__ import annotations

import math
from typing import Any

from triton_repo.models.inputs import Inputs, RefusedError
from triton_repo.models.parameters import flag, number, parameters_of
from triton_repo.models.reply import ReplyError

# Inputs that neither kind of engine serves, with the reason an emulated one gives.
REFUSED_FLAGS = ("return_log_probs", "return_context_logits", "return_generation_logits")
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
NOT_DECOUPLED_STREAM = "Streaming is only supported if model is deployed using decoupled mode."


class ServedModel:
    """A Triton Python-backend model; `backend` is Triton's own module, set by the entry point.

    Attributes:
        refusals: Errors whose text answers a request that cannot be served.
        error_prefix: Leads that text.
    """

    backend: Any = None
    refusals: tuple[type[Exception], ...] = (RefusedError, ReplyError)
    error_prefix = ""

    def execute(self, requests: list[Any]) -> None:
        """Accept requests; their responses are sent by the model's own threads."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except self.refusals as error:
                self._send_error(sender, f"{self.error_prefix}{error}")

    def _accept(self, request: Any, sender: Any) -> None:
        """Begin one request, or raise one of `refusals`."""
        raise NotImplementedError

    def _send_error(self, sender: Any, message: str) -> None:
        error = self.backend.InferenceResponse(error=self.backend.TritonError(message))
        sender.send(error, flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class TensorModel(ServedModel):
    """The model behind TensorRT-LLM's tensors; what computes the tokens is the subclass's."""

    def _configure(self, config: dict[str, Any]) -> None:
        """Read the parameters that TensorRT-LLM's backend reads, and this project's limits."""
        parameters = parameters_of(config)
        self._decoupled = bool(config.get("model_transaction_policy", {}).get("decoupled"))
        self._exclude_prompt = flag(parameters, "exclude_input_in_output", default=False)
        self._most_output = number(parameters, "max_output_tokens", math.inf)
        self._most_prompt = number(parameters, "max_prompt_tokens", math.inf)
        self._period_s = 1e-3 * min(number(parameters, f"{what}_check_period_ms", 100) for what in _PERIODS)

    def _accept(self, request: Any, sender: Any) -> None:
        inputs = Inputs(self.backend, request)
        client_id = request.request_id()
        if inputs.flag("stop"):
            self._stop(client_id, sender)
            return
        self._refuse(inputs)
        self._begin(inputs, client_id, sender)

    def _refuse(self, inputs: Inputs) -> None:
        """Raise RefusedError for a request that is not served."""
        raise NotImplementedError

    def _begin(self, inputs: Inputs, client_id: str, sender: Any) -> None:
        """Begin a request that is not refused by its inputs' names."""
        raise NotImplementedError

    def _cancel(self, client_id: str) -> None:
        """End the request with this id, if there is one."""
        raise NotImplementedError

    def _stop(self, client_id: str, sender: Any) -> None:
        """End the request with this id; as in TensorRT-LLM's backend, both get an empty final response."""
        if not client_id:
            raise RefusedError("Trying to stop a request but request ID is not provided")
        self._cancel(client_id)
        sender.send(flags=self.backend.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _echoes_prompt(self, inputs: Inputs) -> bool:
        """Return whether a whole reply starts with its prompt."""
        exclude = inputs.number("exclude_input_in_output")
        return not (self._exclude_prompt if exclude is None else exclude)

    def _output_tokens(self, inputs: Inputs, row: int = 0) -> int:
        """Return the requested length of a reply.

        Raises:
            RefusedError: It is missing, below 1 or above the limit.
        """
        tokens = inputs.number("request_output_len", row)
        if tokens is None:
            raise RefusedError("request_output_len is not present in the request")
        if tokens < 1:
            raise RefusedError(f"request_output_len is {tokens}; at least 1 is needed")
        if tokens > self._most_output:
            raise RefusedError(
                f"request_output_len is {tokens}; at most {self._most_output:g} is allowed here (max_output_tokens)"
            )
        return tokens


_PERIODS = ("stats", "cancellation")
