"""What a paused sequence finds of its own blocks when it starts again: vLLM's order of giving them up."""

from __future__ import annotations

import pytest

from engines.emulator import Batcher, BatcherSettings, Request
from engines.emulator.blocks import KvPool
from engines.steptime import StepShape

BLOCK = 16


def pool_of(*, paused: int, blocks: int = 10) -> KvPool:
    """Return a full pool, of which a sequence of so many blocks has just been paused."""
    pool = KvPool(blocks, BLOCK, reuse=True)
    pool.take(blocks)
    pool.release(paused, (), paused=7)
    return pool


def test_nothing_is_lost_where_nobody_took_a_block() -> None:
    """All whole blocks before the last token are found."""
    pool = pool_of(paused=4)
    assert pool.take_again(7, 4 * BLOCK) == 3  # the last token is computed, and with it the fourth block
    assert pool.available == 0


def test_the_last_blocks_go_first() -> None:
    """Two blocks that others took were the sequence's last; once they are back, its first two are still there."""
    pool = pool_of(paused=4)
    pool.take(2)
    pool.release(2, ())
    assert pool.take_again(7, 4 * BLOCK) == 2
    assert pool.used == 10


def test_who_was_paused_first_loses_first() -> None:
    """Blocks freed earlier are taken before those of a sequence paused later."""
    pool = pool_of(paused=4)
    pool.release(3, (), paused=8)
    pool.take(5)
    pool.release(5, ())
    assert pool.take_again(8, 3 * BLOCK + 1) == 2
    assert pool.take_again(7, 3 * BLOCK) == 0


def test_without_reuse_everything_is_computed_again() -> None:
    """A pool that keeps nothing finds nothing."""
    pool = KvPool(10, BLOCK)
    pool.take(10)
    pool.release(4, (), paused=7)
    assert pool.take_again(7, 4 * BLOCK) == 0


class OneSecond:
    """A step takes one second, whatever is in it."""

    def seconds(self, shape: StepShape) -> float:
        """Return one second."""
        del shape
        return 1.0


@pytest.mark.parametrize(("reuse", "computed"), [(True, 3), (False, 35)])
def test_a_paused_request_computes_only_what_it_lost(reuse: bool, computed: int) -> None:
    """In six blocks one request is paused with two tokens made: of its 35, the two blocks nobody took need no work."""
    settings = BatcherSettings(
        max_batch_size=4,
        max_num_tokens=256,
        max_seq_len=96,
        tokens_per_block=BLOCK,
        kv_blocks=6,
        kv_reuse=reuse,
        chunked_context=True,
        policy="max_utilization",
    )
    batcher = Batcher(settings, OneSecond())  # type: ignore[arg-type]
    batcher.submit(Request("first", 47, 4), 0.0)
    batcher.submit(Request("second", 33, 20), 0.0)
    pieces = []
    while (iteration := batcher.begin(0.0)) is not None:
        pieces += [(chunk.sequence.request.request_id, chunk.tokens) for chunk in iteration.chunks]
        batcher.finish(iteration)
    assert pieces[:2] == [("first", 47), ("second", 33)]
    assert pieces[2][0] == "second"
    assert pieces[2][1] == computed
