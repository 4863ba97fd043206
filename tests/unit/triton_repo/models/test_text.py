"""Text from tokens, one at a time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from triton_repo.models.text import Detokenizer, StreamsById, byte_alphabet

_VOCABULARY = {character: byte for byte, character in enumerate(byte_alphabet())}


def _tokenizer() -> Tokenizer:
    """Return the hardest byte-level vocabulary: every token is one byte."""
    tokenizer = Tokenizer(models.BPE(_VOCABULARY, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


TOKENIZER = _tokenizer()
DETOKENIZER = Detokenizer(TOKENIZER)


@given(st.text(max_size=40))
def test_a_stream_of_tokens_is_the_text(text: str) -> None:
    """Whatever the characters and however many tokens each takes, nothing is lost and nothing is U+FFFD."""
    ids = TOKENIZER.encode(text).ids
    stream = DETOKENIZER.stream()
    assert "".join(stream.push([token]) for token in ids) + stream.finish() == text
    assert DETOKENIZER.text(ids) == text


def test_nothing_is_given_out_before_a_character_is_whole() -> None:
    """The four bytes of an emoji come out with the last of them."""
    stream = DETOKENIZER.stream()
    assert [stream.push([byte]) for byte in "🚀".encode()] == ["", "", "", "🚀"]


def test_a_character_cut_off_is_said_at_the_end_alone() -> None:
    """An unfinished character is U+FFFD when the reply ends, not before."""
    stream = DETOKENIZER.stream()
    assert stream.push(list("🚀".encode()[:3])) == ""
    assert stream.finish() == "\ufffd"


def test_replies_are_kept_apart_by_their_ids() -> None:
    """Two interleaved replies do not mix, and whole ones are forgotten."""
    streams = StreamsById(DETOKENIZER)
    first, second = "é".encode(), "ü".encode()
    assert streams.push("a", [first[0]]) + streams.push("b", [second[0]]) == ""
    assert len(streams) == 2
    assert (streams.push("a", [first[1]]), streams.push("b", [second[1]])) == ("é", "ü")
    assert len(streams) == 0


@pytest.mark.parametrize("token", [-1, 256, 10_000, 2**32, 2**63])
def test_ids_without_a_token_add_nothing(token: int) -> None:
    """Padded vocabularies have rows that stand for no text."""
    assert DETOKENIZER.text([65, token, 66]) == "AB"
