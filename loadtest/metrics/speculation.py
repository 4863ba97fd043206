"""Speculative decoding as measured: tokens per step, and how often drafts are accepted."""

from __future__ import annotations

import numpy as np

from loadtest.metrics.batch_size import Samples
from loadtest.metrics.steady_state import Window
from loadtest.metrics.summary import Speculation
from loadtest.results import ACCEPTED_AT, Columns

MIN_SHARE = 0.001  # of the steps: a position that fewer accept is not listed
# Of tokens a step, in addition to one, before responses are taken for speculation: a busy server without it sends two
# tokens at once now and then (vLLM 0.32 on a busy core: one response in a thousand).
MIN_EXTRA = 0.02


def speculation_of(
    good: Columns, samples: Samples, window: Window, *, counts_are_exact: bool = True
) -> Speculation | None:
    """Return the acceptance of a level, by the server's counters where it has them; None if nothing was speculated.

    Otherwise by the tokens of each response after a reply's first, which is the prompt's own step: a step's tokens
    arrive together. A server that often bundles tokens for other reasons looks the same.

    Args:
        counts_are_exact: Whether each response said how many tokens it had; if not, only their mean is known.
    """
    return _of_server(samples, window) or _of_responses(good, counts_are_exact=counts_are_exact)


def _of_server(samples: Samples, window: Window) -> Speculation | None:
    accepted, drafted = (samples.grown(name, window) for name in ("accepted_tokens", "draft_tokens"))
    if not drafted or accepted is None:
        return None
    steps = _decode_steps(samples, window, accepted) or samples.grown("draft_steps", window)
    length = 1 + accepted / steps if steps else samples.mean("accept_length", window)
    if length is None:
        return None
    by_position = [samples.grown(name, window) for name in _positions(samples)] if steps else []
    return Speculation(
        tokens_per_step=length,
        acceptance=tuple(found / steps for found in by_position if found is not None and steps),
        accepted_ratio=accepted / drafted,
        source="server",
    )


def _decode_steps(samples: Samples, window: Window, accepted: float) -> float | None:
    """Return the decode steps of all sequences; None if the server does not count its tokens.

    A method that looks drafts up (n-gram) has none in many steps, which the server's count of drafts leaves out.
    """
    generated, first = (samples.grown(name, window) for name in ("generated_tokens", "first_tokens"))
    return None if generated is None or first is None else max(0.0, generated - first - accepted)


def _positions(samples: Samples) -> list[str]:
    named = [name for name in samples.values if name.startswith(ACCEPTED_AT)]
    return sorted(named, key=lambda name: int(name.removeprefix(ACCEPTED_AT)))


def _of_responses(good: Columns, *, counts_are_exact: bool) -> Speculation | None:
    tokens = good.response_tokens
    if tokens is None:
        return None
    if not counts_are_exact:
        responses = int(np.maximum(good.responses - 1, 0).sum())
        mean = float(np.maximum(good.tokens - 1, 0).sum()) / responses if responses else 1.0
        return Speculation(tokens_per_step=mean, source="responses") if mean > 1 + MIN_EXTRA else None
    is_later = np.ones(len(tokens), dtype=bool)
    is_later[(np.cumsum(good.responses) - good.responses)[good.responses > 0]] = False
    steps = tokens[is_later]
    if not len(steps) or steps.mean() <= 1 + MIN_EXTRA:
        return None
    shares = [float((steps > position).mean()) for position in range(1, int(steps.max()))]
    return Speculation(
        tokens_per_step=float(steps.mean()),
        acceptance=tuple(share for share in shares if share >= MIN_SHARE),
        source="responses",
    )
