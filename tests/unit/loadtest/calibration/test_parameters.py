"""What is expected of a deployment before any point is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engines.spec import SPLIT, Waves, engine_profile_named, gpu_named
from loadtest.calibration.parameters import IN_WAVES as STATIC_BATCHES
from loadtest.calibration.parameters import PLACE, PRIOR, PROFILE_SPREAD, factors_of, prior_of, wave_alone_of

GPU = gpu_named("h100-sxm-80gb")
CPU = GPU.model_copy(update={"name": "made up", "device": "cpu"})
IN_WAVES = Waves(4.125, 4.0)
KV = PLACE["kv_ratio"]


def _deviations(kv_ratio: float, waves: Waves) -> float:
    """Return how many standard deviations a factor on reading the cache is from what is expected."""
    prior = prior_of(None, waves, gpu=GPU)
    return float(abs(math.log(kv_ratio) - prior.expected[KV]) / prior.spread[KV])


def test_only_what_split_engines_are_known_to_need_is_likely_of_split_attention() -> None:
    """Those engines are within a fraction of the spread; blocks in waves, taken for split attention, are far out."""
    for name in ("vllm-v1", "sglang"):
        assert _deviations(engine_profile_named(name).factors.kv_ratio, SPLIT) < 0.2
    assert _deviations(2.4, SPLIT) > 2.5


def test_in_waves_a_group_reads_the_cache_once_or_once_a_head() -> None:
    """Four heads: all four reads, or one and three from the L2 cache, are as far from what is expected."""
    assert _deviations(1.0, IN_WAVES) == pytest.approx(_deviations(0.25, IN_WAVES))
    assert 1.0 < _deviations(1.0, IN_WAVES) < 2.0
    assert _deviations(engine_profile_named("nim-2024").factors.kv_ratio, IN_WAVES) < 1.0


def test_a_group_of_one_head_has_no_reads_to_share() -> None:
    """Without groups, the cache is read as often in waves as split."""
    alone, split = (prior_of(None, waves, gpu=GPU) for waves in (Waves(4.125, 1.0), SPLIT))
    assert (alone.expected[KV], alone.spread[KV]) == (split.expected[KV], split.spread[KV])


def test_the_choice_of_attention_changes_nothing_else() -> None:
    """Every other parameter is expected as it is of any engine, and with an engine named, this one is the engine's."""
    for source, known in (
        ("roofline", ["kv_ratio", "sequence_s"]),
        ("silicon", ["weights_ratio", "kv_ratio", "sequence_s"]),
    ):
        split, in_waves = (prior_of(None, waves, gpu=GPU, source=source) for waves in (SPLIT, IN_WAVES))
        for one, other in ((split.expected, in_waves.expected), (split.spread, in_waves.spread)):
            assert np.flatnonzero(one != other).tolist() == [PLACE[name] for name in known]
    nim = engine_profile_named("nim-2024")
    assert math.exp(prior_of(nim, IN_WAVES, gpu=GPU).expected[KV]) == pytest.approx(nim.factors.kv_ratio)


def test_static_batches_count_alone_or_beside_the_engine_named() -> None:
    """Without an engine, theirs is all that is known; with one, what is expected lies between, and is known better."""
    value, deviation = STATIC_BATCHES["sequence_s"]
    nim, place = engine_profile_named("nim-2024"), PLACE["sequence_s"]
    alone, named = (prior_of(profile, IN_WAVES, gpu=GPU) for profile in (None, nim))
    assert (math.exp(alone.expected[place]), alone.spread[place]) == pytest.approx((value, deviation))
    assert value < math.exp(named.expected[place]) < nim.factors.sequence_s
    assert named.spread[place] == pytest.approx(1 / math.hypot(1 / deviation, 1 / PROFILE_SPREAD))


@pytest.mark.parametrize(("tail", "alone"), [(1.0, 1.0), (0.5, 1.0), (0.32, 0.8), (0.08, 0.4)])
def test_a_tail_says_what_a_block_alone_takes(tail: float, alone: float) -> None:
    """Last waves of any part, each no shorter than the share, are on average longer than their parts by the tail."""
    parts = (np.arange(100_000) + 0.5) / 100_000
    assert wave_alone_of(tail) == pytest.approx(alone)
    if tail <= 0.5:
        assert np.mean(np.maximum(parts, alone) - parts) == pytest.approx(tail, abs=1e-4)


def test_attention_that_is_split_keeps_its_tail_and_share() -> None:
    """Neither is fitted there: a file has what it has without waves."""
    factors = factors_of(PRIOR.expected, SPLIT)
    assert (factors.wave_tail, factors.wave_alone) == (0.0, 1.0)


def test_measured_kernels_in_a_compared_format_are_expected_more_precisely() -> None:
    """Of a data sheet, or of a format that one framework alone has measured, less is known."""
    bf16, awq, sheet = (
        prior_of(None, SPLIT, gpu=GPU, source=source, precision=precision)
        for source, precision in (("silicon", "bf16"), ("silicon", "int4_awq"), ("roofline", "bf16"))
    )
    assert awq.spread.tolist() == sheet.spread.tolist()
    assert np.flatnonzero(bf16.spread < sheet.spread).tolist() == [PLACE["gemm_ratio"], PLACE["attention_ratio"]]
    assert bf16.expected.tolist() == sheet.expected.tolist()


def test_a_cpu_has_no_waves_to_tell_from() -> None:
    """There attention is never in waves, and its factor keeps the spread of any engine's."""
    assert prior_of(None, SPLIT, gpu=CPU).spread[KV] == PRIOR.spread[KV]
