"""The server of a run: where it is, what it said of itself, and whose tokens it counts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.console import progress
from engines.errors import MissingError
from loadtest.client import Endpoint, endpoint_of, server_facts
from loadtest.client.protocols import key_in
from loadtest.results import ServerFacts
from loadtest.run.sampler import kv_block_tokens, metrics_url, read_metrics


@dataclass(frozen=True, slots=True)
class Target:
    """The server of a run.

    Attributes:
        metrics_urls: Pages of its metrics; empty where they cannot be read.
        tokenizer: File of the engine's tokenizer.
    """

    endpoint: Endpoint
    facts: ServerFacts
    metrics_urls: tuple[str, ...]
    tokenizer: Path

    @property
    def label(self) -> str:
        """What every figure of a run against it is marked with."""
        return f"emulated, time scale x{self.facts.time_scale:g}" if self.facts.emulated else "measured"


def target_of(flags: dict[str, Any], model: str) -> Target:
    """Ask the server what it is; learn from it where its tokenizer and its metrics are."""
    names = ("ca_file", "insecure", "api_key_env")
    endpoint = endpoint_of(flags["url"], flags["protocol"], **{name: flags[name] for name in names})
    key = key_in(os.environ, endpoint.api_key_env) if endpoint.is_openai else None
    facts, tokenizer_folder = server_facts(endpoint, flags["url"], model, key)
    endpoint = endpoint.model_copy(update={"llm_api": facts.llm_api})
    tokenizer = flags["tokenizer"] or (Path(tokenizer_folder) if tokenizer_folder else None)
    if tokenizer is None:
        raise MissingError(f"{flags['url']}: the server names no tokenizer", hint="--tokenizer FILE gives the engine's")
    if tokenizer.is_dir():
        tokenizer = tokenizer / "tokenizer.json"
    if not tokenizer.is_file():
        raise MissingError(
            f"{tokenizer}: no such tokenizer on this machine", hint="--tokenizer FILE gives the engine's"
        )
    beside = None if flags["metrics_url"] else metrics_url(endpoint)
    found = tuple(dict.fromkeys(flags["metrics_url"] or ())) or ((beside,) if beside else ())
    if not found:
        progress("no metrics page beside this server: batch sizes will come from the client's records alone")
    elif facts.perf_metrics:
        facts = facts.model_copy(update={"kv_block_tokens": kv_block_tokens(read_metrics(found[0]))})
    return Target(endpoint, facts, found, tokenizer)
