"""What is wrong with a value that does not match its schema, in words of YAML, and what to write instead."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from engines.errors import DISTRIBUTION, UserError
from engines.units import hint_of_time

_UNION_BRANCHES = {"int", "float", "str", "bool"}
_NAMES, _LIST, _WHOLE, _NUMBER, _TEXT = (
    "expected keys and values",
    "expected a list",
    "expected a whole number",
    "expected a number",
    "expected text",
)
_EXPECTED = {
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type", "mapping_type"), _NAMES),
    **dict.fromkeys(("tuple_type", "list_type", "set_type", "frozen_set_type"), _LIST),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), _WHOLE),
    **dict.fromkeys(("float_type", "float_parsing"), _NUMBER),
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "string_type": _TEXT,
}
_MUST = {"Input should be ": "must be ", "String should match ": "must match the "}
_QUOTED = re.compile(r"'([^']*)'")
_SHOWN = 80  # characters of a value


def schema_error(
    error: ValidationError, schema: type[BaseModel], value: Mapping[str, Any], *, where: str, flags: Mapping[str, str]
) -> UserError:
    """Return pydantic's first error as one sentence with key, value and hint; an unknown key may explain others.

    Args:
        value: What was checked. A document that another command or version wrote is named as such.
        where: The file or flag that the value came from; starts the message.
        flags: Dotted keys that were given by flags, with the flag as typed.
    """
    found = error.errors()
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    parts = [str(part) for part in first["loc"] if not _names_a_type(part) and part != "[key]"]
    key = ".".join(parts)
    flag = next((flags[above] for above in accumulate(parts, "{}.{}".format) if above in flags), None)
    if flag is not None and first["type"] != "extra_forbidden":
        where, key = flag, ""
    if first["type"] == "extra_forbidden":
        *parents, unknown = first["loc"]
        known = _keys_at(schema, [str(part) for part in parents])
        close = difflib.get_close_matches(str(unknown), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(sorted(known))}"
        return UserError(f"{flag or where}: unknown key '{key}'", hint=_writer(value, schema) or hint)
    if first["type"] == "missing":
        return UserError(f"{where}: missing key '{key}'", hint=_writer(value, schema))
    given = "" if isinstance(first["input"], dict) else f" (found {_short(first['input'])})"
    in_seconds = any(part.endswith("_s") for part in parts)
    text = ": ".join(part for part in (where, key, _said(first)) if part) + given
    return UserError(text, hint=_instead(first, in_seconds=in_seconds) or _writer(value, schema))


def _writer(value: Mapping[str, Any], schema: type[BaseModel]) -> str | None:
    """Return which command and version wrote a document; None for what a user wrote."""
    made_by = value.get("made_by")
    if "made_by" not in schema.model_fields or not isinstance(made_by, Mapping):
        return None
    command = str(made_by.get("command", "")).split()[:1] or ["an unknown command"]
    by = str(made_by.get("version", "?"))[:_SHOWN]
    try:
        this = version(DISTRIBUTION)
    except PackageNotFoundError:  # the copy of this module in a model repository
        this = by
    if by != this:
        return f"{command[0][:_SHOWN]} of version {by} wrote it, this is {this}: use that version, or write it again"
    return f"{command[0][:_SHOWN]} wrote it: check that it is the right file, and unchanged"


def _said(error: ErrorDetails) -> str:
    """Return what is wrong with a value in words of YAML, where pydantic uses those of Python."""
    context = error.get("ctx", {})
    if error["type"] == "union_tag_not_found":
        return f"missing key {context['discriminator']}, which names its kind"
    if error["type"] == "union_tag_invalid":
        return f"{context['discriminator']} must be one of {context['expected_tags']}, not '{context['tag']}'"
    if error["type"] == "too_short":
        least = context["min_length"]
        return f"expected at least {least} {'entry' if least == 1 else 'entries'}"
    message = error["msg"].removeprefix("Value error, ")
    return _EXPECTED.get(error["type"]) or re.sub(
        "^Input should be |^String should match ", lambda found: _MUST[found[0]], message
    )


def _instead(error: ErrorDetails, *, in_seconds: bool) -> str | None:
    """Return what to write in place of a value; None if that is not plain from it."""
    given, expected = error["input"], _EXPECTED.get(error["type"])
    if hint := error.get("ctx", {}).get("hint"):  # of a schema's own PydanticCustomError
        return str(hint)
    if error["type"] in ("union_tag_invalid", "literal_error"):
        context = error["ctx"]
        names = _QUOTED.findall(str(context.get("expected_tags") or context["expected"]))
        close = difflib.get_close_matches(str(context.get("tag", given)), names, n=1)
        return f"did you mean '{close[0]}'?" if close else None
    if expected is _LIST and isinstance(given, int | float | str) and not isinstance(given, bool):
        return f"a list is in brackets: [{given}]"
    if expected is _TEXT and isinstance(given, bool | int | float | date):
        return "put it in quotes; without them YAML reads a truth value, a number or a date"
    if error["type"] == "string_pattern_mismatch":
        return _hint_of_pattern(str(given), error["ctx"]["pattern"])
    return hint_of_time(given) if in_seconds and isinstance(given, str) else None


def _hint_of_pattern(given: str, pattern: str) -> str | None:
    """Return the name nearest to a given one that matches; None if there is none so simple.

    >>> _hint_of_pattern("My Chat", "^[a-z-]+$"), _hint_of_pattern("9", "^[a-z]+$")
    ("try 'my-chat'", None)
    """
    joined = re.sub(r"[^\w.-]+", "-", given).strip("-")
    nearest = (joined, joined.lower(), re.sub(r"[_.]", "-", joined.lower()))
    return next((f"try '{each}'" for each in nearest if re.search(pattern, each)), None)


def _names_a_type(part: int | str) -> bool:
    """Whether a part of pydantic's error path is a branch of a union (`constrained-int`) and not a key."""
    return isinstance(part, str) and (
        part.startswith(("constrained-", "function-", "literal[")) or part in _UNION_BRANCHES
    )


def _short(value: object) -> str:
    """Return a value as YAML would show it, on at most `_SHOWN` characters."""
    if value is None:
        return "nothing"
    text = str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, date) else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def _keys_at(schema: type[BaseModel], parents: list[str]) -> list[str]:
    """Return the keys that a schema has below a path of keys. List indices in the path are skipped."""
    current: Any = schema
    for parent in parents:
        field = getattr(current, "model_fields", {}).get(parent)
        if field is not None:
            current = _schema_inside(field.annotation) or current
    return [field.alias or name for name, field in current.model_fields.items()]


def _schema_inside(annotation: Any) -> type[BaseModel] | None:
    """Return the schema class inside an annotation such as `list[Thing] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _schema_inside(argument)
        if found is not None:
            return found
    return None
