"""Iterations of prompts alone: when they come, what stands still meanwhile, and which iterations tokens are of."""

from __future__ import annotations

from engines.emulator.apart import KEPT, PromptIterations
from engines.emulator.engine import Batcher
from engines.emulator.request import BatcherSettings, Request
from engines.spec.gpu import gpu_named
from engines.spec.model import model_named
from engines.spec.placed_model import PlacedModel
from engines.steptime.roofline import Roofline

STEP_TIME = Roofline(PlacedModel(model_named("llama-3.1-8b"), gpu_named("h100-sxm-80gb"), "fp8", "fp8"))
LIMITS = BatcherSettings(8, 100, 400, 1, 4_000, chunked_context=True, policy="max_utilization", prompts_apart=True)


def test_prompts_come_first_and_replies_stand_still() -> None:
    """Prompts of 60, 60 and 130 tokens share budgets of 100; the reply that decodes gets no token meanwhile."""
    batcher = Batcher(LIMITS, STEP_TIME)
    batcher.submit(Request(0, 10, 5), 0.0)
    seen = []
    for index in range(8):
        if index == 2:
            for number, prompt in ((1, 60), (2, 60), (3, 130)):
                batcher.submit(Request(number, prompt, 2), 0.0)
        iteration = batcher.begin(0.0)
        assert iteration is not None
        assert iteration.first_index == index
        shape = iteration.shape
        tokens = {int(event.request_id): event.token_index for event in batcher.finish(iteration)}
        seen.append((shape.prefill_tokens, shape.decode_sequences, tokens))
    assert seen == [
        (10, 0, {0: 0}),
        (0, 1, {0: 1}),
        (100, 0, {1: 0}),  # 60, and 40 of the second 60
        (100, 0, {2: 0}),  # 20, and 80 of 130
        (50, 0, {3: 0}),
        (0, 4, {0: 2, 1: 1, 2: 1, 3: 1}),
        (0, 1, {0: 3}),
        (0, 1, {0: 4}),
    ]
    assert batcher.begin(0.0) is None


def test_the_iterations_of_a_reply_leave_out_those_of_other_prompts() -> None:
    """A reply of four tokens, with a prompt computed after its second: iterations 0, 1, 3 and 4."""
    batcher = Batcher(LIMITS, STEP_TIME)
    batcher.submit(Request(0, 10, 4), 0.0)
    spans = {}
    for index in range(6):
        if index == 2:
            batcher.submit(Request(1, 20, 1), 0.0)
        iteration = batcher.begin_run(0.0, 0.0)
        if iteration is None:
            break
        for sequence in batcher.advance(iteration):
            spans[sequence.request.request_id] = sequence.spans
    assert spans == {0: [(0, 1), (3, 4)], 1: [(2, 2)]}


def test_what_no_sequence_has_seen_is_forgotten_and_counts_stay() -> None:
    """After three times the limit, few are kept; the iterations of the next reply are still counted from the start."""
    prompts = PromptIterations()
    for step in range(3 * KEPT):
        prompts.note(step, ())
    assert len(prompts) == 3 * KEPT
    step, iteration = 3 * KEPT, 6 * KEPT
    prompts.note(step, ())
    assert prompts.spans(iteration, step, step + 1) == [(iteration, iteration + 2)]
