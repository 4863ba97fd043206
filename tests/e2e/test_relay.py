"""A relayed engine on the real Triton: token ids out, token ids back, figures that are measured."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server, command, start, succeed

from tests.fake_completions import MODEL, CompletionsStandIn, serving

pytestmark = pytest.mark.e2e
PROMPT = "The capital of France is"


@pytest.fixture(scope="module")
def relayed(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve a relay to the stand-in."""
    repository = tmp_path_factory.mktemp("relayed") / "repository"
    with serving() as url:
        printed = succeed("build-repo", engine, "--engine-url", url, "--out", repository)
        assert f"what is measured is {MODEL} at {url}" in printed
        running = start(repository)
        yield running
        succeed("serve-repo", repository, "--stop")


def test_prompts_go_as_token_ids_and_tokens_come_back_as_text(relayed: Server) -> None:
    """The stand-in counts each token of the prompt up by one; Triton's models encode and decode around it."""
    tokenizer = Tokenizer.from_file(str(relayed.repository / "preprocessing/1/tokenizer/tokenizer.json"))
    ids = tokenizer.encode(PROMPT).ids
    CompletionsStandIn.asked.clear()
    body = json.dumps({"text_input": PROMPT, "max_tokens": 4, "exclude_input_in_output": True}).encode()
    with urllib.request.urlopen(f"{relayed.url}/v2/models/ensemble/generate", body, timeout=30) as reply:
        text = json.load(reply)["text_output"]
    [asked] = CompletionsStandIn.asked
    assert (asked["prompt"], asked["max_tokens"], asked["model"]) == (ids, 4, MODEL)
    assert text == tokenizer.decode([token + 1 for token in ids[:4]])


def test_a_load_through_the_relay_is_measured(relayed: Server, tmp_path: Path) -> None:
    """Not emulated: the tokens come from another server."""
    load = ["--isl", 16, "--osl", 8, "--concurrency", 2, "--requests", 8]
    succeed("run-load", "--url", relayed.url, *load, "--out", tmp_path / "run")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["kind"] == "measured"
    assert {asked["max_tokens"] for asked in CompletionsStandIn.asked} >= {8}


def test_a_relay_is_not_deployed(relayed: Server, tmp_path: Path) -> None:
    """Its server is on this machine alone."""
    done = command("build-deployment", relayed.repository, "--out", tmp_path / "deployment")
    assert done.returncode == 2
    assert "it relays requests to a server on this machine" in done.stderr


def test_a_server_that_is_not_there_is_named(engine: Path, tmp_path: Path) -> None:
    """Before anything is written."""
    done = command("build-repo", engine, "--engine-url", "http://127.0.0.1:9", "--out", tmp_path / "repository")
    assert done.returncode == 1
    assert "http://127.0.0.1:9/v1/models" in done.stderr
    assert not (tmp_path / "repository").exists()
