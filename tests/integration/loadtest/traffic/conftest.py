"""Tokenizers for tests of prompts, trained on the built-in chats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from engines.checkpoint.calibration_text import default_text_path, documents_of

# How Qwen and Llama 3 split text before they merge bytes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _text() -> Iterator[str]:
    for number, document in enumerate(documents_of(default_text_path())):
        yield document
        if number == 400:
            return


@pytest.fixture(scope="session")
def bytes_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tokenizer of the kind that current models have."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        _text(), trainers.BpeTrainer(vocab_size=4000, initial_alphabet=alphabet, show_progress=False)
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture(scope="session")
def pieces_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tokenizer that puts a mark before every text, as SentencePiece's do: parts do not add up to the whole."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    made.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    lines = (line for text in _text() for line in text.splitlines()[:3])
    made.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=1500, max_token_length=12, show_progress=False))
    path = tmp_path_factory.mktemp("pieces") / "tokenizer.json"
    made.save(str(path))
    return path
