"""Factors before a step time: neutral ones change nothing, and each does what its name says."""

from __future__ import annotations

import numpy as np
import pytest

from engines.spec.deployment import Factors
from engines.spec.gpu import gpu_named
from engines.spec.model import model_named
from engines.spec.placed_model import PlacedModel
from engines.steptime.calibrated import Calibrated
from engines.steptime.roofline import Roofline
from engines.steptime.shape import StepShape

SHAPES = (
    StepShape(decode_sequences=1, decode_context_tokens=100),
    StepShape(decode_sequences=64, decode_context_tokens=64_000),
    StepShape(8, 4_000, 2, 600, 120_000),
    StepShape(prefill_sequences=1, prefill_tokens=2_000, prefill_attended_tokens=2_001_000),
)


@pytest.fixture(scope="module")
def source() -> Roofline:
    """Return the data-sheet source of the default engine."""
    return Roofline(PlacedModel(model_named("llama-3-8b"), gpu_named("h100-sxm-80gb"), "fp8", "fp8"))


@pytest.mark.parametrize("shape", SHAPES)
def test_neutral_factors_change_nothing(source: Roofline, shape: StepShape) -> None:
    """Ratios of 1 and no added seconds leave every iteration as the source prices it."""
    assert Calibrated(source, Factors()).cost(shape) == pytest.approx(source.cost(shape))


@pytest.mark.parametrize("waves", [(1.0, 0.0, 1.0), (4.0, 1.0, 4.0)])
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_the_line_goes_through_the_step(source: Roofline, shape: StepShape, waves: tuple[float, float, float]) -> None:
    """A pure decode step costs what its line says, in waves or not, whatever the factors."""
    sequences, tail, reads = waves
    factors = Factors(
        weights_ratio=1.2,
        kv_ratio=1.5,
        iteration_s=1e-3,
        sequence_s=1e-5,
        wave_sequences=sequences,
        wave_tail=tail,
        wave_reads=reads,
    )
    step_time = Calibrated(source, factors)
    line = step_time.decode_line(shape.decode_sequences, shape.decode_context_tokens)
    assert line.base_s + line.per_context_token_s * shape.decode_context_tokens == pytest.approx(
        step_time.seconds(shape), rel=1e-9
    )


@pytest.mark.parametrize(("alone", "share"), [(1.0, 1.0), (0.8, 0.8), (0.4, 0.4), (0.2, 0.25)])
def test_a_block_alone_takes_its_share_of_a_full_wave(source: Roofline, alone: float, share: float) -> None:
    """One sequence of a wave of four takes the share of a wave's time, but no less than its quarter."""
    one, eight = (
        Calibrated(source, Factors(wave_sequences=4.0, wave_tail=0.5, wave_alone=alone)).decode_line(
            count, count * 1_000
        )
        for count in (1, 8)
    )
    per_sequence_s = 1_000 * eight.per_context_token_s * 8 / (8 + 4 * 0.5)
    assert 1_000 * one.per_context_token_s == pytest.approx(4 * share * per_sequence_s, rel=1e-9)


def test_each_factor_moves_its_own_part(source: Roofline) -> None:
    """Twice the time to read the cache adds exactly what the source reads it in."""
    shape = SHAPES[1]
    added_s = Calibrated(source, Factors(kv_ratio=2.0)).seconds(shape) - source.seconds(shape)
    assert added_s == pytest.approx(source.cost(shape).kv_read_s)


def test_host_time_grows_with_the_sequences(source: Roofline) -> None:
    """An iteration pays once, and once more for every sequence, decoding or starting."""
    shape = SHAPES[2]
    added_s = Calibrated(source, Factors(iteration_s=1e-3, sequence_s=1e-4)).seconds(shape) - source.seconds(shape)
    assert added_s == pytest.approx(1e-3 + 10 * 1e-4)


def test_a_wave_takes_as_long_half_empty(source: Roofline) -> None:
    """Up to a full wave, sequences of the same length cost one wave, however few; two waves end with half a one.

    So do files that state no `wave_alone`, as those of before it.
    """
    step_time = Calibrated(source, Factors(wave_sequences=4.0, wave_tail=0.5))
    kv_s = [step_time.cost(StepShape(count, count * 2_000)).kv_read_s for count in (1, 2, 4, 8)]
    assert kv_s[0] == pytest.approx(kv_s[1]) == pytest.approx(kv_s[2])
    assert kv_s[3] == pytest.approx((2 + 0.5) * kv_s[0])


@pytest.mark.parametrize(
    ("sequences", "waves"),
    [
        (1, 1.0),  # 32 blocks of 1,024 threads on 132 places
        (4, 1.0),
        (5, 2.0),  # 160 of them: two rounds
        (8, 2.0),  # 256 blocks of 512 threads on 264 places, two to a multiprocessor
        (10, 4.0),  # 320 of them: two rounds
        (16, 4.0),
        (17, 17 / 4.125 + 1.0),  # 544 blocks of 256 threads on 528 places: waves, and the tail
        (32, 32 / 4.125 + 1.0),
    ],
)
def test_few_sequences_run_in_whole_rounds_of_thread_blocks(source: Roofline, sequences: int, waves: float) -> None:
    """TensorRT-LLM's launcher on 132 multiprocessors, 32 query heads, an FP8 cache; a block takes a round's time."""
    factors = Factors(wave_sequences=132 / 32, wave_blocks=4, wave_tail=1.0, wave_reads=4.0)
    one, some = (_kv_s_per_token(source, factors, count) for count in (1, sequences))
    assert some / one == pytest.approx(waves, rel=1e-6)


@pytest.mark.parametrize(
    "of_table",
    [
        {1: 216.9, 2: 213.2, 4: 204.4, 8: 471.9, 16: 891.8, 32: 1849.1},  # H100, nanoseconds a token of context
        {2: 221.0, 4: 235.2, 8: 508.1, 16: 954.9, 32: 1827.8},  # H200
    ],
    ids=["H100", "H200"],
)
def test_rounds_are_those_of_static_batches(source: Roofline, of_table: dict[int, float]) -> None:
    """TensorRT-LLM 0.9's table of Mistral 7B in FP8: ITL of 2,048 and 2,048 tokens above that of 128 and 128.

    Waves that end evenly, as where the launcher is not known, make a batch of 8 a fifth too slow beside the others.
    """
    launcher, evenly = (
        Factors(wave_sequences=132 / 32, wave_blocks=blocks, wave_tail=1.0, wave_reads=4.0) for blocks in (4, 1)
    )
    batches = list(of_table)
    published = np.log([of_table[batch] for batch in batches])
    errors = []
    for factors in (launcher, evenly):
        predicted = np.log([_kv_s_per_token(source, factors, batch) for batch in batches])
        errors.append(np.std(predicted - published))  # whatever the factor on all of them
    assert errors[0] < 0.07
    assert errors[0] < 0.7 * errors[1]


def _kv_s_per_token(source: Roofline, factors: Factors, sequences: int) -> float:
    line = Calibrated(source, factors).kv_line(sequences, sequences * 2_000)
    return line.per_token_s * sequences


def test_a_round_takes_no_less_than_a_block_alone(source: Roofline) -> None:
    """Ten sequences are a round of 264 blocks and one of 56: a fifth of it, or the share of a block alone."""
    of_share = {
        alone: _kv_s_per_token(
            source, Factors(wave_sequences=132 / 32, wave_blocks=4, wave_tail=0.1, wave_alone=alone), 10
        )
        for alone in (0.1, 0.5, 1.0)
    }
    assert of_share[0.5] / of_share[1.0] == pytest.approx(0.75)
    assert of_share[0.1] / of_share[1.0] == pytest.approx(10 / (2 * 8.25))


def test_a_mixed_iteration_reads_the_cache_once_for_each_query_head(source: Roofline) -> None:
    """Four reads instead of one lengthen an iteration with a prompt by three, and a pure decode step not at all."""
    factors = Factors(mixed_kv_reads=4.0)
    decode = StepShape(decode_sequences=8, decode_context_tokens=8 * 2000)
    mixed = decode._replace(prefill_sequences=1, prefill_tokens=500, prefill_attended_tokens=125_250)
    added_s = Calibrated(source, factors).seconds(mixed) - source.seconds(mixed)
    assert added_s == pytest.approx(3 * source.cost(mixed).kv_read_s)
    assert Calibrated(source, factors).seconds(decode) == pytest.approx(source.seconds(decode))
