"""Prompts of stated token counts: made where they are sent, when they are sent, out of text tokenized once.

Before a run `prepare` writes what its prompts are cut from: a stretch of real chats, one-token words, a prompt file's
rows. A `PromptMaker` beside the generator cuts; as ids it needs no tokenizer, as text it cuts where token counts hold.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from engines.errors import MissingError, UserError
from engines.files import Strict, read_json, write_json
from loadtest.conversations import Mix, Rows, Talk
from loadtest.lengths import even
from loadtest.scenario import GENERATED_PROMPTS, Kind, Scenario
from loadtest.texts import Span, TokenText, chat_text, end_id_of, file_text, pairs_of, read_tokenizer
from loadtest.traces import HASH_BLOCK_TOKENS

if TYPE_CHECKING:
    from loadtest.traffic import LevelPlan

FIRST_RANDOM_ID = 1000  # below are bytes, digits and what other vocabularies keep for themselves
LEAST_CHAT_TOKENS = 30_000  # a tenth of a second of tokenizing
MOST_CHAT_TOKENS = 2_000_000
MOST_ROWS = 20_000  # of a prompt file; beyond, they come round again
LEAST_WORDS = 100
MOST_WORDS = 4096
PREPARED_SUFFIXES = (".json", ".npy", ".txt")
MARKS = 2
MOST_MARKS = 1000  # so that two runs begin alike once in a million times
TRIED = 24  # prompts counted again before a run,
TRIED_TOKENS = 50_000  # unless they are so long that these are enough
_GOLDEN = (math.sqrt(5) - 1) / 2  # steps of this part of a circle fall apart as evenly as any can
_META = "prompts.json"
_TOKENIZER = "tokenizer.json"
_MASK = (1 << 64) - 1  # seeds and hashes are taken as numbers from 0 up
_REPLY, _PREFIX, _BLOCK, _PADDING = 1, 2, 3, 4  # what random words and later windows are drawn for; prompts are 0

Speaker = Literal["system", "user", "assistant"]


class Piece(NamedTuple):
    """Something said: as ids, or as text.

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
    """What `prepare` found out for those who make prompts.

    Attributes:
        texts: Name of the `TokenText` of each source of prompts.
        special_tokens: That the tokenizer puts around any text.
        filler: A word of one token, to reach a stated count; empty where none was found.
        words: Of one token each, for random prompts as text.
        ids: Random ids are drawn from the first to the last but one.
        salt: Of this run: what its generated prompts begin with, so that none finds an earlier run's in the KV cache.
        marks: Words of one token, as (id, word), to begin prompts with.
        end_id: The token that ends a free reply, where the model has to be told.
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


def prepare(
    scenario: Scenario,
    plans: list[LevelPlan],
    tokenizer_path: Path,
    folder: Path,
    *,
    as_text: bool,
    salt: int = 0,
) -> Prepared:
    """Write into a folder what a run's prompts are cut from.

    Args:
        salt: Another number in each run against one server: lengths stay, and no prompt is one that it has cached.

    Raises:
        MissingError: There is no tokenizer or no prompt file at its path.
        UserError: A prompt file has a row we cannot read, or the tokenizer too few words of one token.
    """
    tokenizer = read_tokenizer(tokenizer_path)
    texts: dict[str, TokenText] = {}
    for kind in scenario.kinds:
        if kind.has_file and kind.prompts not in texts:
            texts[kind.prompts] = file_text(tokenizer, Path(kind.prompts), most_rows=rows_needed(scenario, plans))
    rows = {source: text.exchanges for source, text in texts.items()}
    needs_words = any(kind.prompts == "random" for kind in scenario.kinds) or _has_hashes(plans)
    if any(kind.prompts != "random" for kind in scenario.kinds):
        texts["chat"] = chat_text(tokenizer, tokens=_chat_tokens(scenario, plans, rows))
    names = {source: f"text-{number}" for number, source in enumerate(texts)}
    for source, name in names.items():
        texts[source].save(folder, name)
    found = Prepared(
        as_text=as_text,
        texts=names,
        special_tokens=len(tokenizer.encode("").ids) if as_text else 0,
        filler=_filler(tokenizer, texts.get("chat")) if as_text else "",
        words=tuple(_words(tokenizer)) if as_text and needs_words else (),
        ids=_id_range(tokenizer),
        salt=salt,
        marks=tuple(_marks(tokenizer, texts["chat"])) if "chat" in texts else (),
        end_id=None if as_text else _end_id(scenario, tokenizer, tokenizer_path),
    )
    if as_text and not _counts_hold(scenario, plans, found, folder, tokenizer):
        shutil.copyfile(tokenizer_path, folder / _TOKENIZER)  # it travels with the rest to workers elsewhere
        found = found.model_copy(update={"tokenizer": _TOKENIZER})
    write_json(folder / _META, found)
    return found


def read_prepared(folder: Path) -> Prepared:
    """Read what `prepare` wrote; errors as `files.read_json`."""
    return read_json(folder / _META, Prepared)


def count_rows(scenario: Scenario, plans: list[LevelPlan], tokenizer_path: Path | None) -> dict[str, Rows]:
    """Return what a tokenizer counts in a scenario's prompt files, where that decides what is sent.

    Raises:
        MissingError: There is no tokenizer, or no such file; also as `conversations.Mix`, later, for None.
        UserError: A row we cannot read.
    """
    sources = {kind.prompts for kind in scenario.kinds if kind.has_file}
    if not sources or tokenizer_path is None:
        return {}
    tokenizer = read_tokenizer(tokenizer_path)
    most = rows_needed(scenario, plans)
    return {source: file_text(tokenizer, Path(source), most_rows=most).exchanges for source in sorted(sources)}


def rows_needed(scenario: Scenario, plans: list[LevelPlan]) -> int:
    """Return how many rows of a prompt file a run can use before they come round again."""
    return min(MOST_ROWS, scenario.levels * max(plan.conversations(scenario) for plan in plans))


class PromptMaker:
    """Makes the prompts of a run, and keeps what was said in the conversations under way.

    Args:
        folder: What `prepare` filled.
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
        """What the prompt files hold, for `conversations.Mix`."""
        return {source: text.exchanges for source, text in self._texts.items() if source not in GENERATED_PROMPTS}

    @property
    def end_id(self) -> int | None:
        """The token that ends a free reply, where the model has to be told."""
        return self._found.end_id

    def prompt(self, talk: Talk) -> Prompt:
        """Return the prompt of a conversation's next exchange: what was said before, and what is new.

        Raises:
            ValueError: The reply before it was not kept.
        """
        said: list[Piece] = talk.said
        if not said:
            said.append(self._shared(talk))
            for place in range(talk.place):  # what a conversation that begins in its middle has not said
                said.append(self._new(talk, place))
                said.append(self._stand_in(talk, place, talk.conversation.exchanges[place].reply_tokens))
        if len(said) != 1 + 2 * talk.place:
            raise ValueError(f"conversation {talk.conversation.number}: its reply {talk.place - 1} was not kept")
        said.append(self._new(talk, talk.place))
        return self._joined(said)

    def wants_reply(self, talk: Talk) -> bool:
        """Return whether later prompts repeat the reply to the exchange under way."""
        asked = talk.kind.conversation
        return asked is not None and asked.history == "replies" and talk.place + 1 < len(talk.conversation.exchanges)

    def keep(self, talk: Talk, tokens: int, reply: list[int] | list[str] | None) -> None:
        """Take the reply to the exchange under way, for later prompts; called before that is noted as ended.

        Args:
            tokens: How many it had.
            reply: Where it is wanted, its tokens, or its text in parts, as prompts are.

        Raises:
            ValueError: It is wanted and not given.
        """
        if talk.kind.conversation is None or talk.place + 1 >= len(talk.conversation.exchanges):
            return
        if not self.wants_reply(talk):
            talk.said.append(self._stand_in(talk, talk.place, tokens))
            return
        if reply is None:
            raise ValueError(f"conversation {talk.conversation.number}: the words of its reply are not given")
        text = "".join(part for part in reply if isinstance(part, str))
        talk.said.append(Piece("assistant", tokens, [part for part in reply if isinstance(part, int)], text))

    def _joined(self, said: list[Piece]) -> Prompt:
        if not self._found.as_text:
            ids = _ids_of(said)
            return Prompt(len(ids), ids)
        text = "".join(piece.text for piece in said)
        tokens = sum(piece.tokens for piece in said) + self._found.special_tokens
        if self._tokenizer is not None:
            tokens = len(self._tokenizer.encode(text).ids)
        messages = tuple((piece.role, piece.text) for piece in said if piece.text)
        return Prompt(tokens, text=text, messages=messages)

    def _shared(self, talk: Talk) -> Piece:
        """Return the beginning a conversation shares with others; an empty piece where it shares none."""
        conversation = talk.conversation
        if conversation.prefix is None:
            return Piece("system", 0, [], "")
        key = (_PREFIX, talk.level, conversation.kind, conversation.prefix)
        if talk.kind.prompts == "random":
            return self._random("system", conversation.prefix_tokens, key)
        return self._marked("system", talk.level, conversation.prefix_tokens, self._any_cut(key))

    def _new(self, talk: Talk, place: int) -> Piece:
        """Return what is new in a prompt."""
        conversation, tokens = talk.conversation, talk.conversation.exchanges[place].prompt_tokens
        if conversation.prefix_hashes:
            return self._of_hashes(conversation.prefix_hashes, tokens)
        if talk.kind.has_file:
            prompt, _ = pairs_of(self._row(talk))[place]
            return self._fitted("user", talk, prompt, tokens, (0, talk.level, conversation.number, place))
        if talk.kind.prompts == "chat" and not place:
            return self._marked("user", talk.level, tokens, self._fresh_begin(talk))
        return self._generated("user", talk.kind, tokens, (0, talk.level, conversation.number, place))

    def _stand_in(self, talk: Talk, place: int, tokens: int) -> Piece:
        """Return words in place of a reply: the prompt file's own reply where there is one."""
        key = (_REPLY, talk.level, talk.conversation.number, place)
        if talk.kind.has_file:
            _, reply = pairs_of(self._row(talk))[place]
            if reply is not None:
                return self._fitted("assistant", talk, reply, tokens, key)
        return self._generated("assistant", talk.kind, tokens, key)

    def _row(self, talk: Talk) -> list[Span]:
        if talk.conversation.row is None:
            raise ValueError(f"conversation {talk.conversation.number} was drawn without its prompt file")
        return self._texts[talk.kind.prompts].rows[talk.conversation.row]

    def _generated(self, role: Speaker, kind: Kind, tokens: int, key: tuple[int, ...]) -> Piece:
        """Return words that depend on a key alone."""
        if kind.prompts == "random":
            return self._random(role, tokens, key)
        return self._window(role, tokens, self._any_cut(key))

    def _any_cut(self, key: tuple[int, ...]) -> int:
        cuts = self._texts["chat"].cuts
        return int(cuts[int(even(self._seed, *key) * len(cuts))])

    def _marked(self, role: Speaker, level: int, tokens: int, begin: int) -> Piece:
        """Return a stretch of chat behind two words that only this run and level begins prompts with."""
        known = self._found.marks
        count = min(MARKS, tokens) if known else 0
        places = (int(even(self._seed, self._found.salt, level, place) * len(known)) for place in range(count))
        marks = [known[place] for place in places]
        as_text = self._found.as_text
        ids, text = [] if as_text else [token for token, _ in marks], "".join(word for _, word in marks if as_text)
        return _in_one(role, [Piece(role, count, ids, text), self._window(role, tokens - count, begin)])

    def _fresh_begin(self, talk: Talk) -> int:
        """Return where a conversation's first words begin: for each another place, until all have been used."""
        begins = self._texts["chat"].begins
        places = len(begins)
        step = round(_GOLDEN * places)
        while math.gcd(step, places) != 1:
            step += 1
        number = talk.conversation.number * self._levels + talk.level
        return int(begins[(int(even(self._seed) * places) + number * step) % places])

    def _window(self, role: Speaker, tokens: int, begin: int) -> Piece:
        """Return a stretch of chat, from a place on; round again where the chats end."""
        chat = self._texts["chat"]
        stop = int(chat.cuts[-1])
        pieces = []
        while tokens > 0:
            pieces.append(self._cut(role, chat, begin, min(begin + tokens, stop), stop))
            tokens -= pieces[-1].tokens
            begin = int(chat.cuts[0])
        return _in_one(role, pieces)

    def _cut(self, role: Speaker, text: TokenText, begin: int, end: int, whole_end: int) -> Piece:
        """Return some tokens of a text; as text, cut where that is safe and filled up with words of one token."""
        if not self._found.as_text:
            return Piece(role, end - begin, text.ids[begin:end].tolist(), "")
        safe = end if end == whole_end else text.upto(begin, end)
        if safe == begin and not self._found.filler:
            safe = end  # some text rather than none: `prepare` has seen that counts do not hold
        filled = end - safe if self._found.filler else 0
        return Piece(role, safe - begin + filled, [], text.part(begin, safe) + self._found.filler * filled)

    def _fitted(self, role: Speaker, talk: Talk, span: Span, tokens: int, key: tuple[int, ...]) -> Piece:
        """Return a message of a prompt file at a stated length: cut, or filled up with chat."""
        text = self._texts[talk.kind.prompts]
        piece = self._cut(role, text, span.begin, min(span.end, span.begin + tokens), span.end)
        if piece.tokens >= tokens:
            return piece
        return _in_one(role, [piece, self._generated(role, talk.kind, tokens - piece.tokens, (_PADDING, *key))])

    def _of_hashes(self, hashes: tuple[int, ...], tokens: int) -> Piece:
        """Return a trace's prompt: for each of its hashes the same words, wherever it comes."""
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


def _has_hashes(plans: list[LevelPlan]) -> bool:
    return any(arrival.prefix_hashes for plan in plans for arrival in plan.arrivals)


def _chat_tokens(scenario: Scenario, plans: list[LevelPlan], rows: Mapping[str, Rows]) -> int:
    """Return how much chat is worth having: twice the longest prompt, and a fresh place for each to begin at."""
    mix = Mix(scenario, rows)
    count = max(plan.conversations(scenario) for plan in plans)
    longest = max(plan.seen(scenario, mix).longest for plan in plans)
    return min(MOST_CHAT_TOKENS, max(LEAST_CHAT_TOKENS, 2 * longest + 2 * count * scenario.levels))


def _id_range(tokenizer: Tokenizer) -> tuple[int, int]:
    last = tokenizer.get_vocab_size(with_added_tokens=False)
    return min(FIRST_RANDOM_ID, last // 2), last


def _end_id(scenario: Scenario, tokenizer: Tokenizer, path: Path) -> int | None:
    """Return what ends a reply that may end by itself; None where none may, or the scenario tells the model.

    Raises:
        MissingError: Nobody says what it is.
    """
    if all(kind.is_exact for kind in scenario.kinds) or "end_id" in scenario.extra_body:
        return None
    found = end_id_of(tokenizer, path)
    if found is None:
        raise MissingError(
            f"{path}: no tokenizer_config.json beside it names an eos_token: a free reply would never end",
            hint="extra_body: {end_id: ...} in the scenario, or a model that takes text",
        )
    return found


def _filler(tokenizer: Tokenizer, chat: TokenText | None) -> str:
    """Return a word that is one token however often it is repeated; empty where there is none."""
    candidates = [" the", " a", " of", " to", " and", " in"]
    if chat is not None:
        single = [a for a, b in zip(chat.cuts[:-1].tolist(), chat.cuts[1:].tolist(), strict=True) if b == a + 1]
        candidates += list(dict.fromkeys(chat.part(place, place + 1) for place in single[:200]))
    for word in candidates:
        ids = tokenizer.encode("x" + word * 3, add_special_tokens=False).ids
        if len(ids) > 3 and len(set(ids[-3:])) == 1 and tokenizer.decode(ids[-1:]).strip() == word.strip():  # noqa: PLR2004
            return word
    return ""


def _marks(tokenizer: Tokenizer, chat: TokenText) -> Iterator[tuple[int, str]]:
    """Yield different words of the chats that are one token wherever they stand, with their tokens."""
    seen: set[int] = set()
    for place, later in pairwise(chat.cuts.tolist()):
        token, word = int(chat.ids[place]), chat.part(place, later)
        if later != place + 1 or token in seen:
            continue
        seen.add(token)
        if tokenizer.encode("x" + word + word, add_special_tokens=False).ids[-2:] == [token, token]:
            yield token, word
        if len(seen) == MOST_MARKS:
            return


def _words(tokenizer: Tokenizer) -> list[str]:
    """Return words of one token each: a space and letters.

    Raises:
        UserError: The tokenizer has too few.
    """
    first, last = _id_range(tokenizer)
    found: list[str] = []
    for token in range(first, last):
        word = tokenizer.decode([0, token])[len(tokenizer.decode([0])) :]  # the first token may lose its space
        if word[:1] == " " and word[1:].isalpha() and word.isascii():
            ids = tokenizer.encode("x" + word + word, add_special_tokens=False).ids
            if ids[-2:] == [token, token]:
                found.append(word)
        if len(found) == MOST_WORDS:
            break
    if len(found) < LEAST_WORDS:
        raise UserError(
            f"the tokenizer has {len(found)} words of one token: no random text can be counted",
            hint="--prompts chat, or a model that takes tokens",
        )
    return found


def _counts_hold(
    scenario: Scenario, plans: list[LevelPlan], found: Prepared, folder: Path, tokenizer: Tokenizer
) -> bool:
    """Return whether prompts as they are cut have the tokens they are said to have."""
    maker = PromptMaker(scenario, folder, found)
    mix = Mix(scenario, maker.rows)
    arrivals = plans[0].arrivals
    left = TRIED_TOKENS
    for number in range(min(TRIED, plans[0].conversations(scenario))):
        talk = mix.begin_arrival(number, arrivals[number]) if arrivals else mix.begin(number)
        talk.skip_to(len(talk.conversation.exchanges) - 1)
        prompt = maker.prompt(talk)
        if prompt.tokens != len(tokenizer.encode(prompt.text).ids):
            return False
        left -= prompt.tokens
        if left < 0:
            break
    return True
