"""The work and the cost of one engine iteration: the types shared by all step-time sources."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import reduce
from operator import add
from typing import NamedTuple, Protocol


def in_order(parts: Iterable[float]) -> float:
    """Return the sum of parts, added one after the other.

    From Python 3.12 on, `sum` corrects rounding errors. Compiled loops and arrays do not, and would differ in the
    last digit.
    """
    return reduce(add, parts, 0.0)


class StepShape(NamedTuple):
    """One iteration, summed over the batch; a tuple for speed, because a simulated hour has hundreds of thousands.

    Attributes:
        decode_sequences: Sequences that decode: one token each, or with speculation one and what its draft adds.
        decode_context_tokens: Sum over those of the tokens already cached: prompt and output without the newest token,
            which is this step's input. The first decode after a prompt of 100 counts 100.
        prefill_sequences: Prompts, or chunks of prompts, computed in this iteration.
        prefill_tokens: New prompt tokens computed, over all chunks.
        prefill_attended_tokens: Query-key pairs: the sum over chunks of ``n * c + n * (n + 1) / 2`` for n new tokens
            after c cached ones. See `attended_tokens`.
        onboarded_tokens: Tokens whose KV cache is copied back from host memory before the step.
    """

    decode_sequences: int = 0
    decode_context_tokens: int = 0
    prefill_sequences: int = 0
    prefill_tokens: int = 0
    prefill_attended_tokens: int = 0
    onboarded_tokens: int = 0


class StepCost(NamedTuple):
    """Seconds of one iteration by cause; the parts add up to `seconds`.

    A part is the time by which it lengthens the iteration: if two activities overlap (reading the weights and
    arithmetic), the shorter one is not counted.

    Attributes:
        weights_s: Reading the weights.
        gemm_s: Matrix arithmetic beyond the time to read the weights.
        kv_read_s: Reading the KV cache of decoding sequences.
        attention_s: Attention arithmetic of prompts, and of decoding beyond `kv_read_s`.
        activations_s: Norms, rotary embedding, quantization: traffic of activations between the GEMMs.
        communication_s: All-reduce between GPUs.
        launch_s: Gaps between kernels, of a source that prices kernels by their bytes and operations.
        host_s: Scheduling and bookkeeping of the engine's loop and its server: per iteration and per sequence.
        sampling_s: From logits to a token.
        onboard_s: Copying KV blocks back from host memory.
        draft_s: Speculation: the draft model's passes, and proposing and accepting tokens.
    """

    weights_s: float = 0.0
    gemm_s: float = 0.0
    kv_read_s: float = 0.0
    attention_s: float = 0.0
    activations_s: float = 0.0
    communication_s: float = 0.0
    launch_s: float = 0.0
    host_s: float = 0.0
    sampling_s: float = 0.0
    onboard_s: float = 0.0
    draft_s: float = 0.0

    @property
    def seconds(self) -> float:
        """The whole iteration."""
        return in_order(self)


class DecodeLine(NamedTuple):
    """Seconds of a pure decode step as a line in the context, for a fixed number of sequences.

    ``seconds = base_s + per_context_token_s * decode_context_tokens``, exact while the sum of contexts is at most
    `valid_to_context_tokens` (which is at least the requested point). A source that interpolates in a table returns the
    current segment; one that is linear everywhere returns infinity.
    """

    base_s: float
    per_context_token_s: float
    valid_to_context_tokens: float = math.inf


class StepTime(Protocol):
    """The duration of an engine's iterations. Pure: equal shapes have equal costs.

    The three methods must agree: ``seconds(shape) == cost(shape).seconds``, and for a shape that only decodes,
    ``decode_line(n, c)`` is the line through it. `seconds` and `decode_line` are the hot path of a simulation (they
    should take one or two microseconds: cache by the number of sequences); `cost` is for display.
    """

    def cost(self, shape: StepShape) -> StepCost:
        """Return the seconds of one iteration by cause."""
        ...

    def seconds(self, shape: StepShape) -> float:
        """Return the seconds of one iteration."""
        ...

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:
        """Return the line that a run of pure decode steps follows from this point as its contexts grow."""
        ...


def attended_tokens(new_tokens: int, cached_tokens: int) -> int:
    """Return the query-key pairs of a causal chunk of `new_tokens` after `cached_tokens`.

    >>> attended_tokens(3, 0)  # the first token sees itself, the second two, the third three
    6
    >>> attended_tokens(2, 10)
    23
    """
    return new_tokens * cached_tokens + new_tokens * (new_tokens + 1) // 2
