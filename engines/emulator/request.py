"""Input and output of the batcher: requests, limits, tokens, errors, metrics."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, NamedTuple

from engines.steptime import StepShape

RequestId = int | str
SchedulerPolicy = Literal["guaranteed_no_evict", "max_utilization", "static_batch"]
ChunkingPolicy = Literal["first_come", "equal_progress"]


class RequestError(Exception):
    """The engine refuses this request; the text is the one that TensorRT-LLM's client receives."""


class QueueFullError(RequestError):
    """The queue is full."""

    def __init__(self, max_queue_size: int) -> None:
        super().__init__(f"Maximum queue size of {max_queue_size} has been reached, please try again later")


class PromptTooLongError(RequestError):
    """The prompt exceeds the limit of the engine, its token budget or its KV cache."""

    def __init__(self, prompt_tokens: int, max_input_len: int) -> None:
        super().__init__(f"Prompt length ({prompt_tokens}) exceeds maximum input length ({max_input_len})")


class Request(NamedTuple):
    """One prompt and its requested reply length.

    Attributes:
        request_id: Unique among the batcher's requests.
        prompt_tokens: Length of the prompt; at least 1.
        max_output_tokens: Maximum reply length; at least 1, reduced if prompt and reply exceed the engine's limit.
        arrival_s: Send time on the driver's clock; the batcher itself only uses the `now_s` it is given.
        prefix_hashes: One hash per full KV block, each covering the block and all before it. Entries beyond the prompt
            describe blocks of the reply, which become reusable when the sequence ends.
        ends_after_tokens: Output tokens up to and including the model's end token; None: it emits none.
    """

    request_id: RequestId
    prompt_tokens: int
    max_output_tokens: int
    arrival_s: float = 0.0
    prefix_hashes: tuple[int, ...] = ()
    ends_after_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class BatcherSettings:
    """An engine's build limits and run-time settings.

    Attributes:
        max_batch_size: Sequences in one iteration, prefill and decode together.
        max_num_tokens: Tokens in one iteration.
        max_seq_len: Prompt plus output of one sequence.
        max_input_len: Prompt of one sequence; None: `max_seq_len` - 1.
        tokens_per_block: Tokens per KV block.
        kv_blocks: Blocks of the whole pool.
        host_blocks: Blocks of the second pool in host memory; 0: evicted blocks are lost.
        kv_reuse: Keep the blocks of finished prompts for later ones with the same prefix.
        chunked_context: A prompt may be computed over several iterations.
        new_token_ratio: With `max_utilization`: the initial ratio of `admission.Estimate`; None: no estimate.
        prompts_apart: Sequences that decode stand still in iterations with prompts; see `apart`.
        chunking: How chunks share an iteration's tokens.
        max_queue_size: Maximum requests waiting outside the active set; 0: no limit.
        draft_tokens: Draft tokens that each sequence verifies in a decode step; 0: no speculation.
        acceptance: Share of the steps in which the draft token at each position is accepted; see
            `SpeculativeDecoding`.
        acceptance_seed: Of the draws.
    """

    max_batch_size: int
    max_num_tokens: int
    max_seq_len: int
    tokens_per_block: int
    kv_blocks: int
    max_input_len: int | None = None
    host_blocks: int = 0
    kv_reuse: bool = False
    chunked_context: bool = False
    policy: SchedulerPolicy = "guaranteed_no_evict"
    new_token_ratio: float | None = None
    prompts_apart: bool = False
    chunking: ChunkingPolicy = "first_come"
    max_queue_size: int = 0
    draft_tokens: int = 0
    acceptance: tuple[float, ...] = ()
    acceptance_seed: int = 0

    def __post_init__(self) -> None:
        """Refuse impossible limits.

        Raises:
            ValueError: A limit is below 1, or a chunk could never contain a block.
        """
        for name in ("max_batch_size", "max_num_tokens", "max_seq_len", "tokens_per_block", "kv_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; at least 1")
        if self.chunked_context and self.max_num_tokens < self.tokens_per_block:
            raise ValueError(f"max_num_tokens {self.max_num_tokens} is less than a block of {self.tokens_per_block}")
        if bool(self.acceptance) != bool(self.draft_tokens):
            raise ValueError("draft tokens and their acceptance go together")
        if len(self.acceptance) > self.draft_tokens:
            raise ValueError(f"{len(self.acceptance)} tokens can be accepted, and {self.draft_tokens} are verified")
        if self.draft_tokens and self.max_batch_size * self.step_tokens > self.max_num_tokens:
            raise ValueError(
                f"max_num_tokens {self.max_num_tokens} is less than a full batch of {self.max_batch_size} with "
                f"{self.draft_tokens} draft tokens each"
            )

    @property
    def step_tokens(self) -> int:
        """Tokens that a decoding sequence takes of an iteration: its own and its draft."""
        return 1 + self.draft_tokens

    @property
    def longest_sequence_tokens(self) -> int:
        """Largest prompt plus output: TensorRT-LLM reduces the limit to what the KV pool can hold, drafts included."""
        return min(self.max_seq_len, self.kv_blocks * self.tokens_per_block - self.draft_tokens)

    @property
    def longest_prompt_tokens(self) -> int:
        """Longest accepted prompt; without chunking it must fit one iteration."""
        longest = self.longest_sequence_tokens - 1
        if self.max_input_len is not None:
            longest = min(longest, self.max_input_len)
        return longest if self.chunked_context else min(longest, self.max_num_tokens)


class FinishReason(Enum):
    """Why a sequence ended."""

    LENGTH = "length"
    END_TOKEN = "end_token"
    CANCELLED = "cancelled"


class TokenEvent(NamedTuple):
    """The tokens of one request in one iteration: one, or with speculation several.

    Attributes:
        token_index: Of the first of them; 0 for the first token of the request.
        finish_reason: Set if the last of them is the request's last.
        tokens: How many.
    """

    request_id: RequestId
    token_index: int
    finish_reason: FinishReason | None = None
    tokens: int = 1

    @property
    def is_final(self) -> bool:
        """Whether no further token follows."""
        return self.finish_reason is not None


class BatcherState(NamedTuple):
    """The metrics that TensorRT-LLM's backend publishes (`nv_trt_llm_*`), and a few more.

    Attributes:
        active: Unfinished requests that the batch manager has taken from the executor's queue.
        max_requests: Maximum active requests.
        scheduled: Requests in the latest iteration.
        context: Those of them that are prompts or chunks of prompts.
        waiting: `active` - `scheduled`: active, but not in the latest iteration; 0 with a full batch, regardless of the
            queue.
        queued: Requests in the executor's queue, behind the active ones; TensorRT-LLM's backend does not publish it.
        generation_requests: Sequences decoding in the latest iteration.
        total_context_tokens: Prompt tokens computed in the latest iteration.
        paused: Requests paused in the latest iteration because KV blocks ran out.
        kv_reused_blocks: Blocks found instead of computed, since the start.
        iteration_counter: Finished iterations.
        drafted_total: Draft tokens proposed to sequences since the start.
        accepted_total: Those of them that were accepted and emitted.
        draft_steps_total: Decode steps of sequences in which drafts were verified.
    """

    active: int
    max_requests: int
    scheduled: int
    context: int
    waiting: int
    queued: int
    generation_requests: int
    total_context_tokens: int
    paused: int
    kv_max_blocks: int
    kv_free_blocks: int
    kv_used_blocks: int
    kv_tokens_per_block: int
    kv_reused_blocks: int
    iteration_counter: int
    drafted_total: int = 0
    accepted_total: int = 0
    draft_steps_total: int = 0


__all__ = [
    "BatcherSettings",
    "BatcherState",
    "ChunkingPolicy",
    "FinishReason",
    "PromptTooLongError",
    "QueueFullError",
    "Request",
    "RequestError",
    "RequestId",
    "SchedulerPolicy",
    "StepShape",
    "TokenEvent",
]
