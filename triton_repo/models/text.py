"""Conversion between text and tokens with the `tokenizers` library; never runs code from a checkpoint.

A token is a sequence of bytes, and a character may span several tokens. Streamed text is therefore assembled from
bytes: complete characters are returned, an incomplete one is kept until the next token.
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

LARGEST_ID = 2**32 - 1  # in the library


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Ids of the special tokens that the engine uses; None where the tokenizer has none."""

    end_id: int | None
    pad_id: int | None


class TextStream(Protocol):
    """The text of one reply, token by token."""

    def push(self, token_ids: Iterable[int]) -> str:
        """Add tokens; return the text they complete, possibly empty."""
        ...

    def finish(self) -> str:
        """Return the remaining text at the end of a reply: U+FFFD for an incomplete character."""
        ...

    @property
    def holds_nothing(self) -> bool:
        """Whether the stream has no pending state, so that dropping it changes no later text."""
        ...


class Detokenizer:
    """Converts token ids to text, whole or as a stream.

    For a byte-level vocabulary (Qwen, Llama 3, GPT-2, SmolLM) each token's bytes are looked up at its first use; from
    then on a token costs one dictionary access. For others, the library's incremental decoder is used.

    Args:
        tokenizer: As returned by `load_tokenizer`.
        skip_special_tokens: Omit special tokens, such as end-of-text, from the text.
        kept: Special tokens that stay in the text, such as a reasoning model's tags. Byte-level vocabularies only.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True, kept: Collection[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._pieces: TokenBytes | None = None
        if _is_byte_level(described(tokenizer.decoder)):
            self._pieces = TokenBytes(tokenizer, skip_special_tokens=skip_special_tokens, kept=kept)

    def text(self, token_ids: Sequence[int]) -> str:
        """Return the text of a whole reply; unknown ids add nothing, as in the library."""
        if self._pieces is None:
            return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=self._skip))
        return _join(self._pieces, token_ids).decode("utf-8", "replace")

    def text_alone(self, token_id: int) -> str | None:
        """Return a token's text if it consists of whole characters in every context; None if that is uncertain."""
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
    """Streams of replies, identified by their request's id.

    An ensemble's last step does not learn where a reply starts or ends. A stream without an incomplete character is
    dropped at once; the others are dropped, least recently used first, when there are too many.

    Args:
        max_streams: Maximum number of unfinished streams.
    """

    def __init__(self, detokenizer: Detokenizer, *, max_streams: int = 4096) -> None:
        self._detokenizer = detokenizer
        self._max_streams = max_streams
        self._open: OrderedDict[str, TextStream] = OrderedDict()

    def push(self, request_id: str, token_ids: Sequence[int]) -> str:
        """Add tokens of a request; return the text they complete."""
        stream = self._open.pop(request_id, None) or self._detokenizer.stream()
        text = stream.push(token_ids)
        if not stream.holds_nothing:
            self._open[request_id] = stream
            if len(self._open) > self._max_streams:
                self._open.popitem(last=False)
        return text

    def __contains__(self, request_id: str) -> bool:
        """Whether a request's reply currently ends in an incomplete character."""
        return request_id in self._open

    def __len__(self) -> int:
        """Return the number of unfinished streams."""
        return len(self._open)


class _ByteStream:
    """A reply in a byte-level vocabulary."""

    def __init__(self, pieces: TokenBytes) -> None:
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
    """A reply in a vocabulary whose decoding depends on neighbouring tokens."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stream = DecodeStream(skip_special_tokens=skip_special_tokens)
        self._pending: list[int] = []

    def push(self, token_ids: Iterable[int]) -> str:
        text = ""
        for token_id in token_ids:
            self._pending.append(token_id)
            piece = self._stream.step(self._tokenizer, token_id)
            if piece is not None:
                text += piece
                self._pending.clear()
        return text

    def finish(self) -> str:
        pending, self._pending = self._pending, []
        return str(self._tokenizer.decode(pending, skip_special_tokens=self._skip)) if pending else ""

    @property
    def holds_nothing(self) -> bool:
        return False


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json`, with its stored padding and truncation turned off."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def special_tokens(folder: Path, tokenizer: Tokenizer) -> SpecialTokens:
    """Return the ids of the tokens named in `tokenizer_config.json`; the end token is the default pad token."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    end_id = _token_id(tokenizer, config.get("eos_token"))
    pad_id = _token_id(tokenizer, config.get("pad_token"))
    return SpecialTokens(end_id=end_id, pad_id=end_id if pad_id is None else pad_id)


def word_list(words: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Return words in TensorRT-LLM's format: all tokens, then the end offset of each word, padded with -1.

    >>> word_list([[5, 6], [7]])
    ([5, 6, 7], [2, 3, -1])
    """
    flat = [token for word in words for token in word]
    ends = list(itertools.accumulate(map(len, words)))
    return flat, ends + [-1] * (len(flat) - len(ends))


class TokenBytes(dict[int, bytes]):
    """Each token's bytes by id in a byte-level vocabulary, found at its first use; ids without a token have none.

    Added tokens with characters outside the byte alphabet represent their own text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool, kept: Collection[str] = ()) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self._byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
        if skip_special_tokens:
            added = tokenizer.get_added_tokens_decoder()
            self.update((id_, b"") for id_, token in added.items() if token.special and token.content not in kept)

    def __missing__(self, token_id: int) -> bytes:
        """Return a token's bytes and keep them; an unknown id is not kept, as a reply may have any number of them."""
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id <= LARGEST_ID else None
        if token is None:
            return b""
        self[token_id] = found = _bytes_of(token, self._byte_of)
        return found


def described(part: Any) -> dict[str, Any]:
    """Return a part of a tokenizer, such as its decoder, as tokenizer.json describes it; nothing for None.

    The description of the whole contains the vocabulary, which takes half a second to write and read.
    """
    return {} if part is None else dict(json.loads(part.__getstate__()))


def byte_alphabet() -> str:
    """Return the 256 characters with which byte-level vocabularies write bytes, in byte order.

    Printable Latin-1 characters represent themselves; the others are shifted, in order, to U+0100 and above.

    Source:
        GPT-2's encoder.py, `bytes_to_unicode`.

    >>> byte_alphabet()[ord("A")], byte_alphabet()[ord(" ")]
    ('A', 'Ġ')
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    shifted = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(shifted)) for byte in range(0x100))


def _join(pieces: TokenBytes, token_ids: Iterable[int]) -> bytes:
    """Return the bytes of tokens; ids outside the vocabulary (padding, unused rows) have none."""
    return b"".join([pieces[token_id] for token_id in token_ids])


def _bytes_of(token: str, byte_of: dict[str, int]) -> bytes:
    try:
        return bytes([byte_of[character] for character in token])
    except KeyError:
        return token.encode("utf-8")


def _is_byte_level(decoder: dict[str, Any]) -> bool:
    if decoder.get("type") == "Sequence":
        return [inner["type"] for inner in decoder["decoders"]] == ["ByteLevel"]
    return decoder.get("type") == "ByteLevel"


def _token_id(tokenizer: Tokenizer, named: object) -> int | None:
    """Return a token's id from its entry in tokenizer_config.json: text, or an object with `content`."""
    content = named.get("content") if isinstance(named, dict) else named
    found = tokenizer.token_to_id(content) if isinstance(content, str) else None
    return None if found is None else int(found)
