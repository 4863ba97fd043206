"""The GPU time of a request's tokens: new input, cached input and output, each by what it adds to an iteration."""

from __future__ import annotations

from typing import NamedTuple

from engines.steptime.shape import StepShape, StepTime, attended_tokens

METHOD = (
    "marginal GPU time by the step-time model: output is its share of a decode step of the mean batch; input is what "
    "computing a prompt adds to that step; cached input is what attending to cached tokens adds to that"
)


class RequestGpuTime(NamedTuple):
    """Seconds of GPU time that a mean request adds."""

    input_s: float
    cached_input_s: float
    output_s: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(self)


def request_gpu_time(
    step_time: StepTime, *, batch: float, prompt_tokens: float, cached_tokens: float, output_tokens: float
) -> RequestGpuTime:
    """Return the marginal GPU time of a mean request in a mean batch.

    Reading the weights is the decode step's: a prompt computed beside it pays only what it adds. The prompt is added in
    one piece, also where an engine would compute it in chunks.

    Args:
        batch: Decoding sequences, mean; at least one is assumed.
        prompt_tokens: Of a request, cached ones included.
        cached_tokens: Of those, found in the KV cache.

    >>> from engines.spec import PlacedModel, gpu_named, model_named
    >>> from engines.steptime.roofline import Roofline
    >>> llama = Roofline(PlacedModel(model_named("llama-3.1-8b"), gpu_named("h100-sxm-80gb"), "bf16", "16bit"))
    >>> found = request_gpu_time(llama, batch=32, prompt_tokens=2000, cached_tokens=1000, output_tokens=200)
    >>> found.input_s > 10 * found.cached_input_s > 0
    True
    """
    sequences = max(1, round(batch))
    context = round(sequences * (prompt_tokens + output_tokens / 2))
    new, cached = max(1, round(prompt_tokens - cached_tokens)), round(cached_tokens)
    decode = StepShape(sequences, context)

    def with_prompt(cached_before: int) -> float:
        attended = attended_tokens(new, cached_before)
        return step_time.seconds(StepShape(sequences, context, 1, new, attended))

    decode_s, alone_s, whole_s = step_time.seconds(decode), with_prompt(0), with_prompt(cached)
    return RequestGpuTime(
        input_s=max(0.0, alone_s - decode_s),
        cached_input_s=max(0.0, whole_s - alone_s),
        output_s=output_tokens * decode_s / sequences,
    )
