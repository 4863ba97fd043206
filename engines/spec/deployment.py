"""How a deployment differs from the step-time source: the few parameters that a calibration fits.

The parameters have a physical meaning and are not a table of corrections: a value found at one prompt length must apply
at another. `Factors` describe the engine's iterations; `Host` describes what is above the GPU (tokenization, server,
streaming, client).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engines.files import Strict

Ratio = Annotated[float, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]


class Factors(Strict):
    """Ratios and additions to a step-time source; 1 and 0 change nothing.

    Attributes:
        weights_ratio: On the time to read the weights; above 1, less bandwidth is reached than the source assumes.
        gemm_ratio: On matrix arithmetic and the traffic of activations.
        kv_ratio: On reading the KV cache while decoding.
        attention_ratio: On the attention of prompts.
        iteration_s: Added to each iteration: scheduling, bookkeeping, kernel launches.
        sequence_s: Added per sequence of an iteration: sampling, host work, returning its token.
        prompt_s: Added per prompt, or chunk, of an iteration: admitting the request, its blocks and its sampling state,
            on the engine's critical path.
        wave_sequences: Sequences whose decode attention fills the GPU once, for a kernel that is not split along the
            context: one thread block per query head and sequence, as many at a time as there are multiprocessors.
            Fewer sequences take as long, or see `wave_alone`. 1: split along the context, any number fills the GPU.
        wave_blocks: Thread blocks of a wave that a multiprocessor holds at once, if each has the fewest threads. With
            few sequences the launcher doubles their threads, and they run in rounds; see `wave_alone`. 1: not known.
        wave_tail: Nearly empty waves at the end, if there is more than one wave: 1 if a block is limited by its own
            latency, 0 if all share the bandwidth and end at about the same time.
        wave_alone: Share of a full round's time that a block alone takes, and any last round at least: 1 if a block is
            limited by its own latency. Without `wave_blocks`, the first wave is a round, and the only one.
        wave_reads: How often such a kernel reads the cache: query heads per KV head, since every query head's block
            reads its keys and values itself. 1 if the heads of a group share what is read.
        mixed_kv_reads: How often an iteration that also computes prompts reads the cache of its decoding sequences:
            query heads per KV head, if one kernel takes both and a group's heads do not share what is read.
        draft_pass_s: With speculation, added to each pass of the draft model: its launch, choosing its tokens, and
            preparing the next pass.
        verify_s: With speculation, added to each iteration: building the draft's input, and accepting its tokens.
        draft_prompt_s: With speculation, added to each iteration with prompts: launching the draft's pass over them.
        tree_s: Added to each iteration that verifies a tree of drafts: choosing its branches, building its mask.
    """

    weights_ratio: Ratio = 1.0
    gemm_ratio: Ratio = 1.0
    kv_ratio: Ratio = 1.0
    attention_ratio: Ratio = 1.0
    iteration_s: Seconds = 0.0
    sequence_s: Seconds = 0.0
    prompt_s: Seconds = 0.0
    wave_sequences: Annotated[float, Field(ge=1)] = 1.0
    wave_blocks: Annotated[int, Field(ge=1)] = 1
    wave_tail: Annotated[float, Field(ge=0, le=1)] = 0.0
    wave_alone: Annotated[float, Field(ge=0, le=1)] = 1.0
    wave_reads: Annotated[float, Field(ge=1)] = 1.0
    mixed_kv_reads: Annotated[float, Field(ge=1)] = 1.0
    draft_pass_s: Seconds = 0.0
    verify_s: Seconds = 0.0
    draft_prompt_s: Seconds = 0.0
    tree_s: Seconds = 0.0


class Host(Strict):
    """Costs above the engine, and what the server takes from the engine's own loop.

    Attributes:
        request_s: Per request, serial, so that simultaneous requests reach the engine one by one.
        latency_s: Further time from the client to the engine's queue and from the engine back to the client: network,
            tokenizer, detokenizer. Parallel: it delays requests but does not queue them.
        stream_token_s: Minimum time between two output tokens, over all replies: its inverse limits the throughput.
        iteration_s: Added to each iteration while the server runs: its callbacks block the engine's loop.
        sequence_s: Likewise, per sequence of an iteration.
        prompt_s: Likewise, per prompt of an iteration: taking over a request from the server.
    """

    request_s: Seconds = 0.0
    latency_s: Seconds = 0.0
    stream_token_s: Seconds = 0.0
    iteration_s: Seconds = 0.0
    sequence_s: Seconds = 0.0
    prompt_s: Seconds = 0.0

    def multiplied(self, ratio: float) -> Host:
        """Return a host with all its times multiplied by a ratio."""
        return Host(**{name: seconds * ratio for name, seconds in self.model_dump().items()})


def loaded(factors: Factors, host: Host | None) -> Factors:
    """Return an engine's factors including what the server takes from its loop."""
    if host is None:
        return factors
    changed = {name: getattr(factors, name) + getattr(host, name) for name in ("iteration_s", "sequence_s", "prompt_s")}
    return factors.model_copy(update=changed)
