"""How many draft tokens each step of a reply accepts, drawn from a profile by position."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class Draws:
    """The draft tokens that the coming decode steps of a request accept, drawn when it is submitted.

    Args:
        accepted: One number for each step; as many steps as the reply has tokens.
    """

    def __init__(self, accepted: npt.NDArray[np.int64]) -> None:
        self._accepted = accepted

    def emitted(self, tokens: int) -> list[int]:
        """Return the tokens emitted after 0, 1, 2, ... steps, up to the step that emits the last of `tokens`."""
        after = np.cumsum(self._accepted + 1)
        steps = int(np.searchsorted(after, tokens)) + 1 if tokens else 0
        found: list[int] = np.minimum(after[:steps], tokens).tolist()
        return [0, *found]

    def after(self, steps: int) -> Draws:
        """Return the draws that are left after some steps."""
        return Draws(self._accepted[steps:])


class Acceptance:
    """Draws how many draft tokens each step of a request accepts, independently of all other steps.

    Args:
        rates: Share of steps in which the draft token at each position is accepted, falling.
        seed: Requests submitted in the same order draw the same.
    """

    def __init__(self, rates: tuple[float, ...], seed: int) -> None:
        self._rising = np.array(rates)[::-1]
        self._rng = np.random.default_rng(seed)

    def draw(self, tokens: int) -> Draws:
        """Return the draws of a reply: position i is accepted if a uniform number is below its rate."""
        uniform = self._rng.random(tokens)
        return Draws(len(self._rising) - np.searchsorted(self._rising, uniform, side="right"))
