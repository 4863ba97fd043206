"""Strict schemas; reading and writing YAML and JSON; hashes; files that appear complete or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TextIO, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from engines.errors import DISTRIBUTION, CommandError, MissingError, UserError
from engines.schema_errors import schema_error
from engines.signals import interrupts_deferred

LONGEST_YAML_BYTES = 1 << 20  # settings files are a few KB; this project's largest is a few hundred
SCHEMA_VERSION = 2
MAX_TOKENS = 1 << 24  # of one prompt or reply: longer than any model's context
_PART = re.compile(r"\.(.+)\.[0-9]+\.part")
CONTENTS_NAME = ".contents.json"  # in every folder that a command writes: the command and the files
# What the commands write, as people call it.
KINDS = {
    "unpack-checkpoint": "a checkpoint",
    "build-engine": "an engine folder",
    "build-repo": "a model repository",
    "build-deployment": "a deployment",
    "run-load": "a run folder",
    "predict-load": "a run folder",
    "find-knee": "a result of find-knee",
    "report-load": "a report",
    "plan-capacity": "a capacity plan",
    "check-gpu": "a result of check-gpu",
    "install-triton": "a local Triton",
}


class Strict(BaseModel):
    """Base of every schema: frozen, every number finite; unknown keys are errors."""

    # A command validates with a few of the hundred schemas that it imports: each is compiled on first use.
    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )


class Source(Strict):
    """An input of a document: its path and hash."""

    path: str
    sha256: str


class MadeBy(Strict):
    """The command line that wrote a document, and this package's version."""

    command: str
    version: str


class Document(Strict):
    """Head of every JSON document that a command writes: what wrote it, and from which inputs."""

    schema_version: int = Field(default=SCHEMA_VERSION, alias="schema")
    made_by: MadeBy
    made_from: list[Source] = []

    model_config = ConfigDict(populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _not_later(cls, values: Any) -> Any:
        """Refuse a document of a schema that this version does not know: its keys may mean something else."""
        found, newest = (
            values.get("schema") if isinstance(values, dict) else None,
            cls.model_fields["schema_version"].default,
        )
        if isinstance(found, int) and found > newest:
            raise ValueError(f"schema {one_line(found, 20)} is of a later version; the latest known is {newest}")
        return values


SchemaT = TypeVar("SchemaT", bound=BaseModel)


def one_line(value: object, limit: int | None = 80) -> str:
    """Return what a file or a server states, or an error, as one line, for a message.

    Args:
        limit: Maximum length; None: any.

    >>> one_line("a  b "), one_line("abc", 2)
    ('a b', 'ab')
    """
    return " ".join(str(value).split())[:limit]


def kind_of_folder(folder: Path) -> str | None:
    """Return what a folder is by the command that wrote it, with its article; None if no command recorded that."""
    try:
        found = json.loads((folder / CONTENTS_NAME).read_text(encoding="utf-8"))
        return kind_made_by(str(found["made_by"]["command"]))
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return None


def not_of_kind(kind: str, folder: Path, lacks: str, *, hint: str) -> CommandError:
    """Return the error of a folder that is not of a kind: it does not exist, is a file, or belongs to another kind.

    Args:
        kind: With its article.
        lacks: What it lacks of what every folder of that kind has.
        hint: What to try.
    """
    if not os.path.lexists(folder):
        return MissingError(f"{folder}: no such folder", hint=hint)
    if folder.is_file():
        own = kind_of_folder(folder.parent) == kind
        where = f"give the folder, {shlex.quote(str(folder.parent))}"
        return UserError(f"{folder}: is a file; expected {kind}", hint=where if own else hint)
    if not folder.is_dir():
        return MissingError(f"{folder}: cannot be read; expected {kind}", hint=hint)
    found = kind_of_folder(folder)
    text = f"{found}, not {kind}" if found not in (None, kind) else f"not {kind}: it has no {lacks}"
    return UserError(f"{folder}: {text}", hint=hint)


def kind_made_by(command_line: str) -> str | None:
    """Return what a command writes, with its article; None if it writes nothing of a kind of its own."""
    return KINDS.get(command_line.partition(" ")[0])


def require_schema(values: object, wanted: int, *, again: str) -> None:
    """Refuse a document of another schema, before its keys are checked.

    Args:
        again: What to do, with the command that writes the document.

    Raises:
        ValueError: Its `schema` is not the wanted one.
    """
    found = values.get("schema", wanted) if isinstance(values, dict) else wanted
    if found != wanted:
        raise ValueError(f"schema {one_line(found, 20)} is of another version; {again}")


def made_by(command: str) -> MadeBy:
    """Return the `made_by` value for a document written by `command`."""
    return MadeBy(command=command, version=version(DISTRIBUTION))


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the installed ones among these packages."""
    versions = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def source_of(path: Path) -> Source:
    """Return path and SHA-256 of an input file. Raises as `read_yaml` does, except for schema errors."""
    require_file(path)
    return Source(path=str(path), sha256=sha256_of(path))


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_yaml(path: Path, schema: type[SchemaT]) -> SchemaT:
    """Read a YAML file and check it against a schema.

    Raises:
        MissingError: The file does not exist, or cannot be read.
        UserError: The file is not YAML, repeats a key, uses aliases, exceeds the size or nesting limit, or does not
            match the schema. The message names file, key and limit.
    """
    loaded = load_yaml(path)
    return validate(loaded if loaded is not None else {}, schema, where=str(path))


def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file as plain data. Raises as `read_yaml` does, except for schema errors."""
    if path.is_file() and path.stat().st_size > LONGEST_YAML_BYTES:
        raise UserError(f"{path}: {path.stat().st_size} bytes of YAML exceed the limit of {LONGEST_YAML_BYTES}")
    from engines.yaml_text import parse_yaml  # noqa: PLC0415 (many commands read no YAML)

    return parse_yaml(_text_of(path), where=str(path))


def read_json(path: Path, schema: type[SchemaT]) -> SchemaT:
    """Read a JSON file and check it against a schema. Raises as `read_yaml` does."""
    return validate(load_json(path), schema, where=str(path))


def load_json(path: Path) -> Any:
    """Return the content of a JSON file. Raises as `read_yaml` does, except for schema errors."""
    return parse_json(_text_of(path), where=str(path))


def parse_json(text: str | bytes, *, where: str) -> Any:
    """Return the content of JSON text. Raises as `load_json` does; messages start with `where`."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not valid JSON: {error}", hint="the file may be truncated; generate it again"
        ) from error
    # Not UTF-8; a number with thousands of digits; brackets nested beyond the recursion limit.
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{where}: not valid JSON: {one_line(error, None)}", hint="check that this is the right file"
        ) from error


@contextmanager
def text_file(path: Path, *, encoding: str = "utf-8", newline: str | None = None) -> Iterator[TextIO]:
    """Open a text file for reading in pieces. Raises as `read_yaml` does, except for schema errors."""
    try:
        require_file(path)
        with path.open(encoding=encoding, newline=newline) as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason}") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def validate(value: object, schema: type[SchemaT], *, where: str, flags: Mapping[str, str] | None = None) -> SchemaT:
    """Check a loaded value against a schema and return the instance.

    Args:
        where: The file or flag that the value came from; starts the error message.
        flags: Dotted keys that were given by flags, with the flag as typed: a message about them names the flag.

    Raises:
        UserError: The value does not match; states the first error, and the nearest known key for an unknown one.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected keys and values, found {type(value).__name__}")
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise schema_error(error, schema, value, where=where, flags=flags or {}) from error


def to_json(document: BaseModel) -> str:
    """Return a document as indented JSON text, keys in schema order."""
    return json.dumps(document.model_dump(mode="json", by_alias=True), indent=2) + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: to a temporary file beside the target, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def written_as(name: str) -> str:
    """Return the name of the file that a temporary file of `write_text` was to become; other names unchanged.

    >>> written_as(".run.json.17.part"), written_as("run.json")
    ('run.json', 'run.json')
    """
    found = _PART.fullmatch(name)
    return found[1] if found else name


def write_json(path: Path, document: BaseModel) -> None:
    """Write a document as JSON, atomically; a signal waits for it."""
    with interrupts_deferred():
        write_text(path, to_json(document))


def _text_of(path: Path) -> str:
    try:
        require_file(path)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error


def require_file(path: Path, *, hint: str = "check the path") -> None:
    """Refuse anything but a regular file: reading a pipe or a device may never end.

    Args:
        hint: What to try if the path does not exist.

    Raises:
        MissingError: The path does not exist, or cannot be read.
        UserError: The path is something else.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file", hint=hint) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    if stat.S_ISDIR(mode):
        raise UserError(f"{path}: is a folder; expected a file", hint=hint)
    if not stat.S_ISREG(mode):
        raise UserError(f"{path}: is a device, a pipe or a socket; expected a file")


def _unreadable(path: Path, error: OSError) -> MissingError:
    return MissingError(f"{path}: cannot be read: {error.strerror}", hint="check the path and its permissions")
