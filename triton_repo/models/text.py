"""Between text and tokens, with the `tokenizers` library alone; no code from a checkpoint is ever run.

A token is a run of bytes, and a character may be spread over several tokens. Text that is streamed is therefore put
together from bytes: what a token completes is given out, what it leaves unfinished is held until the next one.
"""

from __future__ import annotations

import codecs
import itertools
import json
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids with a meaning to the engine; None where the tokenizer names none."""

    end_id: int | None
    pad_id: int | None


class TextStream(Protocol):
    """The text of one reply, as its tokens come in."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Take tokens; return the text they complete, possibly none."""
        ...

    def finish(self) -> str:
        """Return what is left at the end of the reply: U+FFFD for a character that never became whole."""
        ...

    @property
    def holds_nothing(self) -> bool:
        """Whether forgetting this stream now would change no later text."""
        ...


class Detokenizer:
    """Turns token ids into text, whole or as a stream.

    For a byte-level vocabulary (Qwen, Llama 3, GPT-2, SmolLM) the bytes of every token are looked up once, and a
    token costs one list access. For any other the library's own incremental decoder is used.

    Args:
        tokenizer: As `load_tokenizer` returns it.
        skip_special_tokens: Leave end-of-text and the like out of the text.
        kept: Special tokens that are text all the same, such as a reasoning model's tags. Only a byte-level
            vocabulary can keep them.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, kept: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._pieces = token_bytes(tokenizer, skip_special_tokens=skip_special_tokens, kept=kept)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of a whole reply; unknown ids add nothing, as in the library."""
        if self._pieces is None:
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=self._skip))
        return _join(self._pieces, token_ids).decode("utf-8", "replace")

    def text_alone(self, token_id: int) -> str | None:
        """Return a token's text where it is whole characters whatever stands around it; None where that is not sure."""
        if self._pieces is None:
            return None
        try:
            return _join(self._pieces, (token_id,)).decode("utf-8")
        except UnicodeDecodeError:
            return None

    def stream(self) -> TextStream:
        """Start a reply."""
        if self._pieces is None:
            return _LibraryStream(self._tokenizer, self._skip)
        return _ByteStream(self._pieces)


class StreamsById:
    """Streams of replies known only by their request's id, each call bringing some of its tokens.

    An ensemble's last step is told neither when a reply begins nor when it ends. A stream that holds no unfinished
    character is forgotten at once; others, cut off in the middle of one, when too many pile up.

    Args:
        most: Unfinished streams kept at a time; the one longest untouched goes first.
    """

    def __init__(self, detokenizer: Detokenizer, *, most: int = 4096) -> None:
        self._detokenizer = detokenizer
        self._most = most
        self._open: OrderedDict[str, TextStream] = OrderedDict()

    def push(self, request_id: str, token_ids: Sequence[int]) -> str:
        """Take tokens of one request; return the text they complete."""
        stream = self._open.pop(request_id, None) or self._detokenizer.stream()
        text = stream.push(token_ids)
        if not stream.holds_nothing:
            self._open[request_id] = stream
            if len(self._open) > self._most:
                self._open.popitem(last=False)
        return text

    def __contains__(self, request_id: str) -> bool:
        """Whether a request's reply is in the middle of a character."""
        return request_id in self._open

    def __len__(self) -> int:
        """Return how many streams are held open."""
        return len(self._open)


class _ByteStream:
    """A reply from a byte-level vocabulary."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Iterable[int]) -> str:
        return self._decoder.decode(_join(self._pieces, token_ids))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)

    @property
    def holds_nothing(self) -> bool:
        return not self._decoder.getstate()[0]


class _LibraryStream:
    """A reply from a vocabulary whose decoding looks at neighbouring tokens."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._held: list[int] = []

    def push(self, token_ids: Iterable[int]) -> str:
        text = ""
        for token_id in token_ids:
            self._held.append(token_id)
            piece = self._stream.step(self._tokenizer, token_id)
            if piece is not None:
                text += piece
                self._held.clear()
        return text

    def finish(self) -> str:
        held, self._held = self._held, []
        return str(self._tokenizer.decode(held, skip_special_tokens=self._skip)) if held else ""

    @property
    def holds_nothing(self) -> bool:
        return False


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json`; padding and truncation stored in it are turned off, prompts are taken as they are."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def special_tokens(folder: Path, tokenizer: Tokenizer) -> SpecialTokens:
    """Return the ids of the tokens `tokenizer_config.json` names; without a pad token, the end token pads."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    end_id = _token_id(tokenizer, config.get("eos_token"))
    pad_id = _token_id(tokenizer, config.get("pad_token"))
    return SpecialTokens(end_id=end_id, pad_id=end_id if pad_id is None else pad_id)


def word_list(words: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return words in TensorRT-LLM's form: all tokens in a row, and where each word ends, padded with -1.

    >>> word_list([[5, 6], [7]])
    ([5, 6, 7], [2, 3, -1])
    """
    flat = [token for word in words for token in word]
    ends = list(itertools.accumulate(map(len, words)))
    return flat, ends + [-1] * (len(flat) - len(ends))


def token_bytes(tokenizer: Tokenizer, *, skip_special_tokens: bool, kept: Collection[str] = ()) -> list[bytes] | None:
    """Return the bytes of each token of a byte-level vocabulary, by id; None for any other kind.

    Tokens added to the vocabulary whose text has characters outside the byte alphabet stand for themselves.
    """
    description = json.loads(tokenizer.to_str())
    if not _is_byte_level(description.get("decoder")):
        return None
    skipped = (
        {token["id"] for token in description["added_tokens"] if token["special"] and token["content"] not in kept}
        if skip_special_tokens
        else set()
    )
    byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, token_id in vocabulary.items():
        if token_id not in skipped:
            pieces[token_id] = _bytes_of(token, byte_of)
    return pieces


def byte_alphabet() -> str:
    """Return the 256 characters that byte-level vocabularies write bytes with, in the order of the bytes.

    Printable Latin-1 stands for itself; the others, in order, are shifted to U+0100 and up.

    Source:
        GPT-2's encoder.py, `bytes_to_unicode`.

    >>> byte_alphabet()[ord("A")], byte_alphabet()[ord(" ")]
    ('A', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(shifted)) for byte in range(0x100))


def _join(pieces: list[bytes], token_ids: Iterable[int]) -> bytes:
    """Return the bytes of tokens; ids outside the vocabulary (padding, rows without a token) have none."""
    count = len(pieces)
    return b"".join([pieces[token_id] for token_id in token_ids if 0 <= token_id < count])


def _bytes_of(token: str, byte_of: dict[str, int]) -> bytes:
    try:
        return bytes([byte_of[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


def _is_byte_level(decoder: dict[str, Any] | None) -> bool:
    if decoder is None:
        return False
    if decoder["type"] == "Sequence":
        return [inner["type"] for inner in decoder["decoders"]] == ["ByteLevel"]
    return bool(decoder["type"] == "ByteLevel")


def _token_id(tokenizer: Tokenizer, named: object) -> int | None:
    """Return a token's id from its name in tokenizer_config.json: text, or an object with `content`."""
    content = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return None if found is None else int(found)
