"""What the means of a finite closed loop contain beyond its steady state.

Tools such as genai-perf start all users at once and measure from that moment. A share of the published means is
therefore the first wave, whose prompts queue for each other. Their tokens/s is all tokens of complete replies over the
time from the first request to the last token; replies in progress at the end took part of that time and do not count.
"""

from __future__ import annotations

import numpy as np

from loadtest.calibration.parameters import Array


def share_of_first_wave(rounds: float) -> float:
    """Return the share of each user's first reply in the means of `rounds` replies."""
    return 1 / max(1.0, rounds)


def weights_of(steady: int, first: int, share: float) -> Array:
    """Return the weights of requests in a mean: those of the steady state, then those of the first wave.

    >>> weights_of(3, 1, 0.25).tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    return np.repeat([(1 - share) / max(1, steady), share / max(1, first)], [steady, first])


def unfinished_s(ends_s: Array, users: int) -> float:
    """Return for how long a user's reply has been in progress when a measurement ends, as a mean over its users.

    The measurement lasts until the last reply that ends before some moment; that moment is equally likely at any time.
    Users who always end together leave nothing unfinished, users spread evenly half of a reply.

    Args:
        ends_s: When replies ended, in order; shape (replies,), each user's equally far apart.

    >>> unfinished_s(np.array([0.0, 0.0, 4.0, 4.0, 8.0, 8.0]), 2)
    0.0
    >>> unfinished_s(np.array([0.0, 2.0, 4.0, 6.0, 8.0]), 2)
    1.0
    """
    if len(ends_s) <= users:
        return 0.0
    sums = np.concatenate([[0.0], np.cumsum(ends_s)])
    last = np.arange(users - 1, len(ends_s) - 1)
    lags_s = ends_s[last] - (sums[last + 1] - sums[last + 1 - users]) / users
    until_next_s = ends_s[last + 1] - ends_s[last]
    total_s = float(until_next_s.sum())
    return float(until_next_s @ lags_s) / total_s if total_s > 0 else 0.0
