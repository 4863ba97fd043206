"""The command that loads a server: run-load."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, get_args

import click

from engines.console import Command, command_line, common_flags, progress, show, writing_flags, wrote
from engines.errors import MissingError, TargetMissedError
from engines.files import made_by, source_of, to_json
from loadtest.asked import scenario_of
from loadtest.dialects.endpoint import OPENAI_KEY, endpoint_of
from loadtest.facts import server_facts
from loadtest.monitor import metrics_url
from loadtest.runner import Target, run_scenario
from loadtest.scenario import Protocol, Scenario

RUN_OUT = Path("artifacts/run")


@click.command("run-load", cls=Command, epilog=f"Writes {RUN_OUT} unless --out is given.")
@click.option("--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario: sweep, quick, or a YAML file.")
@click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="The server: http[s]://HOST:PORT, or grpc[s]://."
)
@click.option(
    "--protocol",
    type=click.Choice(get_args(Protocol)),
    default="triton-http",
    show_default=True,
    help="Triton's generate_stream or gRPC streaming; OpenAI's chat or text completions.",
)
@click.option(
    "--model", help="tensorrt_llm (tokens; the default), ensemble, tensorrt_llm_bls; any of an OpenAI server."
)
@click.option("--api-key-env", default=OPENAI_KEY, show_default=True, help="Environment variable of an OpenAI key.")
@click.option("--ca-file", type=click.Path(path_type=Path), help="Certificates to trust, for https:// and grpcs://.")
@click.option("--insecure", is_flag=True, help="Do not look at the server's certificate.")
@click.option("--concurrency", metavar="N,N,...", help="Users at each level.")
@click.option("--rate", metavar="R,R,...", help="Requests a second at each level instead: Poisson arrivals.")
@click.option("--duration", type=float, help="Seconds that requests are sent for, with --rate.")
@click.option("--isl", type=int, help="Prompt length in tokens.")
@click.option("--osl", type=int, help="Reply length in tokens.")
@click.option("--requests", type=int, help="Requests measured at each level.")
@click.option("--prompts", type=click.Choice(["chat", "random"]), help="Real chat text, or random tokens.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json; default: the server's own.")
@click.option("--metrics-url", help="Page of the server's metrics; default: Triton's usual port beside --url.")
@click.option("--seed", type=int, help="Seed of the prompts.")
@click.option("--strict", is_flag=True, help="End with status 3 where the run's figures are in doubt.")
@writing_flags
@common_flags
def run_load(**flags: Any) -> None:
    """Stress a Triton or OpenAI server: a closed loop of users, or an open loop that no slow server delays.

    Writes one record for each request with the time of every token, the server's metrics sampled beside them, and
    what the run was. Nothing but the server's URL is needed.
    """
    scenario = scenario_of(flags)
    if flags["dry_run"]:
        show(to_json(scenario).rstrip())
        return
    target = _target(flags, scenario)
    out = flags["out"] or RUN_OUT
    run = run_scenario(
        scenario,
        target,
        out,
        force=flags["force"],
        made_by=made_by(command_line("run-load")),
        made_from=[source_of(target.tokenizer)],
        progress=progress,
    )
    if flags["as_json"]:
        show(to_json(run).rstrip())
    else:
        show(f"{run.label}: {len(run.levels)} levels")
        for doubt in run.doubts:
            progress(f"not valid: {doubt.code}: {doubt.text}")
        wrote(out, f"report-load {out}")
    if run.doubts and flags["strict"]:
        raise TargetMissedError(f"{out}: the figures are in doubt, {len(run.doubts)} reasons; see run.json")


def _target(flags: dict[str, Any], scenario: Scenario) -> Target:
    """Ask the server what it is; learn from it where its tokenizer and its metrics are."""
    names = ("ca_file", "insecure", "api_key_env")
    endpoint = endpoint_of(flags["url"], flags["protocol"], **{name: flags[name] for name in names})
    key = os.environ.get(endpoint.api_key_env)
    facts, tokenizer_folder = server_facts(endpoint, flags["url"], scenario.model, key)
    tokenizer = flags["tokenizer"] or (Path(tokenizer_folder) if tokenizer_folder else None)
    if tokenizer is None:
        raise MissingError(f"{flags['url']}: the server names no tokenizer", hint="--tokenizer FILE gives the engine's")
    if tokenizer.is_dir():
        tokenizer = tokenizer / "tokenizer.json"
    if not tokenizer.is_file():
        raise MissingError(
            f"{tokenizer}: no such tokenizer on this machine", hint="--tokenizer FILE gives the engine's"
        )
    found = flags["metrics_url"] or metrics_url(endpoint)
    if found is None:
        progress("no metrics page beside this server: batch sizes will come from the client's records alone")
    return Target(endpoint, facts, found, tokenizer)
