"""The server of a run: where it is, what it said of itself, and whose tokens it counts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from engines.console import progress
from engines.errors import MissingError
from loadtest.client import OPENAI_KEY, Endpoint, endpoint_of, server_facts
from loadtest.client.protocols import key_in
from loadtest.results import ServerFacts
from loadtest.run.sampler import kv_block_tokens, metrics_url, read_metrics
from loadtest.scenario import ProtocolName


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """Which server a run is against, as the command line says it.

    Attributes:
        tokenizer: File or folder of the engine's tokenizer; None: the server's own.
        metrics_url: Pages of metrics; empty: the port beside the server's.
        api_key_env: Environment variable that holds an OpenAI key.
    """

    url: str
    protocol: ProtocolName
    tokenizer: Path | None = None
    metrics_url: tuple[str, ...] = ()
    api_key_env: str = OPENAI_KEY
    ca_file: Path | None = None
    insecure: bool = False


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


def target_of(asked: TargetOptions, model: str) -> Target:
    """Ask the server what it is; learn from it where its tokenizer and its metrics are."""
    endpoint = endpoint_of(
        asked.url, asked.protocol, ca_file=asked.ca_file, insecure=asked.insecure, api_key_env=asked.api_key_env
    )
    key = key_in(os.environ, endpoint.api_key_env) if endpoint.is_openai else None
    facts, tokenizer_folder = server_facts(endpoint, asked.url, model, key)
    endpoint = endpoint.model_copy(update={"llm_api": facts.llm_api})
    tokenizer = asked.tokenizer or (Path(tokenizer_folder) if tokenizer_folder else None)
    if tokenizer is None:
        raise MissingError(
            f"{asked.url}: the server does not name its tokenizer", hint="give the engine's with --tokenizer FILE"
        )
    if tokenizer.is_dir():
        tokenizer = tokenizer / "tokenizer.json"
    if not tokenizer.is_file():
        raise MissingError(
            f"{tokenizer}: the tokenizer does not exist on this machine",
            hint=("give the engine's with --tokenizer FILE"),
        )
    beside = None if asked.metrics_url else metrics_url(endpoint)
    found = tuple(dict.fromkeys(asked.metrics_url)) or ((beside,) if beside else ())
    if not found:
        progress("no metrics page beside this server: batch sizes will come from the client's records alone")
    elif facts.perf_metrics:
        facts = facts.model_copy(update={"kv_block_tokens": kv_block_tokens(read_metrics(found[0]))})
    return Target(endpoint, facts, found, tokenizer)
