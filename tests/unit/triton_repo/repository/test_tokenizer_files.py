"""Whose tokenizer a repository accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engines.errors import UserError
from triton_repo.repository.tokenizer_files import check_tokenizer


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    """A token beyond the model's vocabulary fails every prompt that has it; an embedding with rows to spare is fine."""
    Tokenizer(WordLevel({"a": 0, "b": 7}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    assert check_tokenizer(tmp_path, vocabulary=8) == []
    with pytest.raises(UserError, match="another model: its token 7 exceeds the vocabulary of 7"):
        check_tokenizer(tmp_path, vocabulary=7)


def test_a_tokenizer_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    """What was found in a file counts as long as the file is the same."""
    for largest in (7, 123):
        Tokenizer(WordLevel({"a": 0, "b": largest}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
        for _ in range(2):
            with pytest.raises(UserError, match=f"another model: its token {largest} exceeds the vocabulary of 5"):
                check_tokenizer(tmp_path, vocabulary=5)
