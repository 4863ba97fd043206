"""What is a list of models."""

from __future__ import annotations

from typing import Any

import pytest

from engines.model_list import listed_models


@pytest.mark.parametrize(
    "document",
    [
        None,
        "data",
        [{"id": "a"}],
        {},
        {"data": None},
        {"data": {"id": "a"}},
        {"data": ["a"]},
        *({"data": [{"id": "a"}, {"id": name}]} for name in (7, None, "", ["x"], True, "a\nb", "\x1b[2J")),
        {"data": [{"id": "a"}, {}]},
    ],
)
def test_only_entries_with_names_are_a_list(document: Any) -> None:
    """A number, null and unprintable text are no names; the text says what was there."""
    with pytest.raises(ValueError, match="not a list of model names: ") as refused:
        listed_models(document)
    assert str(refused.value).isprintable()


def test_entries_keep_what_else_a_server_says_of_them() -> None:
    """Their order too."""
    rows = [{"id": "b", "max_model_len": 4096}, {"id": "a"}]
    assert listed_models({"object": "list", "data": rows}) == rows
