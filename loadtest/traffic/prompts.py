"""Generates prompts with given token counts from text that is tokenized once.

Before a run `preparation` writes what its prompts are cut from: a stretch of real chats, one-token words, a prompt
file's rows. A `PromptMaker` beside the generator cuts; as ids it needs no tokenizer, as text it cuts where token
counts hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from engines.files import Strict, read_json
from loadtest.scenario import GENERATED_PROMPTS, HASH_BLOCK_TOKENS, Kind, Scenario, even
from loadtest.traffic.conversations import ConversationState, Rows
from loadtest.traffic.token_text import Span, TokenText, pairs_of, read_tokenizer

PREPARED_SUFFIXES = (".json", ".npy", ".txt")
MARKS = 2
GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples, modulo 1, fill an interval, or a circle, most evenly
META = "prompts.json"
_MASK = (1 << 64) - 1  # seeds and hashes are mapped to non-negative numbers
_REPLY, _PREFIX, _BLOCK, _PADDING = 1, 2, 3, 4  # purposes of random draws; prompts use 0

Speaker = Literal["system", "user", "assistant"]


class Piece(NamedTuple):
    """A part of a prompt, as ids or as text.

    Attributes:
        tokens: Its length by the engine's tokenizer.
    """

    role: Speaker
    tokens: int
    ids: list[int]
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, ready to be sent.

    Attributes:
        tokens: Its length by the engine's tokenizer.
        ids: Its tokens, for a model that takes tokens; empty for one that takes text.
        text: Its text, for a model that takes text; empty for one that takes tokens.
        messages: The same text by who said it, for a model that takes messages.
    """

    tokens: int
    ids: list[int] = field(default_factory=list)
    text: str = ""
    messages: tuple[tuple[Speaker, str], ...] = ()


class Prepared(Strict):
    """Prepared sources for `PromptMaker`.

    Attributes:
        texts: Name of the `TokenText` of each source of prompts.
        special_tokens: That the tokenizer puts around any text.
        filler: A word of one token, to reach a stated count; empty where none was found.
        words: Of one token each, for random prompts as text.
        ids: Random ids are drawn from the first to the last but one.
        salt: Of this run: what its generated prompts begin with, so that none finds an earlier run's in the KV cache.
        marks: Words of one token, as (id, word), to begin prompts with.
        end_id: The end token of free replies, if requests must state it.
        tokenizer: Where every text has to be counted again, the file beside this one that counts it.
    """

    as_text: bool
    texts: dict[str, str] = Field(default_factory=dict)
    special_tokens: int = 0
    filler: str = ""
    words: tuple[str, ...] = ()
    ids: tuple[int, int] = (0, 0)
    salt: int = 0
    marks: tuple[tuple[int, str], ...] = ()
    end_id: int | None = None
    tokenizer: str | None = None


def read_prepared(folder: Path) -> Prepared:
    """Read the output of `prepare`. Raises as `files.read_json` does."""
    return read_json(folder / META, Prepared)


class PromptMaker:
    """Generates a run's prompts and stores the history of active conversations.

    Args:
        folder: The folder written by `prepare`.
    """

    def __init__(self, scenario: Scenario, folder: Path, found: Prepared | None = None) -> None:
        self._found = found or read_prepared(folder)
        self._seed, self._levels = scenario.seed, scenario.levels
        self._texts = {
            source: TokenText.load(folder, name, as_text=self._found.as_text)
            for source, name in self._found.texts.items()
        }
        path = self._found.tokenizer
        self._tokenizer = read_tokenizer(folder / path) if path else None

    @property
    def rows(self) -> Mapping[str, Rows]:
        """The token counts of the prompt files, for `ConversationSampler`."""
        return {source: text.exchanges for source, text in self._texts.items() if source not in GENERATED_PROMPTS}

    @property
    def end_id(self) -> int | None:
        """The end token of free replies, if requests must state it."""
        return self._found.end_id

    def prompt(self, state: ConversationState) -> Prompt:
        """Return the prompt of a conversation's next exchange: its history and the new part.

        Raises:
            ValueError: The previous reply was not kept.
        """
        pieces: list[Piece] = state.pieces
        if not pieces:
            pieces.append(self._shared(state))
            for place in range(state.place):  # history that a conversation starting in its middle never had
                pieces.append(self._new(state, place))
                pieces.append(self._stand_in(state, place, state.conversation.exchanges[place].reply_tokens))
        if len(pieces) != 1 + 2 * state.place:
            raise ValueError(f"conversation {state.conversation.number}: its reply {state.place - 1} was not kept")
        pieces.append(self._new(state, state.place))
        return self._joined(pieces)

    def wants_reply(self, state: ConversationState) -> bool:
        """Return whether later prompts repeat the reply to the current exchange."""
        settings = state.kind.conversation
        return (
            settings is not None
            and settings.history == "replies"
            and state.place + 1 < len(state.conversation.exchanges)
        )

    def keep(self, state: ConversationState, tokens: int, reply: list[int] | list[str] | None) -> None:
        """Store the reply to the current exchange for later prompts; called before its end is recorded.

        Args:
            tokens: How many it had.
            reply: Where it is wanted, its tokens, or its text in parts, as prompts are.

        Raises:
            ValueError: It is wanted and not given.
        """
        if state.kind.conversation is None or state.place + 1 >= len(state.conversation.exchanges):
            return
        if not self.wants_reply(state):
            state.pieces.append(self._stand_in(state, state.place, tokens))
            return
        if reply is None:
            raise ValueError(f"conversation {state.conversation.number}: the words of its reply are not given")
        text = _whole_text(part for part in reply if isinstance(part, str))
        state.pieces.append(Piece("assistant", tokens, [part for part in reply if isinstance(part, int)], text))

    def _joined(self, pieces: list[Piece]) -> Prompt:
        if not self._found.as_text:
            ids = _ids_of(pieces)
            return Prompt(len(ids), ids)
        text = "".join(piece.text for piece in pieces)
        tokens = sum(piece.tokens for piece in pieces) + self._found.special_tokens
        if self._tokenizer is not None:
            tokens = len(self._tokenizer.encode(text).ids)
        messages = tuple((piece.role, piece.text) for piece in pieces if piece.text)
        return Prompt(tokens, text=text, messages=messages)

    def _shared(self, state: ConversationState) -> Piece:
        """Return the shared prefix of a conversation; an empty piece if it has none."""
        conversation = state.conversation
        if conversation.prefix is None:
            return Piece("system", 0, [], "")
        key = (_PREFIX, state.level, conversation.kind, conversation.prefix)
        if state.kind.prompts == "random":
            return self._random("system", conversation.prefix_tokens, key)
        return self._marked("system", state.level, conversation.prefix_tokens, self._any_cut(key))

    def _new(self, state: ConversationState, place: int) -> Piece:
        """Return the new part of a prompt."""
        conversation, tokens = state.conversation, state.conversation.exchanges[place].prompt_tokens
        if conversation.prefix_hashes:
            return self._of_hashes(conversation.prefix_hashes, tokens)
        if state.kind.has_file:
            prompt, _ = pairs_of(self._row(state))[place]
            return self._fitted("user", state, prompt, tokens, (0, state.level, conversation.number, place))
        if state.kind.prompts == "chat" and not place:
            return self._marked("user", state.level, tokens, self._fresh_begin(state))
        return self._generated("user", state.kind, tokens, (0, state.level, conversation.number, place))

    def _stand_in(self, state: ConversationState, place: int, tokens: int) -> Piece:
        """Return words in place of a reply: the prompt file's own reply if there is one."""
        key = (_REPLY, state.level, state.conversation.number, place)
        if state.kind.has_file:
            _, reply = pairs_of(self._row(state))[place]
            if reply is not None:
                return self._fitted("assistant", state, reply, tokens, key)
        return self._generated("assistant", state.kind, tokens, key)

    def _row(self, state: ConversationState) -> list[Span]:
        if state.conversation.row is None:
            raise ValueError(f"conversation {state.conversation.number} was drawn without its prompt file")
        return self._texts[state.kind.prompts].rows[state.conversation.row]

    def _generated(self, role: Speaker, kind: Kind, tokens: int, key: tuple[int, ...]) -> Piece:
        """Return words that depend only on a key."""
        if kind.prompts == "random":
            return self._random(role, tokens, key)
        return self._window(role, tokens, self._any_cut(key))

    def _any_cut(self, key: tuple[int, ...]) -> int:
        cuts = self._texts["chat"].cuts
        return int(cuts[int(even(self._seed, *key) * len(cuts))])

    def _marked(self, role: Speaker, level: int, tokens: int, begin: int) -> Piece:
        """Return chat text after two words with which only this run and level starts prompts."""
        marks = self._marks(role, level, min(MARKS, tokens))
        return _in_one(role, [marks, self._window(role, tokens - marks.tokens, begin)])

    @cache  # noqa: B019 (one maker a process)
    def _marks(self, role: Speaker, level: int, tokens: int) -> Piece:
        """Return the words with which this run and level starts prompts."""
        known = self._found.marks
        if not known:
            return Piece(role, 0, [], "")
        places = (int(even(self._seed, self._found.salt, level, place) * len(known)) for place in range(tokens))
        marks = [known[place] for place in places]
        if self._found.as_text:
            return Piece(role, tokens, [], "".join(word for _, word in marks))
        return Piece(role, tokens, [token for token, _ in marks], "")

    @cached_property
    def _walk(self) -> tuple[int, int]:
        """Return the first of the places where chat text starts, and the step to the next: it comes to them all."""
        places = len(self._texts["chat"].begins)
        step = round(GOLDEN * places)
        while math.gcd(step, places) != 1:
            step += 1
        return int(even(self._seed) * places), step

    def _fresh_begin(self, state: ConversationState) -> int:
        """Return where a conversation's text starts: a different place for each, until all are used."""
        begins = self._texts["chat"].begins
        first, step = self._walk
        number = state.conversation.number * self._levels + state.level
        return int(begins[(first + number * step) % len(begins)])

    def _window(self, role: Speaker, tokens: int, begin: int) -> Piece:
        """Return chat text from a place on, cyclically."""
        chat = self._texts["chat"]
        stop = int(chat.cuts[-1])
        pieces = []
        while tokens > 0:
            pieces.append(self._cut(role, chat, begin, min(begin + tokens, stop), stop))
            tokens -= pieces[-1].tokens
            begin = int(chat.cuts[0])
        return _in_one(role, pieces)

    def _cut(self, role: Speaker, text: TokenText, begin: int, end: int, whole_end: int) -> Piece:
        """Return tokens of a text; as text, cut where that is safe and padded with single-token words."""
        if not self._found.as_text:
            return Piece(role, end - begin, text.ids[begin:end].tolist(), "")
        safe = end if end == whole_end else text.upto(begin, end)
        if safe == begin and not self._found.filler:
            safe = end  # some text rather than none: `prepare` has seen that counts do not hold
        filled = end - safe if self._found.filler else 0
        return Piece(role, safe - begin + filled, [], text.part(begin, safe) + self._found.filler * filled)

    def _fitted(self, role: Speaker, state: ConversationState, span: Span, tokens: int, key: tuple[int, ...]) -> Piece:
        """Return a message of a prompt file at a stated length: cut, or padded with chat text."""
        text = self._texts[state.kind.prompts]
        piece = self._cut(role, text, span.begin, min(span.end, span.begin + tokens), span.end)
        if piece.tokens >= tokens:
            return piece
        return _in_one(role, [piece, self._generated(role, state.kind, tokens - piece.tokens, (_PADDING, *key))])

    def _of_hashes(self, hashes: tuple[int, ...], tokens: int) -> Piece:
        """Return a trace's prompt: the same words for equal hashes."""
        pieces = []
        for place, content in enumerate(hashes):
            left = min(HASH_BLOCK_TOKENS, tokens - place * HASH_BLOCK_TOKENS)
            pieces.append(self._random("user", left, (_BLOCK, content & _MASK)))
        rest = tokens - len(hashes) * HASH_BLOCK_TOKENS
        if rest > 0:
            pieces.append(self._random("user", rest, (_BLOCK, hashes[-1] & _MASK, 1)))
        return _in_one("user", pieces)

    def _random(self, role: Speaker, tokens: int, key: tuple[int, ...]) -> Piece:
        rng = np.random.default_rng([self._seed & _MASK, self._found.salt, *key])
        if not self._found.as_text:
            return Piece(role, tokens, rng.integers(*self._found.ids, size=tokens).tolist(), "")
        words = self._found.words
        return Piece(role, tokens, [], "".join([words[place] for place in rng.integers(len(words), size=tokens)]))


def _in_one(role: Speaker, pieces: list[Piece]) -> Piece:
    if len(pieces) == 1:
        return pieces[0]
    tokens = sum(piece.tokens for piece in pieces)
    return Piece(role, tokens, _ids_of(pieces), "".join(piece.text for piece in pieces))


def _ids_of(pieces: list[Piece]) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
        ids += piece.ids
    return ids


def _whole_text(parts: Iterable[str]) -> str:
    """Return parts of a reply as one text: halves of a surrogate pair put together, and single ones replaced."""
    return "".join(parts).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
