"""Speculative decoding as measured: tokens per step, and how often drafts are accepted."""

from __future__ import annotations

import numpy as np

from loadtest.metrics.batch_size import Samples
from loadtest.metrics.steady_state import Window
from loadtest.metrics.summary import Speculation
from loadtest.results import ACCEPTED_AT, Columns, Floats, Ints

MIN_SHARE = 0.001  # of the steps: a position that fewer accept is not listed
# Of tokens a step, in addition to one, before responses are taken for speculation. A busy server without it sends two
# tokens at once now and then (vLLM 0.32 on a busy core: one response in a thousand).
MIN_EXTRA = 0.02
# The same where a response does not state its tokens: those without text (parts of a character, special tokens) and
# events merged on the way count as extra ones too (our OpenAI front, no speculation: up to 0.07).
MIN_EXTRA_OF_EVENTS = 0.1
MAX_EXPLAINED = 0.5  # of the time between responses, by their tokens: halfway between speculation's 0 and merging's 1


def speculation_of(
    good: Columns, samples: Samples, window: Window, *, counts_are_exact: bool = True
) -> Speculation | None:
    """Return the acceptance of a level, by the server's counters where it has them; None if nothing was speculated.

    A server that counts drafts and had none does not speculate, however its tokens arrive. Without counters, the tokens
    of each response after a reply's first, which is the prompt's own step, tell: a step's tokens arrive together.
    Merged responses (by a front, the network, a busy client) look the same but for their time: a step of speculation
    takes as long for three tokens as for one, while a response merged of three steps comes after three times as long.
    A server that always bundles the same number of tokens looks like one that speculates.

    Args:
        counts_are_exact: Whether each response said how many tokens it had; if not, only their mean is known.
    """
    if _drafts_none(samples):
        return None
    return _of_server(samples, window) or _of_responses(good, counts_are_exact=counts_are_exact)


def _drafts_none(samples: Samples) -> bool:
    """Return whether the server counts its draft tokens, and has had none since it started."""
    found = samples.values.get("draft_tokens", np.zeros(0))
    known = found[np.isfinite(found)]
    return bool(len(known)) and not known.any()


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
        some = good.responses > 1
        gaps, later = (good.responses - 1)[some], (good.tokens - 1)[some]
        mean = float(later.sum() / gaps.sum()) if len(gaps) else 1.0
        if mean <= 1 + MIN_EXTRA_OF_EVENTS or _are_merged(later / gaps, (good.last_s - good.first_s)[some] / gaps):
            return None
        return Speculation(tokens_per_step=mean, source="responses")
    is_later = np.ones(len(tokens), dtype=bool)
    is_later[(np.cumsum(good.responses) - good.responses)[good.responses > 0]] = False
    steps = tokens[is_later]
    if not len(steps) or steps.mean() <= 1 + MIN_EXTRA or _are_merged(steps, good.gaps_s.astype(np.float64)):
        return None
    shares = [float((steps > position).mean()) for position in range(1, int(steps.max()))]
    return Speculation(
        tokens_per_step=float(steps.mean()),
        acceptance=tuple(share for share in shares if share >= MIN_SHARE),
        source="responses",
    )


def _are_merged(tokens: Floats | Ints, gaps_s: Floats) -> bool:
    """Return whether responses with more tokens came after longer gaps: several steps each.

    The line fitted to the gaps (least squares) divides the mean gap into a constant part, a step, and one that grows
    with the tokens.
    """
    spread = tokens - tokens.mean()
    variance, mean_gap_s = float((spread**2).sum()), float(gaps_s.mean())
    if variance == 0 or mean_gap_s <= 0:
        return False
    slope_s = float((spread * gaps_s).sum()) / variance
    return slope_s * float(tokens.mean()) / mean_gap_s > MAX_EXPLAINED
