"""Speculative decoding: how many draft tokens a step an engine is built for."""

from __future__ import annotations


def lookahead_draft_tokens(window_size: int, ngram_size: int, verification_set_size: int) -> int:
    """Return the draft tokens a step of lookahead decoding takes: what `--max_draft_len` must be, no more and no less.

    Args:
        window_size: N-grams of the lookahead branch (W).
        ngram_size: Most draft tokens accepted in a step (N).
        verification_set_size: N-grams verified in a step (G).

    Source:
        TensorRT-LLM 1.2, examples/lookahead/README.md.

    >>> lookahead_draft_tokens(7, 7, 7), lookahead_draft_tokens(1, 1, 0)
    (83, 0)
    """
    return max(ngram_size - 2, 0) + (window_size - 1 + verification_set_size) * (ngram_size - 1)
