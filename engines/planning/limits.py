"""Chooses an engine's limits by the steady state of in-flight batching, priced by a step-time model.

The steady state is in closed form: `max_batch_size` requests in flight, each replaced as soon as it ends. It takes
microseconds to compute, so that a plan can evaluate every candidate. The batcher on a virtual clock (`predict-load`) is
more precise, with arrivals, queues and percentiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from engines.manifest import EngineManifest, StepTimeChoice
from engines.planning.recipe import Objectives, Workload
from engines.spec import (
    MS_PER_S,
    GpuSpec,
    KvFormat,
    MemoryBudget,
    ModelSpec,
    PlacedModel,
    Sizing,
    SpeculativeDecoding,
    memory_budget,
    milliseconds,
    precision_named,
)
from engines.steptime import StepShape, StepTime, attended_tokens, cached_step_time

# Candidate sizes: tensor cores work on tiles of eight rows, so finer steps have no visible effect.
BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
TOKEN_BUDGETS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
WORTH_RATIO = 0.02  # minimum relative gain in throughput for a larger limit, given the memory and waiting it costs


ROOFLINE = StepTimeChoice(source="roofline")


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine whose steady state is computed.

    Attributes:
        chunked: Prompts may be split over iterations; otherwise a prompt must fit one iteration.
        pricing: Step-time source.
        speculation: What each decode step drafts and verifies; None: one token a step.
    """

    model: ModelSpec
    gpu: GpuSpec
    precision: str
    kv_format: KvFormat
    sizing: Sizing
    chunked: bool
    pricing: StepTimeChoice = ROOFLINE
    speculation: SpeculativeDecoding | None = None

    @property
    def memory(self) -> MemoryBudget:
        """How one GPU's memory is used."""
        draft = None if self.speculation is None else self.speculation.draft
        return memory_budget(
            self.model, self.gpu, precision_named(self.precision), self.kv_format, self.sizing, draft=draft
        )

    @property
    def step_tokens(self) -> int:
        """Tokens that a decoding sequence computes in a step."""
        return 1 if self.speculation is None else 1 + self.speculation.verified_tokens

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens that a decoding sequence gains in a step."""
        return 1.0 if self.speculation is None else self.speculation.tokens_per_step

    @property
    def step_time(self) -> StepTime:
        """The step-time source; made once for all limits."""
        placed = PlacedModel(self.model, self.gpu, self.precision, self.kv_format, self.sizing.tensor_parallel)
        return cached_step_time(self.pricing, placed, speculative=self.speculation)

    def limited(self, *, max_batch_size: int | None = None, max_num_tokens: int | None = None) -> Engine:
        """Return the same engine with other limits."""
        changed = {
            "max_batch_size": max_batch_size or self.sizing.max_batch_size,
            "max_num_tokens": max_num_tokens or self.sizing.max_num_tokens,
        }
        return replace(self, sizing=self.sizing.model_copy(update=changed))


def engine_of(manifest: EngineManifest) -> Engine:
    """Return the engine of a manifest, with its own limits."""
    limits, cache = manifest.limits, manifest.kv_cache
    sizing = Sizing(
        max_batch_size=limits.max_batch_size,
        max_num_tokens=limits.max_num_tokens,
        max_seq_len=limits.max_seq_len,
        tokens_per_block=cache.tokens_per_block,
        kv_fraction=cache.free_gpu_mem_fraction,
        tensor_parallel=manifest.parallel.tensor,
        pipeline_parallel=manifest.parallel.pipeline,
    )
    return Engine(
        manifest.model,
        manifest.gpu,
        manifest.precision.name,
        manifest.precision.kv_cache,
        sizing,
        manifest.runtime.chunked_context,
        manifest.step_time,
        manifest.speculative,
    )


@dataclass(frozen=True, slots=True)
class Outlook:
    """Predicted steady state of an engine full of typical requests.

    Attributes:
        kv_tokens: Capacity of the KV cache in tokens.
        sequences: Requests in flight: the batch limit, or fewer if the KV cache holds fewer whole requests.
        decoding: Requests that decode in a typical iteration; the others wait for their prompt.
        itl_s: Mean time per token of a request.
        single_itl_s: The same for a request alone.
        ttft_s: From a free slot to the first token, with all other slots occupied.
        longest_gap_s: Duration of an iteration filled with prompts: the gap that a burst causes in every reply.
        tokens_per_s: Reply tokens per second of the whole replica.
        prompt_share: Share of iterations that carry a prompt. At 1 the figures are optimistic: more than one prompt
            would have to share an iteration.
    """

    kv_tokens: int
    sequences: int
    decoding: float
    itl_s: float
    single_itl_s: float
    ttft_s: float
    longest_gap_s: float
    tokens_per_s: float
    prompt_share: float

    def misses(self, objectives: Objectives) -> str:
        """Return the objectives that are missed, in words; empty if all are met."""
        missed = []
        if self.sequences == 0:
            missed.append("not one request fits the KV cache")
        if self.itl_s > objectives.itl_s:
            missed.append(f"ITL {milliseconds(self.itl_s)} ms, at most {objectives.itl_s * MS_PER_S:g}")
        if self.ttft_s > objectives.ttft_s:
            missed.append(f"TTFT {milliseconds(self.ttft_s)} ms, at most {objectives.ttft_s * MS_PER_S:g}")
        if self.longest_gap_s > objectives.longest_gap_s:
            longest = objectives.longest_gap_s * MS_PER_S
            missed.append(f"gap of {milliseconds(self.longest_gap_s)} ms in a burst of prompts, at most {longest:g}")
        return "; ".join(missed)


def outlook(engine: Engine, workload: Workload) -> Outlook:
    """Return the steady state of a full engine.

    In every iteration d sequences decode; d / OSL of them end and as many prompts start, each of which takes c = ISL /
    (max_num_tokens - d) iterations beside the decoding ones. While d c / OSL < 1, that share of iterations carries a
    prompt and the rest only decode. Beyond that, prompts fill every iteration, and the rest of the token budget
    decodes: d = max_num_tokens OSL / (ISL + OSL).

    With speculation, a sequence takes fewer steps than it has tokens, and more of each iteration's budget: OSL is then
    its steps, and d in the budget its tokens. The ITL is the mean time per token.
    """
    step, sizing, memory = engine.step_time, engine.sizing, engine.memory
    isl, osl = workload.isl, workload.osl
    context = isl + osl / 2
    alone = step.seconds(StepShape(decode_sequences=1, decode_context_tokens=int(context)))
    sequences = min(sizing.max_batch_size, memory.kv_tokens // (isl + osl))
    if sequences == 0:
        return Outlook(memory.kv_tokens, 0, 0.0, alone, alone, float("inf"), alone, 0.0, 0.0)
    alone /= engine.tokens_per_step
    budget, steps, width = sizing.max_num_tokens, osl / engine.tokens_per_step, engine.step_tokens
    decoding = min(float(sequences), budget * steps / (isl + steps * width))
    room = max(1.0, budget - decoding * width)
    chunks = max(1.0, isl / room)
    decoding = max(1.0, decoding * steps / (steps + chunks))
    share = min(1.0, decoding / steps * chunks)
    shape = StepShape(decode_sequences=round(decoding), decode_context_tokens=int(decoding * context))
    mixed_s = step.seconds(_with_prompt(shape, min(isl, int(room)), isl))
    full_s = step.seconds(_with_prompt(shape, int(room), isl))
    mean_s = (1 - share) * step.seconds(shape) + share * mixed_s
    return Outlook(
        kv_tokens=memory.kv_tokens,
        sequences=sequences,
        decoding=decoding,
        itl_s=mean_s / engine.tokens_per_step,
        single_itl_s=alone,
        ttft_s=mean_s / 2 + chunks * mixed_s,
        longest_gap_s=full_s,
        tokens_per_s=decoding * engine.tokens_per_step / mean_s,
        prompt_share=share,
    )


def _with_prompt(shape: StepShape, tokens: int, prompt_tokens: int) -> StepShape:
    """Return an iteration that also computes `tokens` of prompts: whole ones, or a chunk from the middle of one."""
    prompts = max(1, tokens // prompt_tokens)
    each = min(tokens, prompt_tokens)
    attended = prompts * attended_tokens(each, (prompt_tokens - each) // 2)
    return shape._replace(prefill_sequences=prompts, prefill_tokens=tokens, prefill_attended_tokens=attended)


def built_num_tokens(max_num_tokens: int, sizing: Sizing, *, max_draft_len: int = 0) -> int:
    """Return the `max_num_tokens` that `trtllm-build` will use: it changes the value with only a warning.

    At most a full batch of the longest sequences, at least one block (context attention is always fused here), and with
    speculative decoding at least every slot's draft.

    Args:
        sizing: The other limits; its own `max_num_tokens` is ignored.

    Source:
        tensorrt_llm/_common.py, `check_max_num_tokens`, and tensorrt_llm/builder.py, `build` (run at 0.17).

    >>> built_num_tokens(8192, Sizing(max_batch_size=1, max_num_tokens=8192, max_seq_len=2048))
    2048
    """
    built = min(max_num_tokens, sizing.max_batch_size * sizing.max_seq_len)
    built = max(built, sizing.tokens_per_block)
    return max(built, sizing.max_batch_size * (max_draft_len + 1)) if max_draft_len else built


def choose_limits(
    engine: Engine,
    workload: Workload,
    objectives: Objectives,
    *,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    token_budgets: tuple[int, ...] = TOKEN_BUDGETS,
    max_draft_len: int = 0,
) -> Engine:
    """Return the engine with the limits of highest throughput that meet the objectives.

    Every candidate's `max_num_tokens` is the value that the builder would use.

    The longest gap follows from the token budget, hardly from the batch. Where a full iteration of the smallest budget
    exceeds it (or of the only one, a given one), that budget is taken, and the other objectives decide the batch: the
    few that meet the gap are those whose sequences together are shorter than the budget, one or two.

    If no candidate meets the objectives, the one with the lowest ITL, then TTFT, is chosen, and the plan says so. Among
    candidates within `WORTH_RATIO` of the best, the smallest batch is chosen, then the largest token budget, which
    shortens bursts of prompts that a steady state does not include.
    """
    token_budgets = _possible_budgets(engine, workload, token_budgets)
    candidates = _candidates(engine, batch_sizes, token_budgets, max_draft_len)
    outlooks = [(found, outlook(found, workload)) for found in candidates]
    smallest = min(token_budgets)
    filled = [expected.longest_gap_s for found, expected in outlooks if found.sizing.max_num_tokens == smallest]
    if filled and min(filled) > objectives.longest_gap_s:
        objectives = without_gap(objectives)
        outlooks = [pair for pair in outlooks if pair[0].sizing.max_num_tokens <= smallest]
    good = [(found, expected) for found, expected in outlooks if not expected.misses(objectives)]
    if not good:
        fitting = [pair for pair in outlooks if pair[1].sequences] or outlooks
        return min(fitting, key=lambda pair: (pair[1].itl_s, pair[1].ttft_s, pair[1].longest_gap_s))[0]
    best = max(expected.tokens_per_s for _, expected in good)
    worthy = [pair for pair in good if pair[1].tokens_per_s >= best * (1 - WORTH_RATIO)]
    return min(worthy, key=lambda pair: (pair[0].sizing.max_batch_size, -pair[0].sizing.max_num_tokens))[0]


def without_gap(objectives: Objectives) -> Objectives:
    """Return objectives without a limit on the longest gap."""
    return objectives.model_copy(update={"longest_gap_s": math.inf})


def _possible_budgets(engine: Engine, workload: Workload, token_budgets: tuple[int, ...]) -> tuple[int, ...]:
    """Return the token budgets to try: a prompt that is not chunked must fit one iteration."""
    longest = min(workload.longest_isl, engine.sizing.max_seq_len - 1)
    if engine.chunked or len(token_budgets) == 1:
        return token_budgets
    return tuple(budget for budget in token_budgets if budget >= longest) or (longest,)


def _candidates(
    engine: Engine, batch_sizes: tuple[int, ...], token_budgets: tuple[int, ...], max_draft_len: int
) -> Iterator[Engine]:
    are_given = len(token_budgets) == len(batch_sizes) == 1
    for budget in token_budgets:
        for batch in batch_sizes:
            if batch * engine.step_tokens <= budget or are_given:
                sizing = engine.sizing.model_copy(update={"max_batch_size": batch})
                built = built_num_tokens(budget, sizing, max_draft_len=max_draft_len)
                yield engine.limited(max_batch_size=batch, max_num_tokens=built)
