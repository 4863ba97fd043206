"""Speculative decoding: the number of draft tokens per step that an engine is built for."""

from __future__ import annotations


def lookahead_draft_tokens(window_size: int, ngram_size: int, verification_set_size: int) -> int:
    """Return the draft tokens per step of lookahead decoding, which `--max_draft_len` must equal.

    Args:
        window_size: N-grams of the lookahead branch (W).
        ngram_size: Maximum draft tokens accepted per step (N).
        verification_set_size: N-grams verified per step (G).

    Source:
        TensorRT-LLM 1.2, examples/lookahead/README.md.

    >>> lookahead_draft_tokens(7, 7, 7), lookahead_draft_tokens(1, 1, 0)
    (83, 0)
    """
    return max(ngram_size - 2, 0) + (window_size - 1 + verification_set_size) * (ngram_size - 1)
