"""The search for an engine's limits, and what a plan says of the limits next to them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from engines.emulator.request import Request
from engines.emulator.settings import batcher_for
from engines.errors import UserError
from engines.files import Document, MadeBy
from engines.planning import BuildPlan, emulated_manifest, make_plan
from engines.planning.explain import explain
from engines.planning.limits import BATCH_SIZES, TOKEN_BUDGETS, Engine, choose_limits, outlook
from engines.planning.recipe import Objectives, Workload, resolve_recipe
from engines.spec.gpu import gpu_named
from engines.spec.memory import Sizing
from engines.spec.model import model_named

HEAD = Document(made_by=MadeBy(command="test", version="0"))


def plan_of(recipe: str | None = None, **flags: Any) -> BuildPlan:
    """Plan with flags by dotted key, `__` for the dot."""
    return make_plan(resolve_recipe(recipe, {key.replace("__", "."): value for key, value in flags.items()}), head=HEAD)


def engine_of(batch: int, tokens: int, *, gpu: str = "h100-sxm-80gb", chunked: bool = True) -> Engine:
    """Return DeepSeek-R1's 8B in FP8 with these limits."""
    sizing = Sizing(max_batch_size=batch, max_num_tokens=tokens, max_seq_len=8192)
    return Engine(model_named("deepseek-r1-0528-qwen3-8b"), gpu_named(gpu), "fp8", "fp8", sizing, chunked)


def test_a_request_alone_takes_a_decode_step_per_token() -> None:
    """With one slot the mean ITL is the single step, but for the share of iterations that carry the next prompt."""
    alone = outlook(engine_of(1, 8192), Workload(isl=100, osl=1000))
    assert alone.sequences == 1
    assert alone.single_itl_s <= alone.itl_s < 1.01 * alone.single_itl_s
    assert alone.tokens_per_s == pytest.approx(alone.decoding / alone.itl_s)


def test_prompts_past_the_token_budget_leave_less_to_decode() -> None:
    """Where prompts fill every iteration, decoding gets OSL / (ISL + OSL) of its tokens and no more."""
    workload = Workload(isl=8000, osl=80)
    bound = outlook(engine_of(96, 1024), workload)
    assert bound.decoding <= 1024 * 80 / 8080
    assert bound.decoding < bound.sequences


def test_the_kv_cache_bounds_the_sequences_in_flight() -> None:
    """No more whole requests are in flight than the cache holds, whatever the batch limit."""
    workload = Workload(isl=4000, osl=4000)
    seen = outlook(engine_of(1024, 8192), workload)
    assert seen.sequences == seen.kv_tokens // 8000 < 1024


def test_the_search_takes_the_best_of_what_it_looked_at() -> None:
    """Brute force over the same candidates finds none that is better by more than a limit must be worth."""
    workload, objectives = Workload(), Objectives(itl_s=0.02)
    chosen = choose_limits(engine_of(1, 1), workload, objectives)
    best = 0.0
    for batch in BATCH_SIZES:
        for tokens in TOKEN_BUDGETS:
            seen = outlook(engine_of(batch, tokens), workload)
            if batch <= tokens and not seen.misses(objectives):
                best = max(best, seen.tokens_per_s)
    assert outlook(chosen, workload).tokens_per_s >= 0.98 * best
    assert not outlook(chosen, workload).misses(objectives)


def test_a_tighter_objective_never_chooses_a_larger_batch() -> None:
    """From 100 ms down to 6 ms between tokens, the batch shrinks and the promise is kept."""
    batches = []
    for itl_s in (0.1, 0.05, 0.02, 0.01, 0.006):
        plan = plan_of(objectives__itl_s=itl_s)
        batches.append(plan.sizing.max_batch_size)
        assert plan.predicted.itl_s <= itl_s
    assert batches == sorted(batches, reverse=True)
    assert batches[0] > batches[-1]


def test_a_given_token_budget_whose_gap_is_too_long_does_not_cost_the_batch() -> None:
    """Prompts fill 2,048 tokens of an A100 for longer than 100 ms whatever the batch: it is not cut to one request."""
    flags = {"model": "llama-3.1-8b", "gpu": "a100-sxm-80gb", "precision": "bf16", "limits__max_num_tokens": 2048}
    plan = plan_of(**flags, objectives__itl_s=0.1, objectives__longest_gap_s=0.1)
    loose = plan_of(**flags, objectives__itl_s=0.1, objectives__longest_gap_s=1.0)
    assert plan.sizing == loose.sizing
    assert (
        plan.predicted.longest_gap_s > 2 * 2048 * 7e9 / 312e12 > 0.09
    )  # the arithmetic alone, at the data sheet's peak
    assert plan.predicted.itl_s <= 0.1
    assert any("longest gap" in each.reason for each in plan.choices if each.name == "limits.max_batch_size")


def test_the_builders_smaller_budget_for_one_sequence_is_no_reason_to_serve_one() -> None:
    """A builder cuts 8,192 tokens to the longest sequence of a batch of one: it meets the gap, and serves no other."""
    plan = plan_of(
        model="llama-3.1-8b",
        gpu="h100-sxm-80gb",
        precision="bf16",
        workload__longest_isl=1000,
        workload__longest_osl=500,
        limits__max_num_tokens=8192,
        objectives__longest_gap_s=0.1,
    )
    assert plan.sizing.max_num_tokens == 8192
    assert plan.sizing.max_batch_size >= 64


def test_a_default_that_one_request_misses_does_not_choose_the_batch() -> None:
    """16 GB of weights take an L4 54 ms at its full 300 GB/s: 50 ms between tokens are a default for larger GPUs."""
    flags = {"model": "llama-3.1-8b", "gpu": "l4-24gb", "precision": "bf16"}
    plan = plan_of(**flags)
    assert plan.predicted.single_itl_s > 16e9 / 300e9 > 0.05
    assert plan.sizing.max_batch_size >= 8
    assert any(notice.code == "objectives-missed" for notice in plan.notices)
    assert plan_of(**flags, objectives__itl_s=0.05).sizing.max_batch_size == 1  # asked for: as near as possible


@pytest.mark.parametrize("split", ["tensor", "pipeline"])
def test_slices_of_a_gpu_make_no_replica_together(split: str) -> None:
    """MIG has no way from one slice to another: two of them are two replicas, and two whole GPUs may be one."""
    with pytest.raises(UserError, match="slices of a GPU cannot exchange data"):
        plan_of(gpu="h100-sxm-80gb-mig-3g.40gb", **{f"parallel__{split}": 2})
    assert plan_of(gpu="h100-sxm-80gb", **{f"parallel__{split}": 2}).predicted.tokens_per_s > 0


def test_objectives_out_of_reach_are_said_and_not_hidden() -> None:
    """No 8B model decodes in a millisecond on one H100: the plan stands, with a notice that names both figures."""
    plan = plan_of(objectives__itl_s=0.001)
    (missed,) = [notice for notice in plan.notices if notice.code == "objectives-missed"]
    assert "at most 1" in missed.text
    assert "no limits meet the objectives" in next(
        each.reason for each in plan.choices if each.name.endswith("batch_size")
    )


def test_an_objective_that_a_request_alone_misses_is_likely_in_another_unit() -> None:
    """0.5 ms to the first token, where 500 were meant: the notice has what one request takes, and the flag's unit."""
    plan = plan_of(objectives__ttft_s=0.0005)
    (missed,) = [notice for notice in plan.notices if notice.code == "objectives-missed"]
    pattern = r"one request at a time too: TTFT \d[\d.]* ms, at most 0\.5 \(--ttft-ms and .* in milliseconds"
    assert re.search(pattern, missed.text)


def test_a_prompt_that_is_not_chunked_must_fit_one_iteration() -> None:
    """With INT8 KV, chunked context is off: the token budget covers the longest prompt, or the plan is refused."""
    plan = plan_of(precision="int8_sq", kv_cache__format="int8", gpu="a100-sxm-80gb")
    assert not plan.runtime.chunked_context
    assert plan.sizing.max_num_tokens >= plan.workload.longest_isl
    assert any(notice.code == "no-paged-attention" for notice in plan.notices)
    with pytest.raises(UserError, match="must cover the longest prompt"):
        plan_of(precision="int8_sq", kv_cache__format="int8", gpu="a100-sxm-80gb", limits__max_num_tokens=1024)


def test_asked_limits_stand() -> None:
    """A flag is not searched over."""
    plan = plan_of(limits__max_batch_size=40, limits__max_num_tokens=3000)
    assert (plan.sizing.max_batch_size, plan.sizing.max_num_tokens) == (40, 3000)
    with pytest.raises(UserError, match="less than max_batch_size"):
        plan_of(limits__max_batch_size=64, limits__max_num_tokens=32)


def test_every_limit_is_explained_by_its_neighbours() -> None:
    """A larger batch is slower a token; a 16-bit cache holds half; a longer sequence leaves fewer of them."""
    plan = plan_of()
    around = {explanation.name: explanation for explanation in explain(plan)}
    batch = around["limits.max_batch_size"]
    assert batch.lower is not None
    assert batch.upper is not None
    assert "ITL -" in batch.lower.cost
    assert "ITL +" in batch.upper.cost
    cache = around["kv_cache.format"].upper
    assert cache is not None
    assert cache.value == "16bit"
    assert "KV tokens -50%" in cache.cost
    assert around["kv_cache.format"].lower is None
    lengths = around["limits.max_seq_len"]
    assert lengths.upper is not None
    assert "of the longest requests at once" in lengths.upper.cost


def test_an_int8_cache_next_door_says_what_it_loses() -> None:
    """The smaller cache on an A100 costs chunked context and reuse, and the explanation says so."""
    around = {explanation.name: explanation for explanation in explain(plan_of(precision="bf16", gpu="a100-sxm-80gb"))}
    lower = around["kv_cache.format"].lower
    assert lower is not None
    assert "loses chunked context and KV reuse" in lower.cost


def test_lora_and_speculation_are_planned_or_refused() -> None:
    """Modules and draft length reach the plan; a mode whose draft heads are not there is refused."""
    plan = plan_of(lora__target_modules=("attn_q", "attn_v"), lora__max_rank=16)
    assert plan.lora.target_modules == ("attn_q", "attn_v")
    sizes = {"window_size": 4, "ngram_size": 3, "verification_set_size": 4}
    plan = plan_of(speculative__mode="lookahead_decoding", speculative__lookahead=sizes)
    assert plan.speculative.max_draft_len == 15
    plan = plan_of(speculative__mode="draft_tokens_external", speculative__max_draft_len=5)
    assert any(notice.code == "speculative" for notice in plan.notices)
    with pytest.raises(UserError, match="needs draft heads"):
        plan_of(speculative__mode="medusa", speculative__max_draft_len=5)
    with pytest.raises(UserError, match="needs a draft length"):
        plan_of(speculative__mode="draft_tokens_external")
    with pytest.raises(UserError, match="needs its sizes"):
        plan_of(speculative__mode="lookahead_decoding", speculative__max_draft_len=5)
    with pytest.raises(UserError, match="draft 15 tokens per step"):
        plan_of(speculative__mode="lookahead_decoding", speculative__lookahead=sizes, speculative__max_draft_len=5)
    with pytest.raises(UserError, match="without a mode"):
        plan_of(speculative__max_draft_len=5)


def test_the_steady_state_agrees_with_the_batcher() -> None:
    """At the chosen limits, the closed form is within a tenth of the batcher with every slot taken."""
    asked = resolve_recipe(None, {"workload.isl": 512, "workload.osl": 256, "limits.max_batch_size": 64})
    plan = make_plan(asked, head=HEAD)
    batcher = batcher_for(emulated_manifest(plan, asked.recipe))
    requests, ends, now_s = 64 * 12, [], 0.0
    for number in range(requests):
        batcher.submit(Request(number, prompt_tokens=512, max_output_tokens=256 - number % 64), 0.0)
    while (iteration := batcher.begin_run(now_s, math.inf)) is not None:
        now_s += iteration.seconds
        ends += [(now_s, sequence.request.max_output_tokens) for sequence in batcher.advance(iteration)]
    middle = [(end_s, tokens) for end_s, tokens in ends if 0.3 * now_s < end_s < 0.7 * now_s]
    tokens_per_s = sum(tokens for _, tokens in middle) / (0.4 * now_s)
    workload = Workload(isl=512, osl=224)
    chunked = plan.runtime.chunked_context
    engine = Engine(plan.model, plan.gpu, plan.precision, plan.kv_format, plan.sizing, chunked, plan.step_time)
    assert outlook(engine, workload).tokens_per_s == pytest.approx(tokens_per_s, rel=0.1)
