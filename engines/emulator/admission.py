"""SGLang's admission: which waiting prompts start, by an estimate of what running requests will still need.

A running request is expected to need a share, the new-token ratio, of what is left of its `max_tokens`; a new one all
of it. The ratio falls with each decode step, and is estimated again from the running requests when memory ran out and
one was paused. After a refusal nothing starts until a running request leaves.

Source:
    SGLang 0.5, `managers/schedule_policy.py` (PrefillAdder), `managers/scheduler.py` and `environ.py`
    (SGLANG_INIT_NEW_TOKEN_RATIO and those below it), read 2026-11-29.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from engines.emulator.blocks import KvPool
from engines.emulator.scheduler import Sequence

MIN_SHARE = 0.14  # of the initial ratio
DECAY_STEPS = 600  # decode steps from the initial ratio to the least
PAUSE_MARGIN_TOKENS = 20  # of each running request, after a pause
MAX_NEW_TOKENS = 4_096  # of a request's `max_tokens` that count


class Estimate:
    """The estimate of one engine.

    Args:
        initial_ratio: Ratio of an idle engine.
    """

    def __init__(self, initial_ratio: float) -> None:
        self.initial_ratio = initial_ratio
        self.ratio = initial_ratio
        self.is_full = False  # a prompt was refused, and no running request has left since

    def reset(self) -> None:
        """Note that the engine was idle."""
        self.ratio, self.is_full = self.initial_ratio, False

    def decay(self, steps: int) -> None:
        """Note decode steps without a pause."""
        smallest = MIN_SHARE * self.initial_ratio
        self.ratio = max(smallest, self.ratio - steps * (self.initial_ratio - smallest) / DECAY_STEPS)

    def estimate_again(self, running: Collection[Sequence], index: int) -> None:
        """Take the ratio from what the running requests have produced; some were paused before iteration `index`."""
        produced = sum(sequence.produced_at(index) for sequence in running) + PAUSE_MARGIN_TOKENS * len(running)
        self.ratio = min(1.0, produced / (sum(sequence.request.max_output_tokens for sequence in running) + 1))

    def startable(
        self, pending: Collection[Sequence], decoding: Iterable[Sequence], index: int, pool: KvPool
    ) -> Iterator[Sequence]:
        """Yield the waiting sequences that may run: those started, then new ones up to the first that does not fit."""
        started = [sequence for sequence in pending if sequence.has_blocks]
        yield from started
        running = [*started, *decoding]
        if self.is_full and running:
            return
        still = sum(_left(sequence, index) for sequence in running) * self.ratio
        spare = pool.available - still / pool.tokens_per_block
        for sequence in pending:
            if sequence.has_blocks:
                continue
            prompt_blocks = pool.blocks_for(sequence.prompt_tokens)
            spare -= prompt_blocks + _left(sequence, index) / pool.tokens_per_block
            if spare <= 0 and (running or prompt_blocks > pool.available):
                self.is_full = True
                return
            running.append(sequence)
            yield sequence


def _left(sequence: Sequence, index: int) -> int:
    """Return the tokens that a request may still produce, as far as they count."""
    return min(sequence.request.max_output_tokens - sequence.produced_at(index), MAX_NEW_TOKENS)
