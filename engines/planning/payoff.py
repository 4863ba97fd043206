"""Where speculation pays: its speed-up against the batch size, prompts included, and where that ends.

A step that verifies drafts emits more tokens and takes longer. Few sequences leave arithmetic idle, so verifying is
nearly free; the larger the batch, the more it costs, and the more often a prompt has to be drafted for as well.
"""

from __future__ import annotations

from dataclasses import replace

from engines.files import Strict
from engines.manifest import EngineManifest
from engines.planning.limits import BATCH_SIZES, Engine, Outlook, engine_of, outlook
from engines.planning.recipe import Workload


class Payoff(Strict):
    """Tokens per second of a full engine with speculation over those without it, at equal batch sizes.

    Attributes:
        isl: Prompt length of the typical request; `osl`: its reply length.
        speedups: By batch size, up to what the KV cache holds, and below the size whose prompts fill every iteration:
            the closed form does not apply there.
        pays_to: The largest batch size up to which it is faster; 0: at none.
        is_open: It is still faster at the largest batch size.
    """

    isl: int
    osl: int
    speedups: tuple[tuple[int, float], ...]
    pays_to: int
    is_open: bool

    @property
    def sentence(self) -> str:
        """Where it pays, in one sentence."""
        alone = f"{self.speedups[0][1]:.2f} times the tokens per second at 1"
        if self.is_open:
            return f"speculation pays at every batch size up to {self.pays_to}: {alone}"
        if not self.pays_to:
            return f"speculation does not pay at any batch size: {alone}"
        return (
            f"speculation pays up to a batch size of {self.pays_to}: {alone}; above it, fewer than without speculation"
        )


def payoff_of(manifest: EngineManifest, *, isl: int, osl: int) -> Payoff | None:
    """Return where an engine's speculation pays under steady load; None if it has none.

    Args:
        isl: Prompt length of the typical request.
        osl: Its reply length.
    """
    if manifest.speculative is None:
        return None
    workload = Workload(isl=isl, osl=osl, longest_isl=isl, longest_osl=osl)
    drafting = engine_of(manifest)
    plain = replace(drafting, speculation=None)

    def speedup(batch: int) -> float:
        return _full(drafting, batch, workload).tokens_per_s / _full(plain, batch, workload).tokens_per_s

    largest = min(BATCH_SIZES[-1], drafting.memory.kv_tokens // (isl + osl))
    usable = [batch for batch in BATCH_SIZES if batch <= largest and _full(drafting, batch, workload).prompt_share < 1]
    sizes = usable or [1]
    speedups = [(batch, speedup(batch)) for batch in sizes]
    ends = next((place for place, (_, ratio) in enumerate(speedups) if ratio <= 1), None)
    pays_to = sizes[-1]
    if ends is not None:
        low, high = (sizes[ends - 1] if ends else 0), sizes[ends]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if speedup(middle) > 1 else (low, middle)
        pays_to = low
    return Payoff(isl=isl, osl=osl, speedups=tuple(speedups), pays_to=pays_to, is_open=ends is None)


def _full(engine: Engine, batch: int, workload: Workload) -> Outlook:
    tokens = max(engine.sizing.max_num_tokens, 2 * batch * engine.step_tokens)
    return outlook(engine.limited(max_batch_size=batch, max_num_tokens=tokens), workload)
