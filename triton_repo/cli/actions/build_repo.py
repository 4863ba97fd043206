"""The implementation of `build-repo`."""

from __future__ import annotations

import difflib
import json
import urllib.parse
from pathlib import Path
from typing import Any

from engines import console
from engines.build import choices_of
from engines.errors import MissingError, UserError
from engines.files import load_yaml, made_by, read_yaml, to_json, validate
from engines.manifest import EngineManifest
from engines.outputs import paths_named, refuse_existing
from engines.yaml_text import parse_yaml
from triton_repo.models.completions import CompletionsServer, RelayError
from triton_repo.repository import checked_tokenizer, render_repository, resolve_for
from triton_repo.settings import (
    Choice,
    Given,
    Relay,
    RepositoryManifest,
    Resolved,
    ServingSettings,
    all_settings,
    given_in,
    merged_over,
    shown,
)

FLAG_NAMES = {
    "max_queue_size": "queue.max_queue_size",
    "bls_instances": "text.bls_instances",
    "time_scale": "emulation.time_scale",
}


def run(engine_dir: Path, **flags: Any) -> None:
    """Generate the Triton model repository of an engine, and check it."""
    out = flags["out"] or Path("artifacts/repositories") / engine_dir.name
    settings, given = _serving_settings(flags)
    relay_url = _relay_url(flags["engine_url"], flags["engine_model"])
    if flags["explain"] or flags["dry_run"]:  # neither asks the server: it need not run
        explained = resolve_for(engine_dir, settings, given, relay_url=relay_url, server=flags["server"])
        if flags["dry_run"] or flags["tokenizer"]:  # --explain also describes an engine without a tokenizer
            checked_tokenizer(engine_dir, explained[0], flags["tokenizer"], server=flags["server"])
        _explain(*explained, flags)
        return
    refuse_existing(
        out, force=flags["force"], inputs=[engine_dir, *paths_named({**flags, "served_at": None})], command="build-repo"
    )
    repository = render_repository(
        engine_dir,
        out,
        settings=settings,
        given=given,
        tokenizer=flags["tokenizer"],
        served_at=flags["served_at"],
        force=flags["force"],
        made_by=made_by(console.command_line("build-repo")),
        server=flags["server"],
        relay=None if relay_url is None else _relay(relay_url, flags["engine_model"]),
    )
    if flags["as_json"]:
        console.show(to_json(repository).rstrip())
        return
    _show_repository(repository)
    following = "serve-repo" if flags["served_at"] is None else "build-deployment"
    console.wrote(out, f"{following} {console.quoted(out)}")


def _relay_url(url: str | None, model: str | None) -> str | None:
    """Return the normalized URL of the server that requests are relayed to; None without one.

    Raises:
        UserError: It is malformed, or a model is named without it.
    """
    if url is None:
        if model is not None:
            raise UserError("--engine-model names a model at --engine-url, which is not given")
        return None
    malformed = UserError(f"--engine-url {url}: not of the form http://HOST:PORT")
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise malformed from error
    if parts.scheme != "http" or not parts.hostname or port == 0 or parts.path.strip("/"):
        raise malformed
    return f"http://{parts.netloc}"


def _relay(url: str, model: str | None) -> Relay:
    """Return the server and its model; it is asked for the model where none is named.

    Raises:
        MissingError: No server answers there.
        UserError: The server does not serve exactly one model.
    """
    if model is not None:
        return Relay(url=url, model=model)
    try:
        names = CompletionsServer(url).models()
    except RelayError as error:
        raise MissingError(str(error), hint="start the server, or give --engine-model NAME") from error
    if len(names) != 1:
        raise UserError(f"{url} serves {', '.join(names) or 'no model'}", hint="choose one with --engine-model NAME")
    return Relay(url=url, model=names[0])


def _serving_settings(flags: dict[str, Any]) -> tuple[ServingSettings, Given]:
    """Merge flags over the serving YAML over the defaults, and record the origin of each value."""
    document: dict[str, Any] = {}
    given: Given = {}
    if flags["serving"]:
        read_yaml(flags["serving"], ServingSettings)  # its errors name the file
        document = load_yaml(flags["serving"]) or {}
        given = dict.fromkeys(given_in(document), "serving.yaml")
    assigned = dict(_assignment(text) for text in flags["assignments"])
    typed = {name: f"--set {name}" for name in assigned}
    assigned |= {name: flags[flag] for flag, name in FLAG_NAMES.items() if flags[flag] is not None}
    typed |= {name: f"--{flag.replace('_', '-')}" for flag, name in FLAG_NAMES.items() if flags[flag] is not None}
    for name, value in assigned.items():
        merged_over(document, name, value)
        given[name] = "flag"
    return validate(document, ServingSettings, where="flags", flags=typed), given


def _assignment(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise UserError(f"--set {text}: expected NAME=VALUE", hint="for example --set queue.max_queue_size=256")
    known = [setting.name for setting in all_settings(ServingSettings())]
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        raise UserError(
            f"--set {text}: unknown setting '{name}'",
            hint=f"did you mean '{close[0]}'?" if close else "build-repo ENGINE_DIR --explain lists every setting",
        )
    return name, parse_yaml(value, where=f"--set {text}")


def _explain(engine: EngineManifest, resolved: Resolved, flags: dict[str, Any]) -> None:
    """Print the settings that the repository would be served with."""
    if flags["as_json"]:
        choices = [choice.model_dump(mode="json") for choice in resolved.choices]
        notices = [notice.model_dump() for notice in resolved.notices]
        console.show(json.dumps({"engine": engine.model.name, "settings": choices, "notices": notices}, indent=2))
        return
    if not flags["explain"]:
        console.show(to_json(resolved.settings).rstrip())
        return
    for choice in resolved.choices:
        console.say(_explained(choice))
    for notice in resolved.notices:
        console.say(f"notice: {notice.text}")


def _explained(choice: Choice) -> str:
    """Return two lines: name, value, origin and reason; then the target parameter and the upstream default."""
    reason = "without effect here" if choice.effect == "none" else choice.reason
    is_same = choice.origin == "upstream default" and choice.value is not None
    upstream = "" if is_same else f"upstream: {choice.upstream_default}"
    head = f"{choice.name} = {shown(choice.value)}  ({': '.join(part for part in (choice.origin, reason) if part)})"
    return f"{head}\n    -> {'; '.join(part for part in (choice.place, upstream) if part)}"


def _show_repository(repository: RepositoryManifest) -> None:
    engine = repository.engine
    console.show(f"{engine.title}: {repository.kind}")
    if repository.kind == "emulated":
        scale = repository.resolved.emulation.time_scale
        console.show(f"emulated, time scale x{scale:g}: every step takes {scale:g} times as long")
    if repository.relay is not None:
        console.show(f"relayed: what is measured is {repository.relay.model} at {repository.relay.url}, behind Triton")
    for notice in repository.notices:
        console.say(f"notice: {notice.text}")
    if repository.variant == "trtllm_serve":
        console.say(f"checked: every argument is one that TensorRT-LLM {choices_of(engine).version} knows; tokenizer")
        return
    console.say("checked: config.pbtxt against Triton's ModelConfig, tensors against TensorRT-LLM's, limits, tokenizer")
