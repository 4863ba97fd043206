"""The paged KV cache: block allocation, prefix reuse, eviction.

Blocks are counted, not numbered: what matters is a block's owner and the hash of its content, not its address. The pool
consists of three kinds::

    used     held by at least one sequence (private, or shared between sequences with a common prefix)
    cached   held by no sequence, content kept for a later prompt; the least recently used is evicted first
    free     neither; used + cached + free = blocks

A paused sequence's own blocks are free, but stay what they are until another sequence takes them: those that were freed
first go first, and of one sequence its last block goes first. What is left when it starts again need not be computed
(vLLM: v1/core/block_pool.py, single_type_kv_cache_manager.py; TensorRT-LLM stores a paused request's blocks likewise).
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence as Row
from dataclasses import dataclass
from itertools import filterfalse
from typing import NamedTuple


class PromptBlocks(NamedTuple):
    """The blocks of a prompt when its first chunk is scheduled.

    Attributes:
        reused: Blocks found, on the GPU or in host memory, instead of computed.
        onboarded: Those of them copied back from host memory.
    """

    reused: int
    onboarded: int


_NOTHING_FOUND = PromptBlocks(0, 0)


@dataclass(slots=True)
class _Freed:
    """Free blocks that were given back together; `owner`: the paused sequence whose content they hold."""

    owner: int | None
    blocks: int


class KvPool:
    """The KV blocks of one engine.

    Args:
        blocks: Size of the pool.
        tokens_per_block: Tokens per block.
        reuse: Whether blocks of ended sequences are kept, to be found by their hash.
        host_blocks: Size of a second pool in host memory, for blocks evicted from the first.
    """

    def __init__(self, blocks: int, tokens_per_block: int, *, reuse: bool = False, host_blocks: int = 0) -> None:
        self.blocks = blocks
        self.tokens_per_block = tokens_per_block
        self.reuse = reuse
        self.host_blocks = host_blocks
        self.used = 0
        self.reserved = 0  # blocks that running sequences will still take, if their completion is guaranteed
        self.reused_total = 0
        self._holders: dict[int, int] = {}  # hash -> number of sequences that hold the block
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._host: OrderedDict[int, None] = OrderedDict()
        self._freed: deque[_Freed] = deque()  # free blocks by who left them, the next to be taken first

    @property
    def available(self) -> int:
        """Blocks that a sequence could get: free ones, and cached ones that would be evicted."""
        return self.blocks - self.used

    @property
    def cached(self) -> int:
        """Blocks kept for reuse, held by no sequence."""
        return len(self._cached)

    def blocks_for(self, tokens: int) -> int:
        """Return the number of blocks for this many tokens."""
        return -(-tokens // self.tokens_per_block)

    def holds(self, content: int) -> bool:
        """Return whether a block with this content can be found, on the GPU or in host memory."""
        return content in self._holders or content in self._cached or content in self._host

    def first_missing(self, hashes: Row[int]) -> int | None:
        """Return the first hash whose block a prompt would have to compute; None if all are available."""
        holders, cached, host = self._holders, self._cached, self._host
        if hashes and (hashes[-1] in holders or hashes[-1] in cached):
            return None  # who holds a block holds those before it, and those are released and evicted after it
        for content in filterfalse(holders.__contains__, hashes):
            if content not in cached and content not in host:
                return content
        return None

    def take_prompt(self, prompt_tokens: int, hashes: Row[int]) -> PromptBlocks:
        """Take the blocks of a whole prompt: those found are shared, the others are new.

        The last prompt token is always computed, for its logits, so a block that ends exactly with the prompt is not
        reused.

        Raises:
            RuntimeError: The pool is too small; the scheduler should have checked first.
        """
        if not self.reuse:
            self.take(self.blocks_for(prompt_tokens))
            return _NOTHING_FOUND
        found = self._find(hashes[: self._reusable(prompt_tokens)])
        onboarded = self._hold(found)
        self.take(self.blocks_for(prompt_tokens) - len(found) + onboarded)
        self.reused_total += len(found)
        return PromptBlocks(len(found), onboarded)

    def take_again(self, owner: int, prompt_tokens: int) -> int:
        """Take the blocks of a sequence that starts again; return how many of its own are still what they were.

        Raises:
            RuntimeError: The pool is too small.
        """
        left = next((freed for freed in self._freed if freed.owner == owner), None)
        kept = 0
        if left is not None:
            kept = min(left.blocks, self._reusable(prompt_tokens))
            left.blocks -= kept
            left.owner = None
        self.used += kept
        self.take(self.blocks_for(prompt_tokens) - kept)
        self.reused_total += kept
        return kept

    def _reusable(self, prompt_tokens: int) -> int:
        """Return the whole blocks of a prompt before its last token."""
        return (prompt_tokens - 1) // self.tokens_per_block

    def take(self, count: int) -> None:
        """Take new blocks, evicting cached ones if none are free.

        Raises:
            RuntimeError: The pool is too small.
        """
        self.used += count
        if self._freed:
            self._forget(count)
        surplus = self.used + len(self._cached) - self.blocks
        if surplus <= 0:
            return
        if self.used > self.blocks:
            raise RuntimeError(f"KV pool of {self.blocks} blocks overdrawn: {self.used} used")
        for _ in range(surplus):
            self._evict()

    def _forget(self, count: int) -> None:
        """Let the blocks that were freed first be taken."""
        while count > 0 and self._freed:
            first = self._freed[0]
            taken = min(count, first.blocks)
            first.blocks -= taken
            count -= taken
            if not first.blocks:
                self._freed.popleft()

    def publish(self, hashes: Row[int], already_shared: int) -> int:
        """Make the blocks that a prompt has just computed available to others.

        A block that another sequence published meanwhile stays a private duplicate, as in TensorRT-LLM; here, the
        following blocks do too.

        Args:
            hashes: Hashes of the sequence's full blocks, from the first.
            already_shared: Number of those that the sequence holds by hash.

        Returns:
            Number of blocks it now holds by hash.
        """
        if not self.reuse:
            return 0
        for index in range(already_shared, len(hashes)):
            content = hashes[index]
            if content in self._holders or content in self._cached:
                return index
            self._host.pop(content, None)
            self._holders[content] = 1
        return len(hashes)

    def release(self, blocks: int, shared_hashes: Row[int], *, paused: int | None = None) -> None:
        """Return all `blocks` blocks of a sequence to the pool; the first ones are held by hash.

        Args:
            paused: The sequence, if it will restart and may find its own blocks.
        """
        private = blocks - len(shared_hashes)
        self.used -= private
        if self.reuse and private and (paused is not None or self._freed):
            self._freed.append(_Freed(paused, private))
        holders = self._holders
        for content in reversed(shared_hashes):  # a prefix is evicted after what follows it
            left = holders[content] - 1
            if left:
                holders[content] = left
            else:
                del holders[content]
                self._cached[content] = None
                self.used -= 1

    def _find(self, hashes: Row[int]) -> list[int]:
        missing = self.first_missing(hashes)
        return list(hashes if missing is None else hashes[: hashes.index(missing)])

    def _hold(self, found: list[int]) -> int:
        """Hold blocks that were found; return how many need a new GPU block because they come from host memory."""
        onboarded, holders = 0, self._holders
        for content in found:
            if content in holders:
                holders[content] += 1
                continue
            holders[content] = 1
            if content in self._cached:
                del self._cached[content]
                self.used += 1
            else:
                del self._host[content]
                onboarded += 1
        return onboarded

    def _evict(self) -> None:
        content, _ = self._cached.popitem(last=False)
        if self.host_blocks:
            if len(self._host) == self.host_blocks:
                self._host.popitem(last=False)
            self._host[content] = None
