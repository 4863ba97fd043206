"""Strict files: what is refused, and that nothing half-written is ever seen."""

from __future__ import annotations

from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from engines.errors import DISTRIBUTION, MissingError, UserError
from engines.files import Document, Strict, read_json, read_yaml, validate, write_text
from engines.yaml_text import parse_yaml


class Inner(Strict):
    """A schema inside a schema."""

    max_batch_size: int = 1


class Outer(Strict):
    """A schema like a recipe's."""

    precision: str = "fp8"
    limits: Inner = Inner()
    classes: tuple[Inner, ...] = ()


def test_misspelled_key_names_file_key_and_nearest(tmp_path: Path) -> None:
    """A misspelled key is refused with the file, the key and the key that was meant."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("precison: fp8\n")
    with pytest.raises(UserError) as caught:
        read_yaml(recipe, Outer)
    assert caught.value.message == f"{recipe}: unknown key 'precison'"
    assert caught.value.hint == "did you mean 'precision'?"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ({"limits": {"max_batchsize": 2}}, "limits.max_batchsize"),
        ({"classes": [{"max_batch": 2}]}, "classes.0.max_batch"),
    ],
)
def test_misspelled_key_inside_is_matched_at_its_own_level(value: dict[str, object], key: str) -> None:
    """The suggestion for a nested key comes from the nested schema, through lists as well."""
    with pytest.raises(UserError) as caught:
        validate(value, Outer, where="x")
    assert key in caught.value.message
    assert caught.value.hint == "did you mean 'max_batch_size'?"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("precision: a\nprecision: b\n", "key 'precision' is given twice"),
        ("a: &x [1, 2]\nb: *x\n", "aliases are not allowed"),
        ("- 1\n", "expected keys and values"),
        ("a: [\n", "not valid YAML: line 2, column 1: "),
        ("a: \x07\n", "not valid YAML: unacceptable character"),
        ("limits: {max_batch_size: many}\n", "limits.max_batch_size"),
        ("a: 2001-99-99\n", "not valid YAML"),
        ("a: " + "9" * 5000 + "\n", "not valid YAML"),
        ("a: 0x" + "f" * 5000 + "\n", "line 1, column 4: an integer of thousands of digits"),
        ("a: !!bool maybe\n", "line 1, column 4: no value of the tag !!bool"),
        ("a: !!timestamp x\n", "no value of the tag !!timestamp"),
        ("a: !!int ''\n", "no value of the tag !!int"),
        ("a: !!map [1]\n", "no value of the tag !!map"),
        ("? [a]\n: b\n", "a key is a list or a mapping"),
        ("a: " + "[" * 5000 + "]" * 5000 + "\n", "nested too deeply"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "aliases are not allowed"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("#" * (1 << 20) + "\n", "bytes of YAML exceed the limit of 1048576"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_yaml_is_one_clear_error(tmp_path: Path, text: str, complaint: str) -> None:
    """Repeated keys, aliases, wrong shapes and wrong types each end in one error that names the file."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_yaml(path, Outer)
    assert complaint in caught.value.message
    assert str(path) in caught.value.message


def test_a_time_with_a_unit_is_refused_with_its_seconds() -> None:
    """What people write by habit, 150ms, is answered with the number to write."""

    class Limit(Strict):
        ttft_s: float

    for given, seconds in (("150ms", "0.15"), (" 2 s", "2"), ("1m", "60"), ("1.5 min", "90"), ("2h", "7200")):
        with pytest.raises(UserError) as refused:
            validate({"ttft_s": given}, Limit, where="x.yaml")
        assert refused.value.hint == f"times are in seconds, without a unit: {seconds}"


@pytest.mark.parametrize(
    ("text", "line", "hint"),
    [
        ("a: &x [1, 2]\nb: *x\n", "line 2, column 4", "write the value out in each place, without & and *"),
        ("precision: a\nprecision: b\n", "line 2, column 1", "keep one of the two"),
        ("a:\n\tb: 1\n", "line 2, column 1", "indent with spaces, not with tabs"),
        ("a: {<<: {b: 1}}\n", "line 1, column 5", "write plain values, without '!' and '<<'"),
        ("a: b: c\n", "line 1, column 5", "quote a value that contains ': ', and check the indentation above"),
    ],
)
def test_bad_yaml_states_the_line_and_what_to_write(text: str, line: str, hint: str) -> None:
    """Each common mistake has its own remedy."""
    with pytest.raises(UserError, match=line) as caught:
        parse_yaml(text, where="x.yaml")
    assert caught.value.hint == hint


def test_a_list_and_a_text_are_shown_as_yaml_wants_them() -> None:
    """A single value is put in brackets; what YAML reads as a truth value, a number or a date, in quotes."""
    for value, hint in (({"rates": 5}, "[5]"), ({"rates": "1, 4"}, "[1, 4]"), ({"name": False}, "in quotes")):
        with pytest.raises(UserError) as caught:
            validate({"needed": 1, **value}, Typed, where="x")
        assert hint in str(caught.value.hint)


def test_a_document_of_another_command_or_version_is_named_as_such() -> None:
    """The reader learns which command wrote it, in which version, and not only that a key is unknown."""
    head = {"made_by": {"command": "run-load --out x", "version": version(DISTRIBUTION)}}
    other = {"made_by": {"command": "run-load --out x", "version": "9.9.9"}}
    for value, message, hint in (
        ({**head, "kind": 1}, "unknown key 'kind'", "run-load wrote it: check that it is the right file"),
        (
            {**other, "kind": 1},
            "unknown key 'kind'",
            f"run-load of version 9.9.9 wrote it, this is {version(DISTRIBUTION)}",
        ),
        ({**head, "schema": "two"}, "schema: expected a whole number", "run-load wrote it"),
        ({**other, "schema": 99}, "schema 99 is of a later version; the latest known is 2", "version 9.9.9 wrote it"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            validate(value, Document, where="x.json")
        assert hint in str(caught.value.hint)


def test_missing_and_truncated_json(tmp_path: Path) -> None:
    """A missing file and a file cut short are told apart."""
    with pytest.raises(MissingError, match="no such file"):
        read_json(tmp_path / "none.json", Outer)
    cut = tmp_path / "cut.json"
    cut.write_text('{"precision": "f')
    with pytest.raises(UserError, match="not valid JSON"):
        read_json(cut, Outer)


def test_text_appears_whole(tmp_path: Path) -> None:
    """A written file leaves no temporary file beside it."""
    write_text(tmp_path / "deep" / "a.txt", "x")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.txt"]


class _One(Strict):
    kind: Literal["one"]


class _Two(Strict):
    kind: Literal["two"]


class Typed(Strict):
    """A schema of every kind of value."""

    rates: tuple[float, ...] = ()
    inner: Inner = Inner()
    names: dict[Literal["p95", "p99"], float] = Field({})
    share: Annotated[float, Field(le=1)] = 0.0
    label: Annotated[str, Field(pattern="^[a-z-]+$")] = "a"
    some: Annotated[tuple[int, ...], Field(min_length=1)] = (1,)
    is_open: bool = False
    name: str = ""
    traffic: Annotated[_One | _Two, Field(discriminator="kind")] = _One(kind="one")
    needed: int


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ({"rates": 5}, "x: rates: expected a list (found 5)"),
        ({"rates": ["a"]}, "x: rates.0: expected a number (found 'a')"),
        ({"inner": 5}, "x: inner: expected keys and values (found 5)"),
        ({"inner": {"max_batch_size": "lots"}}, "x: inner.max_batch_size: expected a whole number (found 'lots')"),
        ({"is_open": "perhaps"}, "x: is_open: expected true or false (found 'perhaps')"),
        ({"name": ["a"]}, "x: name: expected text (found ['a'])"),
        ({"names": {"p96": 1}}, "x: names.p96: must be 'p95' or 'p99' (found 'p96')"),
        ({"share": 2}, "x: share: must be less than or equal to 1 (found 2)"),
        ({"label": "My Chat"}, "x: label: must match the pattern '^[a-z-]+$' (found 'My Chat')"),
        ({"some": []}, "x: some: expected at least 1 entry (found [])"),
        ({"name": None}, "x: name: expected text (found nothing)"),
        ({"name": True}, "x: name: expected text (found true)"),
        ({"name": date(2026, 11, 30)}, "x: name: expected text (found 2026-11-30)"),
        ({"traffic": {}}, "x: traffic: missing key 'kind', which names its kind"),
        ({"traffic": {"kind": "three"}}, "x: traffic: 'kind' must be one of 'one', 'two', not 'three'"),
    ],
)
def test_a_wrong_value_is_described_in_words_of_yaml(value: dict[str, object], complaint: str) -> None:
    """A list and a whole number, not a tuple and an integer that a string cannot be parsed as."""
    with pytest.raises(UserError) as caught:
        validate({"needed": 1, **value}, Typed, where="x")
    assert caught.value.message == complaint


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ({"traffic": {"kind": "ones"}}, "did you mean 'one'?"),
        ({"names": {"p955": 1}}, "did you mean 'p95'?"),
        ({"traffic": {"kind": "three"}}, None),
    ],
)
def test_a_value_near_an_allowed_one_is_suggested(value: dict[str, object], hint: str | None) -> None:
    """As a key near a known one is."""
    with pytest.raises(UserError) as caught:
        validate({"needed": 1, **value}, Typed, where="x")
    assert caught.value.hint == hint


def test_a_misspelled_key_is_reported_before_the_one_it_leaves_missing() -> None:
    """The reader sees the typo, not that the right name is absent."""
    with pytest.raises(UserError, match="unknown key 'unneeded'"):
        validate({"unneeded": 1}, Typed, where="x")
