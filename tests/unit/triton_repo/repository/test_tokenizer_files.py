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
