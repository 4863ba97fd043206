"""Prompts of stated token counts: windows of real chat text, or random tokens."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer

from engines.corpus import load_corpus
from engines.errors import MissingError, UserError
from engines.files import Strict
from loadtest.scenario import PromptSource

MOST_PROMPTS = 4096
FIRST_RANDOM_ID = 1000  # below are bytes, digits and what other vocabularies keep for themselves


class Prompt(Strict):
    """One prompt, ready to be sent.

    Attributes:
        tokens: Its length by the engine's tokenizer.
        ids: Its tokens, for a model that takes tokens; empty for one that takes text.
        text: Its text, for a model that takes text; empty for one that takes tokens.
    """

    tokens: int
    ids: tuple[int, ...] = ()
    text: str = ""

    def cut(self, tokens: int | None) -> Prompt:
        """Return the prompt's first tokens, for a request that states its own length; only of one that has ids."""
        if tokens is None or tokens >= self.tokens:
            return self
        return Prompt(tokens=tokens, ids=self.ids[:tokens])


def make_prompts(
    tokenizer_path: Path, *, source: PromptSource, tokens: int, count: int, as_text: bool, seed: int
) -> list[Prompt]:
    """Return prompts of `tokens` tokens each, no two beginning alike.

    Chat prompts are windows, at random places, of the real chats' token stream. As text, a window is decoded and
    counted again: at its edges a prompt may come out a token or two longer or shorter, and its record says how long.

    Raises:
        MissingError: There is no tokenizer at that path.
        UserError: Not enough text for a prompt of this length.
    """
    if not tokenizer_path.is_file():
        raise MissingError(f"{tokenizer_path}: no such tokenizer", hint="--tokenizer FILE names the engine's")
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    rng = random.Random(seed)
    count = min(count, MOST_PROMPTS)
    windows = _chat_windows if source == "chat" else _random_windows
    return [_prompt(tokenizer, ids, as_text=as_text) for ids in windows(tokenizer, rng, tokens, count)]


def write_prompts(path: Path, prompts: list[Prompt]) -> None:
    """Write prompts as JSON lines, for the load generator's process."""
    with path.open("w", encoding="utf-8") as file:
        for prompt in prompts:
            file.write(json.dumps(prompt.model_dump()) + "\n")


def read_prompts(path: Path) -> list[Prompt]:
    """Read what `write_prompts` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Prompt.model_validate_json(line) for line in file]


def _prompt(tokenizer: Tokenizer, ids: list[int], *, as_text: bool) -> Prompt:
    if not as_text:
        return Prompt(tokens=len(ids), ids=tuple(ids))
    text = tokenizer.decode(ids, skip_special_tokens=False)
    return Prompt(tokens=len(tokenizer.encode(text).ids), text=text)


def _chat_windows(tokenizer: Tokenizer, rng: random.Random, tokens: int, count: int) -> Iterator[list[int]]:
    stream = _chat_stream(tokenizer, wanted=max(100_000, 2 * tokens + count * 64))
    if len(stream) < tokens:
        raise UserError(
            f"the chats hold {len(stream)} tokens, a prompt of {tokens} was asked for", hint="a lower --isl"
        )
    places = range(len(stream) - tokens + 1)
    starts = rng.sample(places, count) if len(places) >= count else rng.choices(places, k=count)
    for start in starts:
        yield stream[start : start + tokens]


def _chat_stream(tokenizer: Tokenizer, *, wanted: int) -> list[int]:
    stream: list[int] = []
    for document in load_corpus(None).calibration.documents:
        stream += tokenizer.encode(document, add_special_tokens=False).ids
        if len(stream) >= wanted:
            break
    return stream


def _random_windows(tokenizer: Tokenizer, rng: random.Random, tokens: int, count: int) -> Iterator[list[int]]:
    ids = range(
        min(FIRST_RANDOM_ID, tokenizer.get_vocab_size() // 2), tokenizer.get_vocab_size(with_added_tokens=False)
    )
    for _ in range(count):
        yield rng.choices(ids, k=tokens)
