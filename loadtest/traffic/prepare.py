"""Prepares the sources of prompts before a run: tokenized text, single-token words, rows of a file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import MissingError, UserError
from engines.files import write_json
from engines.names import TOKENIZER_FILE
from loadtest.scenario import Scenario
from loadtest.traffic.conversations import ConversationSampler, Rows
from loadtest.traffic.levels import LevelPlan
from loadtest.traffic.prompts import META, Prepared, PromptMaker
from loadtest.traffic.token_text import UNLIKE_TOKENS, TokenText, chat_text, end_id_of, file_text, read_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FIRST_RANDOM_ID = 1000  # lower ids are bytes, digits and reserved tokens of other vocabularies
MIN_CHAT_TOKENS = 15_000  # 0.05 s of tokenization; enough for MAX_MARKS words of one token
MAX_CHAT_TOKENS = 2_000_000
MAX_ROWS = 20_000  # of a prompt file; beyond this, rows are reused
MIN_WORDS = 100
MAX_WORDS = 4096
MAX_MARKS = 1000  # two runs start alike once in a million times
PROBES = 24  # prompts counted again before a run,
TRIED_TOKENS = 50_000  # unless fewer prompts have this many tokens together
_NO_TEXT_OF_A_LENGTH = "--prompts FILE sends a file's prompts whole; on Triton, --model tensorrt_llm takes token ids"


def prepare(
    scenario: Scenario,
    plans: list[LevelPlan],
    tokenizer_path: Path,
    folder: Path,
    *,
    as_text: bool,
    salt: int = 0,
) -> Prepared:
    """Write the sources of a run's prompts into a folder.

    Args:
        salt: A different number for each run against a server: lengths stay, and no prompt is cached there.

    Raises:
        MissingError: The tokenizer or a prompt file does not exist.
        UserError: A prompt file has an unreadable row, or the tokenizer too few single-token words.
    """
    tokenizer = read_tokenizer(tokenizer_path)
    texts: dict[str, TokenText] = {}
    for kind in scenario.kinds:
        if kind.has_file and kind.prompts not in texts:
            texts[kind.prompts] = file_text(tokenizer, Path(kind.prompts), max_rows=rows_needed(scenario, plans))
    rows = {source: text.exchanges for source, text in texts.items()}
    has_hashes = any(arrival.prefix_hashes for plan in plans for arrival in plan.arrivals)
    needs_words = any(kind.prompts == "random" for kind in scenario.kinds) or has_hashes
    if any(kind.prompts != "random" for kind in scenario.kinds):
        texts["chat"] = chat_text(tokenizer, tokens=chat_tokens_needed(scenario, plans, rows))
        if any(kind.prompts == "chat" for kind in scenario.kinds) and not len(texts["chat"].begins):
            can_be_random = not as_text or len(_words(tokenizer)) >= MIN_WORDS
            raise UserError(
                f"{tokenizer_path}: no token begins with a space, so chats cannot be cut to a length",
                hint="--prompts random" if can_be_random else _NO_TEXT_OF_A_LENGTH,
            )
    words = _words(tokenizer) if as_text and needs_words else []
    if as_text and needs_words and len(words) < MIN_WORDS:
        raise UserError(
            f"{tokenizer_path}: the tokenizer has {len(words)} single-token words, too few for random text of a length",
            hint="--prompts chat" if _can_cut_chats(tokenizer) and not has_hashes else _NO_TEXT_OF_A_LENGTH,
        )
    names = {source: f"text-{number}" for number, source in enumerate(texts)}
    for source, name in names.items():
        texts[source].save(folder, name)
    found = Prepared(
        as_text=as_text,
        texts=names,
        special_tokens=len(tokenizer.encode("").ids) if as_text else 0,
        filler=_filler(tokenizer, texts.get("chat")) if as_text else "",
        words=tuple(words),
        ids=_id_range(tokenizer),
        salt=salt,
        marks=tuple(_marks(tokenizer, texts["chat"])) if "chat" in texts else (),
        end_id=None if as_text else _end_id(scenario, tokenizer, tokenizer_path),
    )
    if as_text and not _counts_hold(scenario, plans, found, folder, tokenizer):
        shutil.copyfile(tokenizer_path, folder / TOKENIZER_FILE)  # it travels with the rest to workers elsewhere
        found = found.model_copy(update={"tokenizer": TOKENIZER_FILE})
    write_json(folder / META, found)
    return found


def count_rows(scenario: Scenario, plans: list[LevelPlan], tokenizer_path: Path | None) -> dict[str, Rows]:
    """Return the token counts of a scenario's prompt files, if they determine what is sent.

    Raises:
        MissingError: The tokenizer or a file does not exist; for None, `ConversationSampler` raises it later.
        UserError: A row is unreadable.
    """
    sources = {kind.prompts for kind in scenario.kinds if kind.has_file}
    if not sources or tokenizer_path is None:
        return {}
    tokenizer = read_tokenizer(tokenizer_path)
    largest = rows_needed(scenario, plans)
    return {source: file_text(tokenizer, Path(source), max_rows=largest).exchanges for source in sorted(sources)}


def rows_needed(scenario: Scenario, plans: list[LevelPlan]) -> int:
    """Return how many rows of a prompt file a run can use before they repeat."""
    return min(MAX_ROWS, scenario.levels * max(plan.conversations(scenario) for plan in plans))


def _can_cut_chats(tokenizer: Tokenizer) -> bool:
    """Whether the built-in chats can be cut to a length."""
    return len(chat_text(tokenizer, tokens=UNLIKE_TOKENS).begins) > 0


def chat_tokens_needed(scenario: Scenario, plans: list[LevelPlan], rows: Mapping[str, Rows]) -> int:
    """Return how much chat text is useful: twice the longest prompt, plus a separate start for each prompt."""
    sampler = ConversationSampler(scenario, rows)
    count = max(plan.conversations(scenario) for plan in plans)
    longest = max(plan.length_stats(scenario, sampler).longest for plan in plans)
    return min(MAX_CHAT_TOKENS, max(MIN_CHAT_TOKENS, 2 * longest + 3 * count * scenario.levels))


def _id_range(tokenizer: Tokenizer) -> tuple[int, int]:
    last = tokenizer.get_vocab_size(with_added_tokens=False)
    return min(FIRST_RANDOM_ID, last // 2), last


def must_state_end(scenario: Scenario) -> bool:
    """Return whether requests with token ids must state the end token: of free replies, unless the scenario does."""
    return not all(kind.is_exact for kind in scenario.kinds) and "end_id" not in scenario.extra_body


def _end_id(scenario: Scenario, tokenizer: Tokenizer, path: Path) -> int | None:
    """Return the end token where requests must state it; None where they need not.

    Raises:
        MissingError: It is unknown.
    """
    if not must_state_end(scenario):
        return None
    found = end_id_of(tokenizer, path)
    if found is None:
        raise MissingError(
            f"{path}: no tokenizer_config.json next to it names an eos_token, so free replies would never end",
            hint="set extra_body: {end_id: ...} in the scenario, or use a model that takes text",
        )
    return found


def _filler(tokenizer: Tokenizer, chat: TokenText | None) -> str:
    """Return a word that is one token however often it is repeated; empty if there is none."""
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
    """Yield different words of the chats that are one token in every context, with their tokens."""
    seen: set[int] = set()
    for place, later in pairwise(chat.cuts.tolist()):
        token, word = int(chat.ids[place]), chat.part(place, later)
        if later != place + 1 or token in seen:
            continue
        seen.add(token)
        if tokenizer.encode("x" + word + word, add_special_tokens=False).ids[-2:] == [token, token]:
            yield token, word
        if len(seen) == MAX_MARKS:
            return


def _words(tokenizer: Tokenizer) -> list[str]:
    """Return words of one token each: a space and letters."""
    first, last = _id_range(tokenizer)
    found: list[str] = []
    for token in range(first, last):
        word = tokenizer.decode([0, token])[len(tokenizer.decode([0])) :]  # the first token may lose its space
        if word[:1] == " " and word[1:].isalpha() and word.isascii():
            ids = tokenizer.encode("x" + word + word, add_special_tokens=False).ids
            if ids[-2:] == [token, token]:
                found.append(word)
        if len(found) == MAX_WORDS:
            break
    return found


def _counts_hold(
    scenario: Scenario, plans: list[LevelPlan], found: Prepared, folder: Path, tokenizer: Tokenizer
) -> bool:
    """Return whether prompts as cut have their stated token counts."""
    maker = PromptMaker(scenario, folder, found)
    sampler = ConversationSampler(scenario, maker.rows)
    arrivals = plans[0].arrivals
    left = TRIED_TOKENS
    for number in range(min(PROBES, plans[0].conversations(scenario))):
        state = sampler.begin_arrival(number, arrivals[number]) if arrivals else sampler.begin(number)
        state.skip_to(len(state.conversation.exchanges) - 1)
        prompt = maker.prompt(state)
        if prompt.tokens != len(tokenizer.encode(prompt.text).ids):
            return False
        left -= prompt.tokens
        if left < 0:
            break
    return True
