"""SGLang's admission by an estimate, held to the constants and the arithmetic of its source."""

from __future__ import annotations

import pytest

from engines.emulator.admission import Estimate
from engines.emulator.blocks import KvPool
from engines.emulator.request import Request
from engines.emulator.scheduler import Sequence


def _waiting(count: int, *, prompt: int = 100, largest: int = 400) -> list[Sequence]:
    return [Sequence(Request(number, prompt, largest), number, 0.0, largest) for number in range(count)]


def test_a_new_request_counts_whole_and_a_running_one_by_its_share() -> None:
    """Of 1,700 tokens, three new requests take 100 + 400 each; once started (0.7 of 400 to come), a fourth fits."""
    pool = KvPool(1_700, 1)
    estimate = Estimate(0.7)
    waiting = _waiting(5)
    started = list(estimate.startable(waiting, (), 0, pool))
    assert len(started) == 3
    estimate.is_full = False  # as a request left
    for sequence in started:
        sequence.has_blocks = True
        pool.take(100)
    assert len(list(estimate.startable(waiting, (), 0, pool))) == 3 + 1  # 1,400 - 3 x 280 = 560 > 500


def test_after_a_refusal_nothing_starts_until_a_request_leaves_or_none_runs() -> None:
    """SGLang's batch stays full; without a running request, a prompt that fits starts whatever the estimate says."""
    pool = KvPool(300, 1)
    estimate = Estimate(0.7)
    first, second = _waiting(2)
    assert list(estimate.startable([first], (), 0, pool)) == [first]
    first.has_blocks = True
    assert list(estimate.startable([first, second], (), 0, pool)) == [first]
    assert estimate.is_full
    assert list(estimate.startable([second], (), 0, KvPool(10_000, 1))) == [second]


def test_the_ratio_falls_with_decode_steps_and_is_estimated_again_after_a_pause() -> None:
    """0.7 falls to 0.098 within 600 steps; two requests that may produce 400 each and have none: (2 x 20) / 801."""
    estimate = Estimate(0.7)
    estimate.decay(300)
    assert estimate.ratio == pytest.approx((0.7 + 0.098) / 2)
    estimate.decay(10_000)
    assert estimate.ratio == pytest.approx(0.098)
    estimate.estimate_again(_waiting(2), 0)
    assert estimate.ratio == pytest.approx(40 / 801)
    estimate.reset()
    assert estimate.ratio == 0.7
