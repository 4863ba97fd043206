"""What the documents tell people to type."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import click
import pytest
from cogapp import Cog

ROOT = Path(__file__).parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
DOCUMENTS = [ROOT / "README.md", ROOT / "Dockerfile", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
DOCUMENTS.append(ROOT / "docs" / "demo.sh")
CALL = re.compile(rf"\b({'|'.join(SCRIPTS)})((?:\s+[^\s|&;`#]+)*)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
LINKING = [*(path for path in DOCUMENTS if path.suffix == ".md"), *(ROOT / "validation").glob("*.md")]


def _calls() -> list[tuple[str, str, str]]:
    """Return (document, command, flag) for every flag of ours that a document uses."""
    found = []
    for document in DOCUMENTS:
        text = re.sub(r"\\\n(?:#\s*)?", " ", document.read_text())
        for line in text.splitlines():
            for command, rest in CALL.findall(line):
                flags = re.findall(r"(?<=\s)--[a-z][a-z-]*", rest)
                found += [(str(document.relative_to(ROOT)), command, flag) for flag in flags]
    return sorted(set(found))


@pytest.mark.parametrize(("document", "command", "flag"), _calls())
def test_every_flag_in_a_document_exists(document: str, command: str, flag: str) -> None:
    """A command line that a document shows can be typed as it stands."""
    module, function = SCRIPTS[command].split(":")
    options = getattr(importlib.import_module(module), function).params
    known = {name for option in options if isinstance(option, click.Option) for name in option.opts}
    assert flag in known | {"--help"}, document


@pytest.mark.parametrize("document", LINKING, ids=lambda path: path.name)
def test_every_link_in_a_document_leads_somewhere(document: Path) -> None:
    """Files that a page links to are there."""
    for target in LINK.findall(document.read_text()):
        assert (document.parent / target).exists(), target


def test_the_documents_show_enough_to_be_tested() -> None:
    """The pattern that finds commands finds them."""
    assert {command for _, command, _ in _calls()} >= {
        "build-engine",
        "build-repo",
        "serve-repo",
        "run-load",
        "report-load",
    }


GENERATED = [
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
    ROOT / "docs" / "explanation" / "what-was-verified.md",
]


@pytest.mark.parametrize("document", GENERATED, ids=lambda path: path.name)
def test_generated_tables_are_what_the_code_says(document: Path) -> None:
    """`make docs` would change nothing: every flag, precision, GPU and recipe key stands as the code has it."""
    assert Cog().main(["cog", "--check", str(document)]) == 0, "run: make docs"


@pytest.mark.parametrize("document", GENERATED, ids=lambda path: path.name)
def test_tables_have_readable_types(document: Path) -> None:
    """`int or null`, and not how Python prints an annotation."""
    assert not re.findall(r"^\|.*(?:FieldInfo|Annotated\[|Optional\[|typing\.).*$", document.read_text(), re.MULTILINE)
