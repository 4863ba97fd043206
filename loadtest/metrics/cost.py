"""Cost per million tokens of a level, split into input, cached input and output by their GPU time."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from engines.units import SECONDS_PER_H
from loadtest.metrics.summary import Cost, LevelSummary, Summary, TokenPrices

if TYPE_CHECKING:
    from engines.steptime import StepTime

MILLION = 1e6
NO_ENGINE = "there is no step-time model; give the engine's folder with --engine"


class GpuPrice(NamedTuple):
    """What a server's GPUs cost.

    Attributes:
        gpus: Of the server, all replicas together.
        source: Where the price is from and how old it is.
    """

    usd_per_gpu_h: float
    gpus: int
    source: str


def with_cost(summary: Summary, price: GpuPrice, step_time: StepTime | None, *, gpus_per_replica: int = 1) -> Summary:
    """Return a summary with the cost of each level's tokens; idle GPU time is spread over all tokens.

    Args:
        step_time: Of the engine, for the split; None: the split is refused, with the reason.
    """
    replicas = max(1, price.gpus // gpus_per_replica)
    levels = [
        level.model_copy(update={"cost": _cost_of(level, price, step_time, replicas)}) for level in summary.levels
    ]
    return summary.model_copy(update={"levels": levels})


def token_prices(
    usd_per_s: float,
    step_time: StepTime,
    *,
    batch: float,
    rates: tuple[float, float, float],
    cached_ratio: float | None,
) -> TokenPrices | None:
    """Return USD per million tokens of each kind, so that all tokens together cost what the GPUs do.

    Args:
        batch: Decoding sequences of one replica, mean.
        rates: Requests, prompt tokens and output tokens a second, of everything that `usd_per_s` pays for.
        cached_ratio: Share of prompt tokens found in the KV cache; None: unknown, all of them count as input.

    Returns:
        None without output tokens.
    """
    from engines.steptime import GPU_TIME_METHOD, request_gpu_time  # noqa: PLC0415 (only a report with a price needs it)

    requests_per_s, input_per_s, output_per_s = rates
    if not (requests_per_s and input_per_s and output_per_s):
        return None
    prompt, cached = input_per_s / requests_per_s, (cached_ratio or 0.0) * input_per_s / requests_per_s
    output = output_per_s / requests_per_s
    work = request_gpu_time(step_time, batch=batch, prompt_tokens=prompt, cached_tokens=cached, output_tokens=output)
    usd_per_request = usd_per_s / requests_per_s

    def per_million(seconds: float, tokens: float) -> float | None:
        return usd_per_request * seconds / work.seconds / tokens * MILLION if tokens > 0 else None

    return TokenPrices(
        input=per_million(work.input_s, prompt - cached),
        cached_input=per_million(work.cached_input_s, cached),
        output=per_million(work.output_s, output),
        method=GPU_TIME_METHOD + ("" if cached_ratio is not None else "; cached prompt tokens are unknown"),
    )


def _cost_of(level: LevelSummary, price: GpuPrice, step_time: StepTime | None, replicas: int) -> Cost | None:
    output, tokens_in, requests = level.output_tokens_per_s, level.input_tokens_per_s, level.requests_per_s
    if not output:
        return None
    usd_per_s = price.usd_per_gpu_h * price.gpus / SECONDS_PER_H
    batch = level.batch_size or level.batch_size_client
    split, unknown = None, NO_ENGINE
    if step_time is not None:
        unknown = "batch size or prompt tokens are unknown"
        if batch is not None and tokens_in and requests:
            split = token_prices(
                usd_per_s,
                step_time,
                batch=batch.mean / replicas,
                rates=(requests, tokens_in, output),
                cached_ratio=level.cached_ratio,
            )
    return Cost(
        usd_per_gpu_h=price.usd_per_gpu_h,
        gpus=price.gpus,
        price=price.source,
        usd_per_million_output_tokens=usd_per_s / output * MILLION,
        usd_per_million_tokens=None if tokens_in is None else usd_per_s / (output + tokens_in) * MILLION,
        split=split,
        split_unknown=None if split is not None else unknown,
    )
