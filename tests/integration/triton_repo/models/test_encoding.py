"""Tokens of text, against the library's own: the same ids for any text, however it is cut here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from engines.checkpoint.calibration_text import load_corpus
from engines.errors import MissingError
from triton_repo.models import encoding
from triton_repo.models.encoding import Encoder
from triton_repo.models.text import Detokenizer, byte_alphabet, load_tokenizer

QWEN3 = Path(sys.prefix) / "share" / "tokenizers" / "qwen3"
QWEN_CUT = next(iter(encoding._CUTS))
LLAMA_CUT = list(encoding._CUTS)[1]

# What could part two ways of cutting text: every kind of space and digit, marks, apostrophes, line breaks, tags.
_SPACES = [
    "\u00a0",
    "\u3000",
    "\u2028",
    "\x85",
    "\x1c",
    "\x0b",
    "\r\n",
    "\n\n",
    "  ",
    " ",
    "\t",
    "\u200d",
    "\ufeff",
    "\x00",
]
_LETTERS = [
    "'s",
    "'LL",
    "\u2019s",
    "\u017f",
    "\u212a",
    "e\u0301",
    "\u00e9",
    "世界",
    "한국어",
    "\u1112\u1161",
    "\ufb01",
    "a",
    "Zz",
]
_DIGITS = ["123", "9", "\u0663", "\u00b2", "\u00bd", "\uff11\uff12"]
_SIGNS = ["👩‍🚀", "🇩🇪", "_", "-", "...", "!", "<", "<|im_end|>", "<think>", "</think>", "<|im_"]
_HARD = st.sampled_from([*_SPACES, *_LETTERS, *_DIGITS, *_SIGNS])
_TEXT = st.lists(st.one_of(_HARD, st.text(max_size=3), st.text(alphabet="ab '\n.1", max_size=4)), max_size=25).map(
    "".join
)


@pytest.fixture(scope="module")
def qwen3() -> Tokenizer:
    """Load Qwen3's tokenizer."""
    if not QWEN3.is_dir():
        pytest.skip("the Qwen3 tokenizer is not installed: make setup")
    return load_tokenizer(QWEN3)


@pytest.fixture(scope="module")
def qwen3_encoder(qwen3: Tokenizer) -> Encoder:
    """Make its encoder."""
    return Encoder(qwen3)


def _made(cut: str, *, normalize: bool = True, normalized_tokens: bool = False) -> Tokenizer:
    """Make a byte-level tokenizer with some merges, a cut of its own and special tokens."""
    alphabet = byte_alphabet()
    vocabulary = {character: byte for byte, character in enumerate(alphabet)}
    merges = [("a", "b"), ("1", "2"), ("Ġ", "a"), ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("'", "s"), ("Ã", "©")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    if normalize:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(cut), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = ["<|im_end|>", "<think>", "</think>", "<s>"]
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=normalized_tokens) for text in texts])
    begin = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", begin)])
    return tokenizer


MADE = [
    _made(QWEN_CUT),
    _made(LLAMA_CUT),
    _made(QWEN_CUT, normalize=False),
    _made(LLAMA_CUT, normalized_tokens=True),
]
ENCODERS = [Encoder(tokenizer) for tokenizer in MADE]


@given(_TEXT, st.sampled_from(range(len(MADE))), st.booleans())
def test_tokens_are_the_librarys(text: str, which: int, special: bool) -> None:
    """For any text, with and without a normalizer, whatever kind of special tokens."""
    assert ENCODERS[which].is_fast
    expected = MADE[which].encode(text, add_special_tokens=special).ids
    assert ENCODERS[which].encode(text, add_special_tokens=special) == expected


@given(text=_TEXT)
def test_qwen3s_tokens_are_the_librarys(qwen3: Tokenizer, qwen3_encoder: Encoder, text: str) -> None:
    """The same of the tokenizer that is served."""
    assert qwen3_encoder.encode(text) == qwen3.encode(text).ids


def test_real_chats_have_the_librarys_tokens_and_transformers_text(qwen3: Tokenizer, qwen3_encoder: Encoder) -> None:
    """Of real chats, those with characters beyond ASCII first; `make bench-serving` compares 10,000 through Triton."""
    transformers = pytest.importorskip("transformers", reason="the quantize extra is not installed")
    try:
        documents = load_corpus(None).held_out.documents
    except MissingError as error:
        pytest.skip(str(error))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=qwen3)
    detokenizer = Detokenizer(qwen3)
    chosen = [document[:3000] for document in sorted(documents, key=str.isascii)[:150]]
    assert sum(not document.isascii() for document in chosen) > 50
    for document in chosen:
        ids = qwen3_encoder.encode(document)
        assert ids == theirs.encode(document, add_special_tokens=False)
        text = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert detokenizer.text(ids) == text
        stream = detokenizer.stream()
        assert "".join([stream.push([token]) for token in ids]) + stream.finish() == text


def test_a_tokenizer_of_another_make_is_left_to_the_library() -> None:
    """Its tokens are right all the same."""
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    encoder = Encoder(tokenizer)
    assert not encoder.is_fast
    assert encoder.encode("a b c") == [0, 1, 2]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends ever new words fills no memory, and gets the right tokens."""
    monkeypatch.setattr(encoding, "CACHED_PIECES", 5)
    encoder = Encoder(MADE[0])
    for number in range(50):
        text = f"word{'x' * number} é{'y' * number}"
        assert encoder.encode(text) == MADE[0].encode(text, add_special_tokens=False).ids
        assert len(encoder._known) <= 5
