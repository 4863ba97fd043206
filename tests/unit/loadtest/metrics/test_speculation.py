"""Acceptance as a run shows it: by the server's counters under its own names, else by tokens of a response."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.metrics.batch_size import samples_of
from loadtest.metrics.latency import spread
from loadtest.metrics.speculation import speculation_of
from loadtest.metrics.steady_state import Window
from loadtest.results import RequestRecord, Sample, columns_of

WHOLE = Window(0.0, 100.0, "whole")
NO_SAMPLES = samples_of([])


def _record(counts: list[int], number: int = 0, *, merged: bool = False) -> RequestRecord:
    """Return a reply whose responses have so many tokens each, 0.1 s apart; merged ones take that time per token."""
    ends = np.cumsum(counts) if merged else range(len(counts))
    times = [1.0 + 0.1 * float(end) for end, count in zip(ends, counts, strict=True) for _ in range(count)]
    return RequestRecord(
        id=number,
        level=0,
        phase="measure",
        scheduled_s=0.0,
        sent_s=0.0,
        token_times_s=tuple(times),
        done_s=times[-1],
        prompt_tokens=10,
        output_tokens=len(times),
        outcome="ok",
        bundled_tokens=len(times) - len(counts),
    )


def test_a_response_of_several_tokens_has_no_gap_of_zero() -> None:
    """Time per step is between responses, time per token over tokens; records that end otherwise stay as they are."""
    columns = columns_of([_record([1, 3, 1, 2]), _record([1, 1, 1], 1)])
    assert columns.gaps_s.tolist() == pytest.approx([0.1] * 5)
    assert columns.tpot_s.tolist() == pytest.approx([0.3 / 6, 0.1])
    assert columns.tokens.tolist() == [7, 3]
    found = spread(columns.gaps_s)
    assert found is not None
    assert found.min == pytest.approx(0.1)
    arrivals = [time_s for chunk in columns.token_chunks() for time_s in chunk.time_s.tolist()]
    assert arrivals == pytest.approx([1.0, 1.1, 1.1, 1.1, 1.2, 1.3, 1.3, 1.0, 1.1, 1.2])
    taken = columns.take(columns.id[::-1])
    assert taken.response_tokens is not None
    assert taken.response_tokens.tolist() == [1, 1, 1, 1, 3, 1, 2]


def test_acceptance_is_read_off_the_responses() -> None:
    """Of the three steps after the first, two accept a first token and one a second: 2.0 tokens a step."""
    found = speculation_of(columns_of([_record([1, 3, 1, 2])]), NO_SAMPLES, WHOLE)
    assert found is not None
    assert (found.tokens_per_step, found.source) == (2.0, "responses")
    assert found.acceptance == pytest.approx((2 / 3, 1 / 3))
    assert speculation_of(columns_of([_record([1, 1, 1])]), NO_SAMPLES, WHOLE) is None


@pytest.mark.parametrize("counts_are_exact", [True, False])
def test_a_stray_bundle_is_no_speculation(counts_are_exact: bool) -> None:
    """A busy vLLM without speculation sends two tokens at once now and then: one response of a hundred here."""
    columns = columns_of([_record([1, *[1] * 99, 2])])
    assert speculation_of(columns, NO_SAMPLES, WHOLE, counts_are_exact=counts_are_exact) is None


@pytest.mark.parametrize("counts_are_exact", [True, False])
def test_merged_responses_are_no_speculation(counts_are_exact: bool) -> None:
    """A response that a front merged of two steps takes twice as long; one of an accepted draft takes one step.

    The second reply has more of them, which is all that is known where responses do not state their tokens.
    """
    replies = ([1, 2, 1, 1, 2, 1, 1, 1], [1, 2, 2, 1, 2, 2, 1, 2])
    merged = columns_of([_record(counts, place, merged=True) for place, counts in enumerate(replies)])
    drafted = columns_of([_record(counts, place) for place, counts in enumerate(replies)])
    assert speculation_of(merged, NO_SAMPLES, WHOLE, counts_are_exact=counts_are_exact) is None
    found = speculation_of(drafted, NO_SAMPLES, WHOLE, counts_are_exact=counts_are_exact)
    assert found is not None
    assert found.tokens_per_step == 1.5


def test_events_without_text_are_no_speculation() -> None:
    """Where events do not state their tokens, one in twenty more tokens than events is what any server shows."""
    columns = columns_of([_record([1, *[1] * 18, 2])])
    assert speculation_of(columns, NO_SAMPLES, WHOLE, counts_are_exact=False) is None


@pytest.mark.parametrize("ends_s", [(1.0,), (1.0, 50.0)])
def test_a_server_that_counts_no_draft_does_not_speculate(ends_s: tuple[float, ...]) -> None:
    """Its counter at zero outweighs how the tokens arrived, even if it was read once."""
    zero = [Sample(t_s=at_s, values={"emulator_draft_tokens_total": 0.0}) for at_s in ends_s]
    assert speculation_of(columns_of([_record([1, 3, 1, 2])]), samples_of(zero), WHOLE) is None


def test_a_servers_own_counters_come_first() -> None:
    """VLLM's counters by position, and TensorRT-LLM's with its mean accepted length; growth in the window counts."""
    name = 'vllm:spec_decode_num_{}_total{{model_name="m"}}'
    per_position = 'vllm:spec_decode_num_accepted_tokens_per_pos_total{{model_name="m",position="{}"}}'

    def page(at_s: float, steps: int) -> Sample:
        values = {name.format("drafts"): steps, name.format("draft_tokens"): 3 * steps}
        values |= {name.format("accepted_tokens"): 1.024 * steps}
        values |= {per_position.format(place): rate * steps for place, rate in enumerate((0.596, 0.283, 0.145))}
        return Sample(t_s=at_s, values=values)

    records = columns_of([_record([1, 1])])
    found = speculation_of(records, samples_of([page(1, 1_000), page(50, 9_000), page(200, 99_000)]), WHOLE)
    assert found is not None
    assert found.source == "server"
    assert found.tokens_per_step == pytest.approx(2.024)
    assert found.acceptance == pytest.approx((0.596, 0.283, 0.145))
    assert found.accepted_ratio == pytest.approx(0.3413, abs=1e-4)
    of_trtllm = [
        Sample(
            t_s=at_s,
            values={
                "trtllm_spec_decode_num_draft_tokens_total": 100.0 * at_s,
                "trtllm_spec_decode_num_accepted_tokens_total": 40.0 * at_s,
                "trtllm_spec_decode_acceptance_length": 2.2,
            },
        )
        for at_s in (1.0, 9.0)
    ]
    found = speculation_of(records, samples_of(of_trtllm), WHOLE)
    assert found is not None
    assert (found.tokens_per_step, found.accepted_ratio) == (2.2, 0.4)


def test_steps_without_drafts_count() -> None:
    """n-gram drafts only where it finds a match: 300 of 1,000 decode steps here, of which 120 have one accepted."""

    def page(at_s: float) -> Sample:
        values = {
            "vllm:generation_tokens_total": 10 * 1_140.0 * at_s,  # 1,000 steps, 120 accepted, 20 first tokens
            "vllm:time_to_first_token_seconds_count": 10 * 20.0 * at_s,
            "vllm:spec_decode_num_drafts_total": 10 * 300.0 * at_s,
            "vllm:spec_decode_num_draft_tokens_total": 10 * 900.0 * at_s,
            "vllm:spec_decode_num_accepted_tokens_total": 10 * 120.0 * at_s,
            'vllm:spec_decode_num_accepted_tokens_per_pos_total{position="0"}': 10 * 120.0 * at_s,
        }
        return Sample(t_s=at_s, values=values)

    found = speculation_of(columns_of([_record([1, 1])]), samples_of([page(1), page(50), page(90)]), WHOLE)
    assert found is not None
    assert found.tokens_per_step == pytest.approx(1.12)
    assert found.acceptance == pytest.approx((0.12,))
    assert found.accepted_ratio == pytest.approx(120 / 900)
