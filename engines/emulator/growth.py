"""How decoding sequences grow: the tokens of each iteration, and the KV blocks that it takes.

Without speculation every sequence gains one token an iteration, and a run of iterations is arithmetic (`SteadyGrowth`).
With it, a sequence gains between one token and its whole draft; what each step accepts is drawn when the request is
submitted, so that its end is known all the same (`DrawnGrowth`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engines.emulator.scheduler import Sequence

_Counts = npt.NDArray[np.int64]


class Growth(Protocol):
    """The growth of all decoding sequences, by the iteration's index."""

    def start(self, sequence: Sequence) -> None:
        """Let a sequence decode, from its `decode_index` to its `last_index`."""
        ...

    def stop(self, sequence: Sequence, index: int) -> None:
        """Remove a sequence: it does not decode in iteration `index` and later."""
        ...

    def blocks_at(self, index: int) -> int:
        """Return the blocks to take before an iteration."""
        ...

    def blocks_between(self, first: int, end: int) -> int:
        """Return the blocks to take before the iterations from `first` to `end`, without the last."""
        ...

    def tokens_between(self, first: int, end: int, sequences: int) -> int:
        """Return the tokens that sequences gain in iterations, without `end`."""
        ...

    def contexts_from(self, index: int, context_tokens: int, count: int, sequences: int) -> Iterable[int]:
        """Return the sums of contexts after each of `count` iterations that begin with `context_tokens`."""
        ...

    def held_tokens(self, sequence: Sequence, end: int) -> int:
        """Return the tokens for which a sequence has blocks, once those of all iterations before `end` are taken."""
        ...

    def steps_in_memory(self, index: int, available: int, max_steps: int) -> int:
        """Return for how many iterations, `index` included, `available` blocks suffice; at most `max_steps`.

        The blocks of iteration `index` itself are taken already.
        """
        ...

    def forget(self, first: int, end: int) -> None:
        """Drop what is known of past iterations, without `end`."""
        ...


class SteadyGrowth:
    """One token for each sequence in every iteration."""

    def __init__(self, tokens_per_block: int) -> None:
        self._block = tokens_per_block
        # Decoding sequences by the iteration index, modulo the block size, at which they need a block.
        self._needs = [0] * tokens_per_block
        self._sequences = 0

    def start(self, sequence: Sequence) -> None:
        """Let a sequence decode."""
        self._needs[self._residue(sequence)] += 1
        self._sequences += 1

    def stop(self, sequence: Sequence, index: int) -> None:  # noqa: ARG002 (the same at any index)
        """Remove a sequence."""
        self._needs[self._residue(sequence)] -= 1
        self._sequences -= 1

    def blocks_at(self, index: int) -> int:
        """Return the blocks to take before an iteration."""
        return self._needs[index % self._block]

    def blocks_between(self, first: int, end: int) -> int:
        """Return the blocks to take before iterations."""
        needs, begin = self._needs, first % self._block
        cycles, left = divmod(end - first, self._block)
        count = cycles * self._sequences + sum(needs[begin : begin + left])
        beyond = begin + left - self._block
        return count + sum(needs[:beyond]) if beyond > 0 else count

    def tokens_between(self, first: int, end: int, sequences: int) -> int:
        """Return the tokens that sequences gain in iterations."""
        return (end - first) * sequences

    def contexts_from(self, index: int, context_tokens: int, count: int, sequences: int) -> range:  # noqa: ARG002
        """Return the sums of contexts after each iteration."""
        return range(context_tokens + sequences, context_tokens + (count + 1) * sequences, sequences)

    def held_tokens(self, sequence: Sequence, end: int) -> int:
        """Return the tokens for which a sequence has blocks."""
        return sequence.tokens_at(end)

    def steps_in_memory(self, index: int, available: int, max_steps: int) -> int:
        """Return for how many iterations the blocks suffice."""
        needs, block = self._needs, self._block
        cycles, left = divmod(available, self._sequences)  # each sequence takes a block within `block` iterations
        steps = 1 + cycles * block
        for later in range(index + 1, index + 1 + block):
            left -= needs[later % block]
            if left < 0:
                break
            steps += 1
        return min(steps, max_steps)

    def forget(self, first: int, end: int) -> None:
        """Nothing is kept of an iteration."""

    def _residue(self, sequence: Sequence) -> int:
        """Return the iterations, modulo the block size, at whose start this sequence's last block is full."""
        return (sequence.decode_index - sequence.prompt_tokens) % self._block


class DrawnGrowth:
    """As many tokens for a sequence as its step accepts.

    A step writes the keys and values of its own token and of all draft tokens, and drops those of the rejected ones:
    its blocks must hold `draft_tokens` more than the sequence has (TensorRT-LLM: `max_total_draft_tokens` slots).

    Args:
        draft_tokens: Draft tokens that each step verifies.
    """

    def __init__(self, tokens_per_block: int, draft_tokens: int) -> None:
        self._block = tokens_per_block
        self._draft = draft_tokens
        # Rings by the iteration's index; longer than any sequence decodes.
        self._tokens: _Counts = np.zeros(1024, dtype=np.int64)
        self._blocks: _Counts = np.zeros(1024, dtype=np.int64)

    def start(self, sequence: Sequence) -> None:
        """Let a sequence decode."""
        self._make_room(sequence.last_index - sequence.decode_index + 1, sequence.decode_index)
        self._add(sequence, sequence.decode_index, 1)

    def stop(self, sequence: Sequence, index: int) -> None:
        """Remove a sequence."""
        self._add(sequence, index, -1)

    def blocks_at(self, index: int) -> int:
        """Return the blocks to take before an iteration."""
        return int(self._blocks[index % len(self._blocks)])

    def blocks_between(self, first: int, end: int) -> int:
        """Return the blocks to take before iterations."""
        return int(self._blocks[self._places(first, end)].sum())

    def tokens_between(self, first: int, end: int, sequences: int) -> int:  # noqa: ARG002 (drawn, not one for each)
        """Return the tokens that sequences gain in iterations."""
        return int(self._tokens[self._places(first, end)].sum())

    def contexts_from(self, index: int, context_tokens: int, count: int, sequences: int) -> list[int]:  # noqa: ARG002
        """Return the sums of contexts after each iteration."""
        gained = self._tokens[self._places(index, index + count)]
        found: list[int] = (context_tokens + np.cumsum(gained)).tolist()
        return found

    def held_tokens(self, sequence: Sequence, end: int) -> int:
        """Return the tokens for which a sequence has blocks."""
        if sequence.decode_index < 0 or end <= sequence.decode_index:
            return sequence.prompt_tokens
        return sequence.tokens_at(end - 1) + 1 + self._draft

    def steps_in_memory(self, index: int, available: int, max_steps: int) -> int:
        """Return for how many iterations the blocks suffice."""
        taken = np.cumsum(self._blocks[self._places(index + 1, index + max_steps)])
        return 1 + int(np.searchsorted(taken, available, side="right"))

    def _places(self, first: int, end: int) -> _Counts:
        return np.arange(first, end) % len(self._tokens)

    def _add(self, sequence: Sequence, index: int, sign: int) -> None:
        """Add or remove what a sequence gains and takes from an iteration on."""
        done = index - sequence.decode_index
        if done >= len(sequence.emitted) - 1:
            return
        emitted = np.asarray(sequence.emitted, dtype=np.int64)
        held = -(-(sequence.prompt_tokens + emitted[:-1] + 1 + self._draft) // self._block)
        before = -(-sequence.prompt_tokens // self._block)
        places = self._places(index, sequence.decode_index + len(emitted) - 1)
        self._tokens[places] += sign * np.diff(emitted)[done:]
        self._blocks[places] += sign * np.diff(held, prepend=before)[done:]

    def _make_room(self, steps: int, index: int) -> None:
        """Let the rings be longer than a sequence decodes; entries before `index` are dropped."""
        old = len(self._tokens)
        if steps < old:
            return
        size = old
        while size <= steps:
            size *= 2
        known = np.arange(index, index + old)
        for name in ("_tokens", "_blocks"):
            ring: _Counts = np.zeros(size, dtype=np.int64)
            ring[known % size] = getattr(self, name)[known % old]
            setattr(self, name, ring)

    def forget(self, first: int, end: int) -> None:
        """Clear the entries of past iterations, for later ones of the same place."""
        places = self._places(first, end)
        self._tokens[places] = 0
        self._blocks[places] = 0
