"""What an OpenAI server's `GET /v1/models` lists. Standard library only: a relay's repository has a copy."""

from __future__ import annotations

from typing import Any, TypeGuard

_SHOWN_CHARACTERS = 80


def is_model_name(value: object) -> TypeGuard[str]:
    """Return whether an entry of a server's list of models is a name: printable text."""
    return isinstance(value, str) and bool(value) and value.isprintable()


def listed_models(document: object) -> list[dict[str, Any]]:
    """Return the entries of a list of models, in its order; the name of each is its `id`.

    Raises:
        ValueError: It is not a list, or an entry has no name; the text is for a message.

    >>> listed_models({"data": [{"id": "a"}]}), listed_models({"data": []})
    ([{'id': 'a'}], [])
    """
    rows = document.get("data") if isinstance(document, dict) else None
    if not (isinstance(rows, list) and all(isinstance(row, dict) and is_model_name(row.get("id")) for row in rows)):
        raise ValueError(f"not a list of model names: {str(document)[:_SHOWN_CHARACTERS]!r}")
    return rows
