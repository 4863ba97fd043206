"""The server of a run: address, protocol, model, tokenizer and metrics pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from engines.console import progress
from engines.errors import MissingError
from loadtest.client import (
    ENGINE_MODEL,
    OPENAI_KEY,
    Endpoint,
    ServedModel,
    default_model,
    discover_protocol,
    endpoint_of,
    served_models,
    server_facts,
)
from loadtest.client.protocols import key_in
from loadtest.results import ServerFacts
from loadtest.run.sampler import kv_block_tokens, metrics_url, read_metrics
from loadtest.run.tokenizer import TOKENIZER_FILE, FoundTokenizer, find_tokenizer
from loadtest.scenario import ProtocolName


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """The target server, as given on the command line.

    Attributes:
        protocol: None: found by asking the server.
        model: The model to load, where the command line names one; None: the scenario's, or the only one served.
        tokenizer: File or folder of the engine's tokenizer; None: found, see `find_tokenizer`.
        metrics_url: Pages of metrics; empty: the port beside the server's.
        is_quiet: Do not print what was found: it was, for another run.
        api_key_env: Environment variable that holds an OpenAI key.
    """

    url: str
    protocol: ProtocolName | None = None
    model: str | None = None
    tokenizer: Path | None = None
    metrics_url: tuple[str, ...] = ()
    api_key_env: str = OPENAI_KEY
    ca_file: Path | None = None
    insecure: bool = False
    is_quiet: bool = False


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


_Missing = tuple[str, str, str]  # what, what was tried, the flag that states it


def target_of(asked: TargetOptions, model: str) -> Target:
    """Find out what the server is, which model to load, whose tokens to count and where the metrics are.

    What the command line states is taken as it is; everything else is found and printed.

    Args:
        model: The scenario's; where that is the default, and no model is asked for, the server's only one.

    Raises:
        MissingError: No server answers, it does not serve the model, or something was not found: all that is missing
            is named at once.
    """
    stated = asked.model or (model if model != ENGINE_MODEL else None)
    endpoint, missing = _endpoint(asked)
    if endpoint is None:
        unknown = [] if stated is not None else [("model", "not given", "--model NAME")]
        unknown += [] if asked.tokenizer is not None else [("tokenizer", "not given", "--tokenizer FILE")]
        raise _missing(asked.url, [*missing, *unknown])
    key = key_in(os.environ, endpoint.api_key_env) if endpoint.is_openai else None
    served = [] if stated is not None and asked.tokenizer is not None else served_models(endpoint, key)
    name = stated or default_model(served, is_openai=endpoint.is_openai)
    if name is None and not served and not endpoint.is_openai:
        name = model  # Triton's answer on the model itself says what is wrong
    if name is None:
        raise _missing(asked.url, _no_model(asked, served))
    facts, named = server_facts(endpoint, asked.url, name, key)
    endpoint = endpoint.model_copy(update={"llm_api": facts.llm_api})
    found = _tokenizer(asked.tokenizer, named, name, next((each.root for each in served if each.name == name), ""))
    if found.path is None:
        tried = "; ".join(found.tried) or "the server names none, and the model is unknown"
        raise _missing(asked.url, [("tokenizer", tried, "--tokenizer FILE")])
    say = (lambda _: None) if asked.is_quiet else progress
    say(f"server: {asked.url}, {facts.protocol}, model {facts.model}")
    say(f"tokenizer: {found.path} ({found.origin})")
    return _with_metrics(asked, Target(endpoint, facts, (), found.path), say)


def _no_model(asked: TargetOptions, served: Sequence[ServedModel]) -> list[_Missing]:
    """Return what is missing where a server has no model, or several, to choose from."""
    names = ", ".join(each.name for each in served[:8]) or "the server lists none"
    missing = [("model", names, "--model NAME")]
    if asked.tokenizer is None:
        missing.append(("tokenizer", "it depends on the model", "--tokenizer FILE"))
    return missing


def _endpoint(asked: TargetOptions) -> tuple[Endpoint | None, list[_Missing]]:
    """Return the server's address with its protocol; None, and what was tried, where that cannot be found.

    Raises:
        MissingError: Nothing accepts a connection there.
    """
    protocol = asked.protocol
    if protocol is None:
        found = discover_protocol(asked.url, ca_file=asked.ca_file, insecure=asked.insecure)
        if not found.is_reachable:
            raise MissingError(
                f"no server answers at {asked.url}: {'; '.join(found.tried)}",
                hint="start the server (serve-repo), or check --url",
            )
        if found.protocol is None:
            return None, [("protocol", "; ".join(found.tried), f"--protocol {'|'.join(get_args(ProtocolName))}")]
        protocol = found.protocol
    endpoint = endpoint_of(
        asked.url, protocol, ca_file=asked.ca_file, insecure=asked.insecure, api_key_env=asked.api_key_env
    )
    return endpoint, []


def _tokenizer(asked: Path | None, named: str | None, model: str, root: str) -> FoundTokenizer:
    """Return the tokenizer asked for, or one found on this machine.

    Raises:
        MissingError: The one asked for is not there.
    """
    if asked is None:
        return find_tokenizer(named, model, root)
    file = asked / TOKENIZER_FILE if asked.is_dir() else asked
    if not file.is_file():
        raise MissingError(
            f"{file}: the tokenizer does not exist on this machine",
            hint="give the engine's tokenizer.json with --tokenizer FILE",
        )
    return FoundTokenizer(file, "--tokenizer")


def _with_metrics(asked: TargetOptions, target: Target, say: Callable[[str], object]) -> Target:
    """Add the metrics pages."""
    facts = target.facts
    beside = None if asked.metrics_url else metrics_url(target.endpoint)
    pages = tuple(dict.fromkeys(asked.metrics_url)) or ((beside,) if beside else ())
    say(f"metrics: {', '.join(pages) or 'no page found; batch sizes come from the client alone (--metrics-url URL)'}")
    if pages and facts.perf_metrics:
        facts = facts.model_copy(update={"kv_block_tokens": kv_block_tokens(read_metrics(pages[0]))})
    return replace(target, facts=facts, metrics_urls=pages)


def _missing(url: str, missing: list[_Missing]) -> MissingError:
    """Return one error that names all that is missing: what, what was tried, and the flag that states it."""
    said = "; ".join(f"{what} ({tried})" for what, tried, _ in missing)
    return MissingError(f"{url}: not found: {said}", hint=" ".join(flag for _, _, flag in missing))
