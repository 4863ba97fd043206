"""The parameters of a model's config.pbtxt, parsed as TensorRT-LLM's backend parses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BOOLEANS = {
    word: value
    for value, words in ((True, "True true TRUE 1"), (False, "False false FALSE 0"))
    for word in words.split()
}


def parameters_of(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the parameters of a model's configuration."""
    return {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}


def flag(values: Mapping[str, str], key: str, *, default: bool) -> bool:
    """Return a boolean parameter; the default if it is missing or invalid."""
    return BOOLEANS.get(values.get(key, ""), default)


def number(values: Mapping[str, str], key: str, default: float) -> float:
    """Return a numeric parameter; the default if it is missing or invalid."""
    try:
        return float(values.get(key, ""))
    except ValueError:
        return default
