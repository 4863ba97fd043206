"""Conversations drawn from a scenario's seed, and their progress.

A single request is a conversation of one exchange. Conversation 17 has the same class, lengths, pauses and shared
prefix in every process, at every level, in a prediction and in a run. Only its words (or its rows of a prompt file)
differ between levels, so that no level finds an earlier level's prompts in the KV cache.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, TypeAlias

from engines.errors import MissingError
from loadtest.scenario import DEFAULT_OSL, HASH_BLOCK_TOKENS, Arrival, Kind, Scenario, Trace, even

SAMPLED_CONVERSATIONS = 4096  # conversations for estimating a mean
_CLASS, _SHARED, _PREFIX, _TURNS, _ISL, _OSL, _THINK = range(7)
_ROOM = 1 << 20  # block numbers per content: a prompt of 2 ** 20 blocks exceeds any engine

Rows: TypeAlias = Sequence[Sequence[tuple[int, int]]]
"""By prompt file, each row's exchanges as (prompt tokens, reply tokens); 0 if the file has no reply."""


class Exchange(NamedTuple):
    """One prompt and its reply.

    Attributes:
        prompt_tokens: New tokens, beyond the history.
        reply_tokens: Requested length.
        think_s: Time after the previous reply, in engine seconds; 0 for the first.
        max_tokens: Maximum of a trace's request; None: its class's.
    """

    prompt_tokens: int
    reply_tokens: int
    think_s: float = 0.0
    max_tokens: int | None = None


class Conversation(NamedTuple):
    """One conversation as drawn.

    Attributes:
        kind: Index of its class.
        prefix: Index of its shared prefix within the class; None: none.
        row: Row of the class's prompt file; None: none.
        prefix_hashes: For a trace with shared prompts; see `traces.Arrival`.
    """

    number: int
    exchanges: tuple[Exchange, ...]
    kind: int = 0
    prefix: int | None = None
    prefix_tokens: int = 0
    row: int | None = None
    prefix_hashes: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class ConversationState:
    """The state of an active conversation.

    Attributes:
        kind: Its resolved class.
        place: Index of the next or current exchange.
        past_tokens: Tokens that its next prompt repeats: the shared prefix and the history.
        pieces: The history, in the prompt maker's form.
    """

    conversation: Conversation
    kind: Kind
    level: int = 0
    place: int = 0
    past_tokens: int = 0
    pieces: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Start after the shared prefix."""
        self.past_tokens += self.conversation.prefix_tokens

    @property
    def is_over(self) -> bool:
        """Whether no exchange is left."""
        return self.place >= len(self.conversation.exchanges)

    @property
    def exchange(self) -> Exchange:
        """The next or current exchange."""
        return self.conversation.exchanges[self.place]

    @property
    def prompt_tokens(self) -> int:
        """Length of that exchange's prompt, including the history."""
        return self.past_tokens + self.exchange.prompt_tokens

    def go_on(self, reply_tokens: int | None) -> None:
        """End the current exchange; a failed one (None) ends the conversation."""
        if reply_tokens is None:
            self.place = len(self.conversation.exchanges)
        elif not self.is_over:
            self.past_tokens += self.exchange.prompt_tokens + reply_tokens
            self.place += 1

    def skip_to(self, place: int) -> None:
        """Skip the exchanges before an index, as if they had their requested replies."""
        while self.place < place:
            self.go_on(self.exchange.reply_tokens)

    def block_hashes(self, tokens_per_block: int) -> tuple[int, ...]:
        """Return the hash of each full KV block of the current exchange, including its reply.

        Blocks inside a shared prefix are equal for all that have it. A conversation only grows, so each of its blocks
        is identified by conversation and index; but if later prompts contain a stand-in, the blocks with the reply
        itself never recur. A trace's hashes, each of `HASH_BLOCK_TOKENS`, are split.
        """
        state = self.conversation
        if state.prefix_hashes:
            each = HASH_BLOCK_TOKENS // tokens_per_block
            return tuple(content * each + place for content in state.prefix_hashes for place in range(each))
        shared = state.prefix_tokens // tokens_per_block
        upto_prompt = self.prompt_tokens // tokens_per_block
        upto_reply = (self.prompt_tokens + self.exchange.reply_tokens) // tokens_per_block
        own, begin = state.number * _ROOM, -((state.kind * _ROOM + (state.prefix or 0)) * _ROOM + _ROOM)
        reply = own
        if self.kind.conversation is not None and self.kind.conversation.history == "stand_in":
            reply = ((state.number + 1) << 64) + self.place * _ROOM
        return (
            *range(begin, begin + shared),
            *range(own + shared, own + upto_prompt),
            *range(reply + upto_prompt, reply + upto_reply),
        )


class LengthStats(NamedTuple):
    """Length statistics of requests, in tokens.

    Attributes:
        isl: Mean prompt length.
        osl: Mean reply length.
        longest: Largest prompt plus reply.
    """

    isl: float
    osl: float
    longest_isl: int
    longest_osl: int
    longest: int


def length_stats_of(prompts: Sequence[int], replies: Sequence[int]) -> LengthStats:
    """Return the statistics of requests with these lengths; not empty.

    >>> length_stats_of([10, 30], [5, 1]).longest
    31
    """
    longest = max(map(sum, zip(prompts, replies, strict=True)))
    count = len(prompts)
    return LengthStats(sum(prompts) / count, sum(replies) / count, max(prompts), max(replies), longest)


Begin: TypeAlias = Callable[[int], ConversationState]
"""Starts the conversation with a number."""


class ConversationSampler:
    """The conversations of a scenario.

    Args:
        rows: By prompt file, its token counts; required if lengths come from the file.

    Raises:
        MissingError: Lengths come from a prompt file without token counts.
    """

    def __init__(self, scenario: Scenario, rows: Mapping[str, Rows] | None = None) -> None:
        self._seed = scenario.seed
        self._kinds = scenario.kinds
        self._levels = scenario.levels
        self._upto = list(accumulate([kind.share for kind in self._kinds]))
        self._rows = rows or {}
        self._fixed = [_fixed_exchanges(kind) for kind in self._kinds]
        for kind in self._kinds:
            needs_file = kind.needs_file_lengths and not isinstance(scenario.arrivals, Trace)
            if needs_file and kind.prompts not in self._rows:
                raise MissingError(
                    f"{kind.prompts}: prompt lengths cannot be counted without a tokenizer",
                    hint="state lengths (isl and osl), or give a tokenizer",
                )

    @property
    def shares_blocks(self) -> bool:
        """Whether prompts can share a prefix."""
        return any(kind.prefixes or kind.conversation for kind in self._kinds)

    def begin(self, number: int, level: int = 0) -> ConversationState:
        """Start the conversation with a number."""
        drawn = self.draw(number, level)
        return ConversationState(drawn, self._kinds[drawn.kind], level)

    def begin_arrival(self, number: int, arrival: Arrival, level: int = 0) -> ConversationState:
        """Start an arrival's conversation: a trace's own request, or the conversation with that number."""
        if arrival.isl is None or arrival.osl is None:
            return self.begin(number, level)
        (kind, *_), exchange = self._kinds, Exchange(arrival.isl, arrival.osl, max_tokens=arrival.max_tokens)
        drawn = Conversation(
            number, (exchange,), row=self._row(kind, number, level), prefix_hashes=arrival.prefix_hashes
        )
        return ConversationState(drawn, kind, level)

    def draw(self, number: int, level: int = 0) -> Conversation:
        """Return the conversation with a number; rows of a prompt file are used cyclically, offset by level."""
        index = self._class_of(number) if len(self._kinds) > 1 else 0
        kind = self._kinds[index]
        row = self._row(kind, number, level)
        spoken = self._rows[kind.prompts][row] if row is not None else ()
        prefix, prefix_tokens = self._prefix(kind, number)
        exchanges = self._fixed[index] or self._exchanges(kind, number, spoken, prefix_tokens)
        return Conversation(number, exchanges, index, prefix, prefix_tokens, row)

    def _class_of(self, number: int) -> int:
        which = even(self._seed, number, _CLASS)
        return next((index for index, upto in enumerate(self._upto) if which < upto), len(self._kinds) - 1)

    def lengths_of(self, numbers: range) -> LengthStats:
        """Return the length statistics of all requests of some conversations."""
        prompts: list[int] = []
        replies: list[int] = []
        if len(self._kinds) == 1 and self._fixed[0] and self._kinds[0].prefixes is None:
            numbers = numbers[:1]  # all are like the first
        for number in numbers:
            state = self.begin(number)
            while not state.is_over:
                prompts.append(state.prompt_tokens)
                replies.append(state.exchange.reply_tokens)
                state.go_on(state.exchange.reply_tokens)
        return length_stats_of(prompts, replies)

    def at_most(self, stats: LengthStats) -> LengthStats:
        """Return the statistics with the longest lengths that can be drawn, if classes state bounds."""
        for kind in self._kinds:
            longest = _longest(kind)
            if longest is not None:
                isl, osl = max(stats.longest_isl, longest[0]), max(stats.longest_osl, longest[1])
                stats = stats._replace(longest_isl=isl, longest_osl=osl, longest=max(stats.longest, sum(longest)))
        return stats

    def _row(self, kind: Kind, number: int, level: int) -> int | None:
        """Return a conversation's row of its class's prompt file; None if there is none, or none is read."""
        rows = self._rows.get(kind.prompts)
        return (number + level * (len(rows) // self._levels)) % len(rows) if rows else None

    def _prefix(self, kind: Kind, number: int) -> tuple[int | None, int]:
        shared = kind.prefixes
        if shared is None or even(self._seed, number, _SHARED) >= shared.share:
            return None, 0
        return int(even(self._seed, number, _PREFIX) * shared.count), shared.tokens

    def _exchanges(
        self, kind: Kind, number: int, spoken: Sequence[tuple[int, int]], past_tokens: int
    ) -> tuple[Exchange, ...]:
        state = kind.conversation
        found: list[Exchange] = []
        for place in range(self._turns(kind, number, spoken)):
            isl, osl = self._pair(kind, number, place, spoken)
            past_tokens += isl + osl
            if found and state and state.max_tokens is not None and past_tokens > state.max_tokens:
                break
            think_s = state.think_s.at(even(self._seed, number, _THINK, place)) if state and place else 0.0
            found.append(Exchange(isl, osl, think_s))
        return tuple(found)

    def _turns(self, kind: Kind, number: int, spoken: Sequence[tuple[int, int]]) -> int:
        if kind.conversation is None:
            return 1
        distribution = kind.conversation.turns
        if isinstance(distribution, str):
            return len(spoken)
        turns = distribution.whole(even(self._seed, number, _TURNS))
        return min(turns, len(spoken)) if spoken else turns

    def _pair(self, kind: Kind, number: int, place: int, spoken: Sequence[tuple[int, int]]) -> tuple[int, int]:
        if kind.lengths.pairs is not None:
            return kind.lengths.pairs.at(even(self._seed, number, _ISL, place))
        own_isl, own_osl = spoken[place] if spoken else (0, 0)
        isl = kind.isl.whole(even(self._seed, number, _ISL, place)) if kind.isl else own_isl
        osl = kind.osl.whole(even(self._seed, number, _OSL, place)) if kind.osl else own_osl or DEFAULT_OSL
        return isl, osl


def _fixed_exchanges(kind: Kind) -> tuple[Exchange, ...]:
    """Return the exchanges of every conversation of a class, if all are single requests of the same lengths."""
    if kind.conversation is not None or kind.lengths.pairs is not None:
        return ()
    if kind.isl is None or kind.osl is None or not (kind.isl.is_fixed and kind.osl.is_fixed):
        return ()
    return (Exchange(kind.isl.whole(0.5), kind.osl.whole(0.5)),)


def _longest(kind: Kind) -> tuple[int, int] | None:
    """Return the longest prompt and reply a class can draw; None if unbounded, or from a file."""
    if kind.lengths.pairs is not None:
        isl, osl = map(max, zip(*kind.lengths.pairs.rows, strict=True))
    elif kind.isl is None or kind.osl is None or kind.isl.longest is None or kind.osl.longest is None:
        return None
    else:
        isl, osl = kind.isl.longest, kind.osl.longest
    if kind.conversation is not None:
        largest = kind.conversation.max_tokens
        return None if largest is None else (max(largest - 1, isl), osl)
    return isl + (kind.prefixes.tokens if kind.prefixes else 0), osl


def always(isl: int, osl: int) -> Begin:
    """Return conversations that all consist of the same single exchange."""
    (kind,) = Scenario().kinds
    conversation = Conversation(0, (Exchange(isl, osl),))
    return lambda _: ConversationState(conversation, kind)
