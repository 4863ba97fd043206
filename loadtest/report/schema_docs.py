"""The reference of report-load's output, generated from its schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from loadtest.metrics import Summary
from loadtest.report.comparison_schema import Comparison


def tables() -> str:
    """Return one table for each schema in `summary.json` and `comparison.json`, as Markdown."""
    parts = []
    for schema in dict.fromkeys([*_schemas(Summary), *_schemas(Comparison)]):
        parts += [f"## {schema.__name__}", "", (schema.__doc__ or "").strip().partition("\n")[0], ""]
        parts += ["| key | type | meaning |", "|---|---|---|"]
        parts += [
            f"| `{field.alias or name}` | {_type_of(field.annotation)} | {_meaning(schema, name)} |"
            for name, field in schema.model_fields.items()
        ]
        parts.append("")
    return "\n".join(parts).rstrip()


def _schemas(schema: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield a schema and those inside it, in the order they come."""
    yield schema
    for field in schema.model_fields.values():
        for inner in _inside(field.annotation):
            yield from _schemas(inner)


def _inside(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _inside(argument)


def _meaning(schema: type[BaseModel], name: str) -> str:
    """Return the meaning of a key: its description, or its entry in the schema's docstring."""
    described = schema.model_fields[name].description
    if described:
        return described
    for owner in schema.__mro__:
        found = re.search(rf"^\s+{name}: (.*?)(?=^\s+\w+: |\Z)", owner.__doc__ or "", re.DOTALL | re.MULTILINE)
        if found:
            return " ".join(found[1].split())
    return _COMMON.get(name, "")


_COMMON = {
    "schema_version": "Version of the schema.",
    "made_by": "The command line that wrote it, and the package's version.",
    "made_from": "The files it is made from, with their SHA-256.",
    "path": "Path of the file.",
    "sha256": "SHA-256 of its bytes.",
    "command": "The command line.",
    "version": "The package's version.",
    "code": (
        "Code of the validity issue: `generator-late`, `arrivals-late`, `emulator-late`, `incomplete`, "
        "`interrupted` ..."
    ),
    "text": "What was observed, and the limit that it exceeded.",
    "level": "Index of the level concerned; null: the whole run.",
    "url": "Where the server was.",
    "protocol": "The protocol.",
    "model": "The model requests were sent to.",
    "triton_version": "The server's version.",
    "emulated": "Whether its engine is emulated.",
    "time_scale": "Wall seconds per engine second.",
    "engine": "The engine's name; null if not reported.",
}


def _type_of(annotation: object) -> str:
    """Return a type in short words.

    >>> _type_of(float | None), _type_of(dict[str, tuple[float, float]])
    ('number or null', 'keys to list of numbers')
    """
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return _PLAIN.get(annotation) or f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    arguments: tuple[Any, ...] = get_args(annotation)
    if get_origin(annotation) is dict:
        return f"keys to {_type_of(arguments[1])}"
    if get_origin(annotation) in {list, tuple}:
        inner = _type_of(arguments[0])
        return f"list of {inner}s" if inner in {"number", "integer"} else f"list of {inner}"
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{argument}`" for argument in arguments)
    return " or ".join(_type_of(argument) for argument in arguments)


_PLAIN: dict[type, str] = {int: "integer", float: "number", str: "text", bool: "true or false", type(None): "null"}
