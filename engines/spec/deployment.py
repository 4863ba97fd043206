"""How a deployment differs from its parts as measured alone: the few numbers a calibration finds.

A handful of numbers with a physical meaning, never a table of corrections: what holds at one prompt length has to hold
at another. `Factors` are of the engine's iterations; what lies above the GPU (tokenizing, the server, streaming, the
client) is `Host`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engines.files import Strict

Ratio = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


class Factors(Strict):
    """How a deployment's iterations differ from the source they were first priced by; 1 and 0 change nothing.

    Attributes:
        weights_ratio: On the time to read the weights; above 1, less of the bandwidth is reached than the source says.
        gemm_ratio: On matrix arithmetic and the traffic of activations.
        kv_ratio: On reading the KV cache while decoding.
        attention_ratio: On the attention of prompts.
        iteration_s: Added to each iteration: scheduling, bookkeeping, launching.
        sequence_s: Added for each sequence of an iteration: sampling, host work, handing out its token.
        prompt_s: Added for each prompt, or chunk of one, that an iteration computes: admitting the request, its blocks
            and its sampling state, on the engine's critical path.
        wave_sequences: Sequences whose decode attention fills the GPU once, where a kernel is not split along the
            context: one thread block for each query head and sequence, as many at a time as there are
            multiprocessors. Fewer take as long as these. 1: split, any number of sequences fills the GPU.
        wave_tail: Waves that run nearly empty behind the full ones, once there is more than one: 1 where a block
            is bound by its own latency, 0 where all share the bandwidth and none ends much later than the others.
        wave_reads: How often such a kernel reads the cache: query heads for each KV head, since every query head's
            block reads its keys and values itself. 1 where the heads of a group share what is read.
        mixed_kv_reads: How often an iteration that computes prompts, too, reads the cache of its decoding sequences:
            query heads for each KV head, where one kernel takes both and does not share what a group of heads reads.
    """

    weights_ratio: Ratio = 1.0
    gemm_ratio: Ratio = 1.0
    kv_ratio: Ratio = 1.0
    attention_ratio: Ratio = 1.0
    iteration_s: Seconds = 0.0
    sequence_s: Seconds = 0.0
    prompt_s: Seconds = 0.0
    wave_sequences: Annotated[float, Field(ge=1)] = 1.0
    wave_tail: Annotated[float, Field(ge=0, le=1)] = 0.0
    wave_reads: Annotated[float, Field(ge=1)] = 1.0
    mixed_kv_reads: Annotated[float, Field(ge=1)] = 1.0


class Host(Strict):
    """What lies above the engine, and what it takes from the engine's own loop.

    Attributes:
        request_s: Of each request, one after the other, so that requests sent at once reach the engine one by one.
        latency_s: From a client's request to the engine's queue beyond that, and from the engine back to the client:
            network, tokenizer, detokenizer. Any number of requests at a time: it delays and does not queue.
        stream_token_s: Least time between two tokens on their way out, over all replies: the streaming ceiling is
            its inverse.
        iteration_s: Added to each iteration while the server runs: its callbacks hold the engine's loop.
        sequence_s: Added for each sequence of an iteration, likewise.
        prompt_s: Added for each prompt of an iteration, likewise: taking over a request from the server.
    """

    request_s: Seconds = 0.0
    latency_s: Seconds = 0.0
    stream_token_s: Seconds = 0.0
    iteration_s: Seconds = 0.0
    sequence_s: Seconds = 0.0
    prompt_s: Seconds = 0.0

    def slowed(self, ratio: float) -> Host:
        """Return a host whose every share takes so many times as long."""
        return Host(**{name: seconds * ratio for name, seconds in self.model_dump().items()})


def loaded(factors: Factors, host: Host | None) -> Factors:
    """Return an engine's factors with what the server above it takes from its loop."""
    if host is None:
        return factors
    changed = {name: getattr(factors, name) + getattr(host, name) for name in ("iteration_s", "sequence_s", "prompt_s")}
    return factors.model_copy(update=changed)
