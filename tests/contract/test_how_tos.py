"""What the pages tell people to type, in order: every folder that a command reads was made before."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest

from loadtest.client.protocols.base import Reply, RequestSpec, read_messages
from loadtest.traffic.prompts import Prompt

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", DOCS / "tutorial.md", *sorted((DOCS / "how-to").glob("*.md"))]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
FOLDER = re.compile(r"\bartifacts/[\w./$-]*\w")
WRITTEN = re.compile(r"(?:--(?:out|local-dir|junit)[ =]|> )(\S+)")
LINK = re.compile(r"\]\(([^)#:]*)[^)]*\)")
# Where commands write without --out; a plan and a deployment have the name of what they are made from.
DEFAULTS = {
    "run-load": "artifacts/run",
    "report-load": "artifacts/report",
    "find-knee": "artifacts/knee",
    "plan-capacity": "artifacts/capacity",
    "build-repo": "artifacts/repositories",
    "build-deployment": "artifacts/deployments",
    "check-gpu": "artifacts/gpu-check",
    "make real": "artifacts/real",
    "make demo": "artifacts/demo",
}


def _commands(page: Path) -> list[str]:
    """Return the command lines that a page prints, each on one line and without its comment."""
    blocks = [text for language, text in FENCED.findall(page.read_text()) if language in {"", "sh", "bash"}]
    lines = [line for text in blocks for line in re.sub(r"\\\n\s*", " ", text).splitlines()]
    return [part.strip() for line in lines for part in re.sub(r"(^|\s)#.*", "", line).split("&&") if part.strip()]


def _written_by(command: str) -> list[str]:
    """Return what a command writes; of a name with a shell variable, the part before it."""
    if "--worker " in command:
        return []  # the master writes the run
    named = WRITTEN.findall(command)
    return [path.split("$")[0].rstrip("/") for path in named] or [
        folder for start, folder in DEFAULTS.items() if command.startswith(start)
    ]


def _is_in(path: str, folders: list[str]) -> bool:
    """Whether a path is one of the folders, in one, or holds one."""
    return any(f"{path}/".startswith(f"{folder}/") or folder.startswith(f"{path}/") for folder in folders)


def _stated(page: Path) -> dict[str, list[Path]]:
    """Return the folders that a page's prose names beside links, each with the linked pages of its paragraphs."""
    found: dict[str, list[Path]] = {}
    for paragraph in FENCED.sub("", page.read_text()).split("\n\n"):
        links = [(page.parent / target).resolve() for target in LINK.findall(paragraph) if target.endswith(".md")]
        for folder in re.findall(r"`(artifacts/[\w./-]+)`", paragraph):
            found.setdefault(folder, []).extend(links)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_folder_that_a_page_reads_was_made_before(page: Path) -> None:
    """An earlier command of the page wrote it, or the page names it and links to a page whose commands write it."""
    stated = _stated(page)
    made: list[str] = []
    for command in _commands(page):
        writes = _written_by(command)
        for path in FOLDER.findall(WRITTEN.sub("", command)):
            sources = [each for folder, pages in stated.items() if _is_in(path, [folder]) for each in pages]
            elsewhere = [folder for source in sources for line in _commands(source) for folder in _written_by(line)]
            assert _is_in(path, [*made, *elsewhere]), f"{path} in: {command}"
        made += writes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_writes_under_artifacts_and_no_folder_twice(page: Path) -> None:
    """What a page writes is ignored by git, and a second command does not find the first one's folder in its way."""
    made: dict[str, str] = {}
    for command in _commands(page):
        for path in re.findall(r"--(?:out|local-dir) (\S+)", command):
            assert path.isupper() or path.startswith(("artifacts/", "/")), command
            assert path not in made or "--force" in command or command == made[path] or path.isupper(), command
            made[path] = command


ON_THIS_MACHINE = [page for page in PAGES[2:] if page.stem != "build-on-a-gpu"]


@pytest.mark.parametrize("page", ON_THIS_MACHINE, ids=lambda page: page.stem)
def test_a_how_to_finds_nothing_of_the_tutorial_in_its_way(page: Path) -> None:
    """After the tutorial, a how-to's commands work as printed: their output is elsewhere, or replaces the old one."""
    of_tutorial = {folder for command in _commands(DOCS / "tutorial.md") for folder in _written_by(command)}
    for command in _commands(page):
        assert "--force" in command or not of_tutorial & set(_written_by(command)), command


def test_the_protocol_of_the_how_to_reads_a_reply(tmp_path: Path) -> None:
    """The example of add-a-protocol is a whole file that works."""
    [code] = [
        text
        for language, text in FENCED.findall((DOCS / "how-to" / "add-a-protocol.md").read_text())
        if language == "python"
    ]
    (tmp_path / "plain.py").write_text(code)
    protocol = runpy.run_path(str(tmp_path / "plain.py"))["Plain"]("m", base_path="/b")
    body = json.loads(protocol.body(RequestSpec("1", Prompt(tokens=1, ids=(7,), text="hi"), 5)))
    assert (protocol.path, body["inputs"], body["parameters"]) == ("/b/generate", "hi", {"max_new_tokens": 5})
    reply = Reply()
    messages = [json.dumps({"token": {"text": text}}).encode() for text in (" a", "", " b")]
    read_messages(protocol, messages, (1.0, 2.0, 3.0), reply)
    assert list(reply.times_s) == [1.0, 3.0]
