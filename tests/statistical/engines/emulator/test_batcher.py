"""What must hold of an in-flight batcher whatever comes at it."""

from __future__ import annotations

import math
from collections import Counter, deque
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engines.emulator.engine import Batcher
from engines.emulator.request import (
    BatcherSettings,
    ChunkingPolicy,
    PromptTooLongError,
    QueueFullError,
    Request,
    RequestId,
    SchedulerPolicy,
    TokenEvent,
)
from engines.spec.gpu import gpu_named
from engines.spec.model import model_named
from engines.spec.placed_model import PlacedModel
from engines.steptime.roofline import Roofline
from engines.steptime.shape import DecodeLine, StepCost, StepShape, StepTime

MODEL, H100 = model_named("deepseek-r1-0528-qwen3-8b"), gpu_named("h100-sxm-80gb")
STEP_TIME = Roofline(PlacedModel(MODEL, H100, "fp8", "fp8"))
BLOCKS, BLOCK = 40, 16

Times = dict[RequestId, list[float]]

DRAFTS = ((0, ()), (2, (0.7, 0.4)), (7, (0.8, 0.3)), (3, (1.0, 1.0, 0.5)))  # verified, accepted by position


def _settings(drafts: tuple[int, tuple[float, ...]], **limits: Any) -> BatcherSettings:
    return BatcherSettings(draft_tokens=drafts[0], acceptance=drafts[1], **limits)


any_settings = st.builds(
    _settings,
    drafts=st.sampled_from(DRAFTS),
    max_batch_size=st.integers(1, 12),
    max_num_tokens=st.integers(320, 700),
    max_seq_len=st.just(300),
    tokens_per_block=st.just(BLOCK),
    kv_blocks=st.just(BLOCKS),
    kv_reuse=st.booleans(),
    chunked_context=st.booleans(),
    policy=st.sampled_from(["guaranteed_no_evict", "max_utilization", "static_batch"]),
    new_token_ratio=st.sampled_from([None, 0.7]),
    prompts_apart=st.booleans(),
    chunking=st.sampled_from(["first_come", "equal_progress"]),
)
any_requests = st.lists(
    st.tuples(st.integers(1, 200), st.integers(1, 120), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=40
)


def _is_idle(batcher: Batcher) -> bool:
    """Whether no request is queued or active."""
    state = batcher.snapshot()
    return state.queued + state.active == 0


def _request(number: int, prompt: int, output: int, family: int) -> Request:
    hashes = tuple(hash((family, block)) for block in range(prompt // BLOCK))
    return Request(number, prompt, output, prefix_hashes=hashes)


def _drive(
    limits: BatcherSettings, wanted: list[tuple[int, int, int, int]], cancelled: set[int] = frozenset()
) -> tuple[list[TokenEvent], Batcher]:
    """Submit requests between iterations, cancel some in the middle of one, check each iteration; return all tokens."""
    batcher = Batcher(limits, STEP_TIME)
    events: list[TokenEvent] = []
    now_s = 0.0

    def step(cancel: int | None = None) -> bool:
        nonlocal now_s
        iteration = batcher.begin(now_s)
        if iteration is None:
            return False
        shape = iteration.shape
        assert shape.prefill_tokens + shape.decode_sequences * limits.step_tokens <= limits.max_num_tokens
        assert shape.prefill_sequences + shape.decode_sequences <= limits.max_batch_size
        state = batcher.snapshot()
        assert state.kv_used_blocks + state.kv_free_blocks == BLOCKS
        assert 0 <= state.kv_used_blocks <= BLOCKS
        now_s += iteration.seconds
        if cancel is not None:
            batcher.cancel(cancel)
        events.extend(batcher.finish(iteration))
        return True

    for number, (prompt, output, family, steps) in enumerate(wanted):
        batcher.submit(_request(number, prompt, output, family), now_s)
        for index in range(steps):
            step(number if number in cancelled and index == steps - 1 else None)
    for _ in range(20_000):
        if not step():
            break
    return events, batcher


@settings(max_examples=60, deadline=None)
@given(limits=any_settings, wanted=any_requests, cancelled=st.sets(st.integers(0, 39), max_size=8))
def test_every_request_gets_its_tokens_once_and_in_order(
    limits: BatcherSettings, wanted: list[tuple[int, int, int, int]], cancelled: set[int]
) -> None:
    """Tokens of a request are 0, 1, 2 ... to its end; the last says so; all blocks are free again afterwards."""
    events, batcher = _drive(limits, wanted, cancelled)
    assert _is_idle(batcher)
    assert batcher.snapshot().kv_used_blocks == 0
    seen: Counter[int] = Counter()
    finals: Counter[int] = Counter()
    for event in events:
        number = int(event.request_id)
        assert event.token_index == seen[number]
        assert not finals[number]
        assert 1 <= event.tokens <= 1 + len(limits.acceptance)
        seen[number] += event.tokens
        finals[number] += event.is_final
    for number, (prompt, output, _, _) in enumerate(wanted):
        if number not in cancelled:
            assert seen[number] == min(output, 300 - prompt)
            assert finals[number] == 1


@settings(max_examples=20, deadline=None)
@given(limits=any_settings, wanted=any_requests)
def test_same_requests_same_tokens(limits: BatcherSettings, wanted: list[tuple[int, int, int, int]]) -> None:
    """Nothing in the batcher is random."""
    assert _drive(limits, wanted)[0] == _drive(limits, wanted)[0]


@settings(max_examples=40, deadline=None)
@given(limits=any_settings.filter(lambda limits: limits.policy == "guaranteed_no_evict"), wanted=any_requests)
def test_no_evict_never_pauses(limits: BatcherSettings, wanted: list[tuple[int, int, int, int]]) -> None:
    """Under guaranteed_no_evict what has started is never paused."""
    batcher = Batcher(limits, STEP_TIME)
    for number, (prompt, output, family, _) in enumerate(wanted):
        batcher.submit(_request(number, prompt, output, family), 0.0)
    while (iteration := batcher.begin(0.0)) is not None:
        assert batcher.snapshot().paused == 0
        batcher.finish(iteration)


@settings(max_examples=40, deadline=None)
@given(limits=any_settings.filter(lambda limits: limits.policy != "max_utilization"), wanted=any_requests)
def test_runs_of_steps_equal_steps(limits: BatcherSettings, wanted: list[tuple[int, int, int, int]]) -> None:
    """Taking decode steps many at a time ends at the same iteration and the same second as one by one."""
    single, many = Batcher(limits, STEP_TIME), Batcher(limits, STEP_TIME)
    for number, (prompt, output, family, _) in enumerate(wanted):
        for batcher in (single, many):
            batcher.submit(_request(number, prompt, output, family), 0.0)
    single_s = many_s = 0.0
    while (iteration := single.begin(single_s)) is not None:
        single_s += iteration.seconds
        single.finish(iteration)
    while (iteration := many.begin_run(many_s, float("inf"))) is not None:
        many_s += iteration.seconds
        many.advance(iteration)
    assert many.snapshot().iteration_counter == single.snapshot().iteration_counter
    assert many_s == pytest.approx(single_s, rel=1e-9)


class Stepped:
    """A step time whose decode curve has a knee at each KNEE_TOKENS of context: a source that answers in pieces."""

    KNEE_TOKENS = 700

    def cost(self, shape: StepShape) -> StepCost:
        """Return all of it as one part."""
        return StepCost(gemm_s=self.seconds(shape))

    def seconds(self, shape: StepShape) -> float:
        """Return prompts by their tokens, beside the decode curve."""
        base_s, slope_s, _ = self.decode_line(shape.decode_sequences, shape.decode_context_tokens)
        decoding_s = base_s + slope_s * shape.decode_context_tokens if shape.decode_sequences else 0.0
        return decoding_s + 2e-5 * shape.prefill_tokens

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:
        """Return the piece that the context stands on; each is steeper than the one before it."""
        piece = decode_context_tokens // self.KNEE_TOKENS
        slope_s = (1 + piece) * 1e-7
        begin = piece * self.KNEE_TOKENS
        base_s = 5e-3 + decode_sequences * 1e-5 + piece * 3e-5 - slope_s * begin
        return DecodeLine(base_s, slope_s, begin + self.KNEE_TOKENS - 1)


def _times_by_steps(limits: BatcherSettings, step_time: StepTime, coming: list[tuple[Request, float]]) -> Times:
    """Return when each token of each request is made, one iteration after the other: the reference."""
    batcher, waiting, now_s = Batcher(limits, step_time), deque(coming), 0.0
    times: Times = {}
    while waiting or not _is_idle(batcher):
        while waiting and waiting[0][1] <= now_s:
            batcher.submit(waiting.popleft()[0], now_s)
        iteration = batcher.begin(now_s)
        if iteration is None:
            now_s = waiting[0][1]
            continue
        now_s += iteration.seconds
        for event in batcher.finish(iteration):
            times.setdefault(event.request_id, []).extend([now_s] * event.tokens)
    return times


def _times_by_runs(limits: BatcherSettings, step_time: StepTime, coming: list[tuple[Request, float]]) -> Times:
    """Return the same from runs of iterations and the spans of each sequence."""
    batcher, waiting, now_s = Batcher(limits, step_time), deque(coming), 0.0
    times: Times = {}
    ends_s: list[float] = []
    while waiting or not _is_idle(batcher):
        while waiting and waiting[0][1] <= now_s:
            batcher.submit(waiting.popleft()[0], now_s)
        iteration = batcher.begin_run(now_s, waiting[0][1] if waiting else math.inf)
        if iteration is None:
            now_s = waiting[0][1]
            continue
        assert len(iteration.ends_s) == iteration.repeats
        ends_s += iteration.ends_s
        now_s = ends_s[-1]
        for sequence in batcher.advance(iteration):
            left_s = [ends_s[index] for first, last in sequence.spans for index in range(first, last + 1)]
            counts = sequence.counts or [1] * len(left_s)
            times[sequence.request.request_id] = [
                time_s for time_s, count in zip(left_s, counts, strict=True) for _ in range(count)
            ]
    return times


@settings(max_examples=150, deadline=None)
@given(
    limits=any_settings,
    step_time=st.sampled_from([STEP_TIME, Stepped()]),
    wanted=any_requests,
    gaps_ms=st.lists(st.floats(0, 400), min_size=40, max_size=40),
)
@example(  # with prompts apart, what was paused for drafts' blocks may restart after one step
    limits=_settings(
        DRAFTS[2],
        max_batch_size=3,
        max_num_tokens=320,
        max_seq_len=300,
        tokens_per_block=BLOCK,
        kv_blocks=BLOCKS,
        policy="max_utilization",
        prompts_apart=True,
    ),
    step_time=STEP_TIME,
    wanted=[(1, 1, 0, 0), (99, 75, 0, 0), (140, 68, 0, 0), (198, 53, 0, 0)],
    gaps_ms=[0.0] * 40,
)
def test_runs_give_each_token_the_time_that_steps_give_it(
    limits: BatcherSettings,
    step_time: StepTime,
    wanted: list[tuple[int, int, int, int]],
    gaps_ms: list[float],
) -> None:
    """Whatever arrives when, every token of every request is made when the iteration-by-iteration loop makes it."""
    arrivals_s = accumulate(gap_ms / 1e3 for gap_ms in gaps_ms)
    coming = [
        (_request(number, prompt, output, family), arrival_s)
        for (number, (prompt, output, family, _)), arrival_s in zip(enumerate(wanted), arrivals_s, strict=False)
    ]
    by_steps, by_runs = (drive(limits, step_time, coming) for drive in (_times_by_steps, _times_by_runs))
    assert by_steps.keys() == by_runs.keys()
    for number, times_s in by_steps.items():
        assert by_runs[number] == pytest.approx(times_s, rel=1e-9)


def test_max_utilization_pauses_and_still_finishes() -> None:
    """Two replies that outgrow the pool together: one is paused, recomputed, and both come out whole."""
    limits = BatcherSettings(8, 640, 640, BLOCK, BLOCKS, policy="max_utilization", chunked_context=True)
    batcher = Batcher(limits, STEP_TIME)
    for number in range(2):
        batcher.submit(Request(number, 200, 300), 0.0)
    paused, tokens = 0, Counter[int]()
    while (iteration := batcher.begin(0.0)) is not None:
        paused += batcher.snapshot().paused
        tokens.update(int(event.request_id) for event in batcher.finish(iteration))
    assert paused > 0
    assert tokens == {0: 300, 1: 300}


def _small(
    *, policy: SchedulerPolicy = "guaranteed_no_evict", chunking: ChunkingPolicy = "first_come", queue: int = 0
) -> Batcher:
    limits = BatcherSettings(
        1, 64, 128, BLOCK, BLOCKS, policy=policy, chunking=chunking, chunked_context=True, max_queue_size=queue
    )
    return Batcher(limits, STEP_TIME)


def test_a_full_queue_refuses_in_tensorrt_llms_words() -> None:
    """One active, two queued; the next is refused."""
    batcher = _small(queue=2)
    for number in range(3):
        batcher.submit(Request(number, 8, 8), 0.0)
    with pytest.raises(QueueFullError, match="Maximum queue size of 2 has been reached, please try again later"):
        batcher.submit(Request(3, 8, 8), 0.0)


def test_a_prompt_too_long_is_refused_at_once() -> None:
    """A prompt that leaves no room for a token never enters the queue."""
    batcher = _small()
    with pytest.raises(PromptTooLongError, match=r"Prompt length \(128\) exceeds maximum input length \(127\)"):
        batcher.submit(Request(0, 128, 1), 0.0)
    assert _is_idle(batcher)


def test_steps_accept_what_the_profile_says() -> None:
    """Over 20,000 tokens each position is accepted as often as its rate says, and steps are fewer by their mean."""
    rates = (0.7, 0.45, 0.2)
    limits = BatcherSettings(4, 640, 25_000, BLOCK, 2_000, draft_tokens=3, acceptance=rates)
    batcher = Batcher(limits, STEP_TIME)
    batcher.submit(Request(0, 10, 20_000), 0.0)
    gained = Counter[int]()
    while (iteration := batcher.begin(0.0)) is not None:
        gained.update(event.tokens for event in batcher.finish(iteration) if not event.is_final)
    steps = gained.total() - 1  # the prompt's own iteration gains one token
    for position, rate in enumerate(rates, start=1):
        accepted = sum(count for tokens, count in gained.items() if tokens > position)
        assert accepted / steps == pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / steps))
    state = batcher.snapshot()
    assert state.accepted_total / state.draft_steps_total == pytest.approx(sum(rates), rel=0.03)
    assert state.drafted_total == 3 * state.draft_steps_total


def test_a_chunk_is_whole_blocks_until_the_last() -> None:
    """A prompt of 100 over a budget of 64 is computed as 64 and 36, and its first token follows the second."""
    batcher = _small()
    batcher.submit(Request(0, 100, 4), 0.0)
    chunks, tokens = [], []
    while (iteration := batcher.begin(0.0)) is not None:
        chunks.append(iteration.shape.prefill_tokens)
        tokens.append(len(batcher.finish(iteration)))
    assert chunks == [64, 36, 0, 0, 0]
    assert tokens == [0, 1, 1, 1, 1]


def test_a_shared_prefix_is_computed_once() -> None:
    """The second of two prompts that begin alike computes only what the first did not."""
    limits = BatcherSettings(4, 640, 300, BLOCK, BLOCKS, kv_reuse=True, chunked_context=True)
    batcher = Batcher(limits, STEP_TIME)
    prefilled = []
    for number in range(2):
        batcher.submit(_request(number, 100, 2, 0), 0.0)
        while (iteration := batcher.begin(0.0)) is not None:
            prefilled.append(iteration.shape.prefill_tokens)
            batcher.finish(iteration)
    assert sum(prefilled) == 100 + 100 - 6 * BLOCK
    assert batcher.snapshot().kv_reused_blocks == 6


def test_a_decode_step_is_near_the_time_to_read_the_weights() -> None:
    """At batch 1 the FP8 8B step is above the floor of physics, and by less than one and a half times itself."""
    floor_s = 8.19e9 / H100.bandwidth_bytes_per_s
    assert floor_s < STEP_TIME.seconds(StepShape(1, 256)) < 2.5 * floor_s


@pytest.mark.parametrize(
    ("gpu", "precision", "kv", "published_s"),
    [
        ("h100-sxm-80gb", "fp16", "16bit", 6.77e-3),
        ("h100-sxm-80gb", "fp8", "fp8", 4.33e-3),
        ("a100-sxm-80gb", "fp16", "16bit", 11.17e-3),
    ],
)
def test_roofline_is_near_published_single_stream_steps(gpu: str, precision: str, kv: str, published_s: float) -> None:
    """TensorRT-LLM 0.9's published milliseconds a token of Mistral 7B at batch 1, within a tenth."""
    roofline = Roofline(PlacedModel(model_named("mistral-7b"), gpu_named(gpu), precision, kv))  # type: ignore[arg-type]
    assert roofline.seconds(StepShape(1, 192)) == pytest.approx(published_s, rel=0.1)


def test_the_parts_of_a_step_add_up() -> None:
    """`cost`, `seconds` and `decode_line` are one model."""
    shape = StepShape(17, 5_000, 2, 300, 40_000)
    assert STEP_TIME.cost(shape).seconds == pytest.approx(STEP_TIME.seconds(shape), rel=1e-12)
    line = STEP_TIME.decode_line(17, 5_000)
    assert line.base_s + line.per_context_token_s * 5_000 == pytest.approx(STEP_TIME.seconds(StepShape(17, 5_000)))


def test_blocks_come_back_from_host_memory() -> None:
    """A prompt whose blocks were evicted to the host copies them back, computes the rest, and pays for the copy."""
    limits = BatcherSettings(
        max_batch_size=4,
        max_num_tokens=400,
        max_seq_len=300,
        tokens_per_block=BLOCK,
        kv_blocks=12,
        host_blocks=40,
        kv_reuse=True,
        chunked_context=True,
    )
    batcher = Batcher(limits, STEP_TIME)
    shapes = []
    for number, family in enumerate((0, 1, 0)):  # the second prompt pushes the first one's blocks out
        batcher.submit(_request(number, 160, 1, family), float(number))
        iteration = batcher.begin(float(number))
        assert iteration is not None
        shapes.append(iteration.shape)
        batcher.finish(iteration)
    assert [shape.onboarded_tokens for shape in shapes[:2]] == [0, 0]
    assert shapes[2].onboarded_tokens == 7 * BLOCK  # 12 blocks, 10 of them taken by the second prompt: two had stayed
    assert shapes[2].prefill_tokens == BLOCK
    assert STEP_TIME.cost(shapes[2]).onboard_s > 0
