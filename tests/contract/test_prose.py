"""Documents, messages, docstrings and comments contain none of the phrases that prose_rules.yaml refuses."""

from __future__ import annotations

import ast
import importlib
import re
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import click
import pytest

from tests.facts import read_facts

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
ERRORS = {"UserError", "ToolError", "MissingError", "TargetMissedError"}
PAGES = (
    "engines/cli",
    "triton_repo/cli",
    "loadtest/cli",
    "loadtest/knee",
    "loadtest/report",
    "loadtest/capacity/output",
)
TEMPLATES = ("loadtest/**/*.html", "loadtest/**/*.html.j2")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = sorted(path for package in ("engines", "triton_repo", "loadtest") for path in (ROOT / package).rglob("*.py"))


@dataclass(frozen=True)
class Rule:
    """A phrase that is refused, and what to write instead."""

    refuse: re.Pattern[str]
    write: str
    example: str
    fine: str | None
    outside: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """Text that a person reads: `where` is a file or a command, `line` the first line of it."""

    where: str
    line: int
    text: str


def _rules() -> list[Rule]:
    """Return the rules of prose_rules.yaml."""
    entries = read_facts(Path(__file__).with_name("prose_rules.yaml"))
    return [
        Rule(
            refuse=re.compile(entry["refuse"].replace(" ", r"[ \t]*[ \t\n][ \t]*"), re.IGNORECASE | re.MULTILINE),
            write=entry["write"],
            example=entry["example"],
            fine=entry.get("fine"),
            outside=tuple(entry.get("except", ())),
        )
        for entry in entries
    ]


RULES = _rules()


def _findings(text: Text) -> list[str]:
    """Return one line for each refused phrase in a text."""
    return [
        f"{text.where}:{text.line + text.text.count(chr(10), 0, match.start())}: '{match[0]}': write: {rule.write}"
        for rule in RULES
        if not any(fnmatch(text.where, pattern) for pattern in rule.outside)
        for match in rule.refuse.finditer(text.text)
    ]


def _blank(match: re.Match[str]) -> str:
    """Return as many dots and line breaks as the match has: line numbers stay right."""
    return re.sub(r"[^\n]", "·", match[0])


def _prose(document: str) -> str:
    """Return a Markdown document without its code, links' targets and comments."""
    for pattern in (r"<!--.*?-->", r"^```.*?^```", r"``.+?``", r"`[^`\n]*`", r"(?<=\])\([^)\s]*\)"):
        document = re.sub(pattern, _blank, document, flags=re.DOTALL | re.MULTILINE)
    return document


def _string(node: ast.AST) -> str | None:
    """Return a string literal's text, or an f-string's with a dot for each value."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_string(part) or "·" for part in node.values)
    return None


def _strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, text) for every string below a node but docstrings; f-strings whole."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        text = _string(child)
        if text is None:
            yield from _strings(child)
        else:
            yield getattr(child, "lineno", 0), text


def _error_texts(path: Path) -> Iterator[Text]:
    """Yield the messages and hints that a module raises."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ERRORS:
            for line, text in _strings(node):
                yield Text(str(path.relative_to(ROOT)), line, text)


def _page_texts() -> Iterator[Text]:
    """Yield the strings of charts, tables, pages and progress lines, and the pages' templates."""
    for path in SOURCES:
        where = str(path.relative_to(ROOT))
        if where.startswith(PAGES):
            for line, text in _strings(ast.parse(path.read_text())):
                if " " in text.strip():
                    yield Text(where, line, text)
    for pattern in TEMPLATES:
        for path in sorted(ROOT.glob(pattern)):
            code = re.sub(r"\{#.*?#\}|<(style|script)\b.*?</\1>|<[^>]*>", _blank, path.read_text(), flags=re.DOTALL)
            yield Text(str(path.relative_to(ROOT)), 1, code)


def _docstrings(path: Path) -> Iterator[Text]:
    """Yield the docstrings of a module, its classes, functions and attributes, without their code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield Text(str(path.relative_to(ROOT)), node.lineno, _prose(node.value.value))


def _comments(path: Path) -> Iterator[Text]:
    """Yield the comments of a module, consecutive lines joined."""
    lines: list[str] = []
    first = 0
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            if not lines or token.start[0] != first + len(lines):
                if lines:
                    yield Text(str(path.relative_to(ROOT)), first, "\n".join(lines))
                lines, first = [], token.start[0]
            lines.append(token.string.lstrip("# "))
    if lines:
        yield Text(str(path.relative_to(ROOT)), first, "\n".join(lines))


def _help_texts(command: str) -> Iterator[Text]:
    """Yield the description of a command and of each of its options."""
    module, function = SCRIPTS[command].split(":")
    shown = getattr(importlib.import_module(module), function)
    yield Text(command, 1, shown.help or "")
    for option in shown.params:
        if isinstance(option, click.Option):
            yield Text(f"{command} {option.opts[-1]}", 1, option.help or "")


def _fail(texts: Iterator[Text] | list[Text]) -> None:
    """Fail with every finding in the texts."""
    findings = [finding for text in texts for finding in _findings(text)]
    assert not findings, "\n".join(findings)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_are_in_standard_english(document: Path) -> None:
    """A page holds no refused phrase outside its code."""
    _fail([Text(str(document.relative_to(ROOT)), 1, _prose(document.read_text()))])


@pytest.mark.parametrize("command", SCRIPTS)
def test_help_is_in_standard_english(command: str) -> None:
    """A command's --help holds no refused phrase."""
    _fail(_help_texts(command))


def test_errors_and_hints_are_in_standard_english() -> None:
    """No error message and no hint holds a refused phrase."""
    texts = [text for path in SOURCES for text in _error_texts(path)]
    assert len(texts) > 500  # the search finds them: there are some 370 calls
    _fail(texts)


def test_pages_charts_and_tables_are_in_standard_english() -> None:
    """No title, label, table head or sentence of a page holds a refused phrase."""
    texts = list(_page_texts())
    assert len(texts) > 300
    _fail(texts)


def test_docstrings_and_comments_are_in_standard_english() -> None:
    """No docstring and no comment of the source contains a refused phrase."""
    texts = [text for path in SOURCES for read in (_docstrings, _comments) for text in read(path)]
    assert len(texts) > 3000
    _fail(texts)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.refuse.pattern[:40])
def test_each_rule_refuses_its_example(rule: Rule) -> None:
    """A rule finds the phrase it is for, also across a line break, and leaves a similar good sentence alone."""
    assert rule.refuse.search(rule.example)
    assert rule.refuse.search(rule.example.replace(" ", "\n"))
    assert rule.fine is None or not rule.refuse.search(rule.fine)


def test_a_bad_sentence_is_found_with_its_line() -> None:
    """A finding names the file, the line, the phrase and what to write; code is not searched."""
    page = "# Title\n\n`what it is of`\n\n```\nin doubt\n```\n\nThe run's figures are in\ndoubt.\n"
    assert _findings(Text("a.md", 1, _prose(page))) == ["a.md:9: 'in\ndoubt': write: not valid; validity issue"]


def test_strings_of_errors_are_found() -> None:
    """Messages and hints are read from the calls, with f-strings whole."""
    tree = ast.parse("raise UserError(f'{path}: the run is {x} anew', hint='say what' if x else 'told')")
    assert [text for _, text in _strings(tree)] == ["·: the run is · anew", "say what", "told"]


def test_docstrings_and_comments_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are read with their lines; code in backquotes is not searched."""
    monkeypatch.setattr(
        "tests.contract.test_prose.ROOT" if __name__.startswith("tests.") else f"{__name__}.ROOT", tmp_path
    )
    module = tmp_path / "module.py"
    module.write_text('"""The figures are in\\ndoubt, `in doubt`."""\n\nONE = 1  # held\n# to it\n')
    assert [text.line for text in _docstrings(module)] == [1]
    assert len([finding for text in _docstrings(module) for finding in _findings(text)]) == 1
    assert [finding.split("'")[1] for text in _comments(module) for finding in _findings(text)] == ["held\nto"]
