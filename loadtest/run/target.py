"""The server of a run: address, protocol, model, tokenizer and metrics pages."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from engines.console import OPENAI_KEY, progress
from engines.errors import MissingError, UserError
from engines.names import TOKENIZER_FILE
from loadtest.client import (
    ENGINE_MODEL,
    PROTOCOLS,
    Endpoint,
    ProtocolName,
    ServedModel,
    default_model,
    discover_protocol,
    endpoint_of,
    served_models,
    server_facts,
)
from loadtest.client.protocols import key_in
from loadtest.results import ServerFacts
from loadtest.run.sampler import (
    gpu_of,
    kv_block_tokens,
    metrics_url,
    page_of,
    power_readings,
    read_metrics,
    require_page,
)
from loadtest.run.tokenizer import FoundTokenizer, find_tokenizer, of_earlier_runs

POWER_HINT = "give the metrics page of a DCGM exporter (port 9400) or of Triton (port 8002)"


@dataclass(frozen=True, slots=True)
class TargetOptions:
    """The target server, as given on the command line.

    Attributes:
        protocol: None: detected.
        model: Model to load; None: the scenario's, or the only one served.
        tokenizer: File or folder of the engine's tokenizer; None: found by `find_tokenizer`.
        metrics_url: Metrics pages; empty: the port beside the server's.
        power_url: Pages with the power of the GPUs `power_gpu`, indices or UUIDs; empty: of every GPU.
        is_quiet: Do not print detected settings, because an earlier run did.
        api_key_env: Environment variable with an OpenAI key.
        earlier_runs: Folder with runs whose tokenizer may be used again; None: there is none.
    """

    url: str
    protocol: ProtocolName | None = None
    model: str | None = None
    tokenizer: Path | None = None
    metrics_url: tuple[str, ...] = ()
    power_url: tuple[str, ...] = ()
    power_gpu: tuple[str, ...] = ()
    api_key_env: str = OPENAI_KEY
    ca_file: Path | None = None
    insecure: bool = False
    is_quiet: bool = False
    earlier_runs: Path | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """The server of a run.

    Attributes:
        metrics_urls: Its metrics pages; empty if they cannot be read.
        power_urls: Further pages, of which the power of `power_gpus` is read.
        tokenizer: File of the engine's tokenizer.
    """

    endpoint: Endpoint
    facts: ServerFacts
    metrics_urls: tuple[str, ...]
    tokenizer: Path
    power_urls: tuple[str, ...] = ()
    power_gpus: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Label of every figure of a run against it."""
        return f"emulated, time scale x{self.facts.time_scale:g}" if self.facts.emulated else "measured"


_Missing = tuple[str, str, str]  # missing item, what was tried, the flag that sets it


def target_of(options: TargetOptions, model: str) -> Target:
    """Determine the server's protocol, model, tokenizer and metrics pages.

    Values on the command line are used unchanged; everything else is detected and printed.

    Args:
        model: The scenario's; if it is the default and none is given, the server's default model is used.

    Raises:
        MissingError: No server answers, it does not serve the model, or something was not found; the message names
            everything that is missing.
        UserError: The server speaks another protocol than the given one.
    """
    stated = options.model or (model if model != ENGINE_MODEL else None)
    endpoint, missing = _endpoint(options)
    if endpoint is None:
        unknown = [] if stated is not None else [("model", "not given", "--model NAME")]
        unknown += [] if options.tokenizer is not None else [("tokenizer", "not given", "--tokenizer FILE")]
        raise _missing(options.url, [*missing, *unknown])
    key = key_in(os.environ, endpoint.api_key_env) if endpoint.is_openai else None
    served: list[ServedModel] = []
    if stated is None or options.tokenizer is None:
        served = served_models(endpoint, key)
        if endpoint.is_openai and not served:
            _require_openai(options)
    name = stated or default_model(served, is_openai=endpoint.is_openai)
    if name is None and not served and not endpoint.is_openai:
        name = model  # Triton's answer about the model itself states the problem
    if name is None:
        raise _missing(options.url, _no_model(options, served))
    facts, named = server_facts(endpoint, options.url, name, key)
    endpoint = endpoint.model_copy(update={"llm_api": facts.llm_api})
    root = next((each.root for each in served if each.name == name), "")
    runs = options.earlier_runs
    earlier = (lambda: of_earlier_runs(facts, runs)) if runs is not None else tuple
    found = _given(options.tokenizer) or find_tokenizer(named, name, root, earlier=earlier)
    if found.path is None:
        tried = "; ".join(found.tried) or "the server names none, and the model is unknown"
        raise _missing(options.url, [("no tokenizer", tried, "--tokenizer FILE")])
    say = (lambda _: None) if options.is_quiet else progress
    say(f"server: {options.url}, {facts.protocol}, model {facts.model}")
    say(f"tokenizer: {found.path} ({found.origin})")
    return _with_metrics(options, Target(endpoint, facts, (), found.path), say)


def _no_model(options: TargetOptions, served: Sequence[ServedModel]) -> list[_Missing]:
    """Return what is missing if a server has no model, or several, to choose from."""
    names = ", ".join(each.name for each in served[:8])
    missing = [("choose a model" if names else "no model", names or "the server lists none", "--model NAME")]
    if options.tokenizer is None:
        missing.append(("no tokenizer", "it depends on the model", "--tokenizer FILE"))
    return missing


def _endpoint(options: TargetOptions) -> tuple[Endpoint | None, list[_Missing]]:
    """Return the server's endpoint; None, and what was tried, if its protocol was not detected.

    Raises:
        MissingError: The server accepts no connections.
    """
    protocol = options.protocol
    if protocol is None:
        found = discover_protocol(options.url, ca_file=options.ca_file, insecure=options.insecure)
        if not found.is_reachable:
            raise MissingError(
                f"no server answers at {options.url}: {'; '.join(found.tried)}",
                hint="start the server (serve-repo), or check --url",
            )
        if found.protocol is None and urlsplit(options.url).path.strip("/"):
            raise MissingError(
                f"{options.url}: no known API below this path ({'; '.join(found.tried)})",
                hint="give the URL without the path, or with a gateway's own prefix only",
            )
        if found.protocol is None:
            return None, [("unknown protocol", "; ".join(found.tried), f"--protocol {'|'.join(PROTOCOLS)}")]
        protocol = found.protocol
    endpoint = endpoint_of(
        options.url, protocol, ca_file=options.ca_file, insecure=options.insecure, api_key_env=options.api_key_env
    )
    return endpoint, []


def _require_openai(options: TargetOptions) -> None:
    """Refuse a stated OpenAI protocol of a server that lists no models by it and answers as Triton does.

    Raises:
        UserError: It does.
    """
    if options.protocol is None:
        return
    found = discover_protocol(options.url, ca_file=options.ca_file, insecure=options.insecure)
    if found.protocol is not None and not found.protocol.startswith("openai"):
        raise UserError(
            f"{options.url} answers as {found.protocol}, not as {options.protocol}",
            hint="omit --protocol, or give the URL of the OpenAI front (serve-repo --openai prints it)",
        )


def _given(given: Path | None) -> FoundTokenizer | None:
    """Return the tokenizer given on the command line; None if there is none.

    Raises:
        MissingError: The given one does not exist.
    """
    if given is None:
        return None
    file = given / TOKENIZER_FILE if given.is_dir() else given
    if not file.is_file():
        raise MissingError(
            f"{file}: the tokenizer does not exist on this machine",
            hint="give the engine's tokenizer.json with --tokenizer FILE",
        )
    return FoundTokenizer(file, "--tokenizer")


def _with_metrics(options: TargetOptions, target: Target, say: Callable[[str], object]) -> Target:
    """Add the metrics pages.

    Raises:
        MissingError: A given page cannot be read, or one that was given for its power reports none.
    """
    facts = target.facts
    for page in options.metrics_url:
        require_page(page_of(page, target.endpoint))
    beside = None if options.metrics_url else metrics_url(target.endpoint)
    pages = tuple(dict.fromkeys(options.metrics_url)) or ((beside,) if beside else ())
    none = "no page with batch sizes found; they come from the client alone (--metrics-url URL)"
    say(f"metrics: {', '.join(pages) or none}")
    if pages and facts.perf_metrics:
        facts = facts.model_copy(
            update={"kv_block_tokens": kv_block_tokens(read_metrics(page_of(pages[0], target.endpoint)))}
        )
    for url in options.power_url:
        if not (seen := power_readings(url, options.power_gpu)):
            which = f" of GPU {', '.join(options.power_gpu)}" if options.power_gpu else ""
            raise MissingError(f"{url}: no power or energy{which} is reported there", hint=POWER_HINT)
        say(f"power: {url}, {len({gpu_of(series) for series in seen})} GPUs")
    return replace(
        target,
        facts=facts,
        metrics_urls=pages,
        power_urls=tuple(options.power_url),
        power_gpus=tuple(options.power_gpu),
    )


def _missing(url: str, missing: list[_Missing]) -> MissingError:
    """Return one error for everything missing: the item, what was tried, and the flag that sets it."""
    text = "; ".join(f"{what} ({tried})" for what, tried, _ in missing)
    return MissingError(f"{url}: {text}", hint=" ".join(flag for _, _, flag in missing))
