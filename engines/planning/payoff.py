"""Where speculation pays: its speed-up of decoding against the batch size, and where that ends.

A step that verifies drafts emits more tokens and takes longer. Few sequences leave arithmetic idle, so verifying is
nearly free; the larger the batch, the more it costs, until one token a step is faster.
"""

from __future__ import annotations

from engines.files import Strict
from engines.manifest import EngineManifest
from engines.planning.limits import BATCH_SIZES
from engines.steptime import StepShape, step_time_for


class Payoff(Strict):
    """Tokens per second of decoding with speculation over those without it, at equal batch sizes.

    Attributes:
        context_tokens: Cached tokens of each sequence; prompts are not computed meanwhile.
        speedups: By batch size.
        pays_to: The largest batch size up to which it is faster; 0: at none.
        is_open: It is still faster at the largest batch size that was priced.
    """

    context_tokens: int
    speedups: tuple[tuple[int, float], ...]
    pays_to: int
    is_open: bool

    @property
    def sentence(self) -> str:
        """Where it pays, in one sentence."""
        alone, most = self.speedups[0][1], self.speedups[-1][0]
        if self.is_open:
            return f"speculation pays at every batch size up to {most}: {alone:.2f} times at 1"
        if not self.pays_to:
            return f"speculation does not pay at any batch size: {alone:.2f} times at 1"
        return f"speculation pays up to a batch of {self.pays_to}: {alone:.2f} times at 1, slower beyond"


def payoff_of(manifest: EngineManifest, *, context_tokens: int) -> Payoff | None:
    """Return where an engine's speculation pays; None if it has none."""
    speculative = manifest.speculative
    if speculative is None:
        return None
    with_drafts = step_time_for(manifest)
    without = step_time_for(manifest.model_copy(update={"speculative": None}))

    def speedup(batch: int) -> float:
        shape = StepShape(batch, batch * context_tokens)
        return speculative.tokens_per_step * without.seconds(shape) / with_drafts.seconds(shape)

    speedups = [(batch, speedup(batch)) for batch in BATCH_SIZES]
    ends = next((place for place, (_, ratio) in enumerate(speedups) if ratio <= 1), None)
    pays_to = BATCH_SIZES[-1]
    if ends is not None:
        low, high = (BATCH_SIZES[ends - 1] if ends else 0), BATCH_SIZES[ends]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if speedup(middle) > 1 else (low, middle)
        pays_to = low
    return Payoff(context_tokens=context_tokens, speedups=tuple(speedups), pays_to=pays_to, is_open=ends is None)
