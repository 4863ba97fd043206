"""The command that loads a server: run-load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import PORT, SECONDS, Command, common_flags, writing_flags
from loadtest.cli.target_options import target_flags

RUN_OUT = Path("artifacts/run")
MASTER_PORT = 5557
GROUPS = {
    "Several load generators": (
        *("--workers", "--master", "--expect-workers", "--bind", "--port", "--worker", "--master-host"),
        "--within",
    ),
    "Watching": ("--web-ui", "--web-port", "--web-ui-linger"),
}


@click.command("run-load", cls=Command, epilog=f"Writes {RUN_OUT} unless --out is given.", groups=GROUPS)
@click.option(
    "--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario that comes with the package, or a YAML file."
)
@target_flags
@click.option("--concurrency", metavar="N,N,...", help="Users at each level.")
@click.option("--rate", metavar="R,R,...", help="Requests a second at each level instead: Poisson arrivals.")
@click.option(
    "--duration", type=float, help="Seconds that an open loop sends for; its shape shrinks with it, its rates stay."
)
@click.option("--isl", help="Prompt length in tokens: a number, or as in 'lognormal(mean=1024, cv=0.8)'.")
@click.option("--osl", help="Reply length in tokens, likewise.")
@click.option("--requests", type=int, help="Requests measured at each level.")
@click.option("--prompts", metavar="SOURCE", help="chat, random, or a file: ShareGPT's JSON or JSON lines.")
@click.option("--seed", type=int, help="Seed of arrivals, lengths and prompts.")
@click.option("--strict", is_flag=True, help="End with status 3 where the run's figures are in doubt.")
@click.option(
    "--repeat", type=click.IntRange(1), default=1, help="Runs of the scenario, each in a folder 1, 2, ... of --out."
)
@click.option("--keep-going", is_flag=True, help="Wait for a server that went away, until the level's time limit.")
@click.option("--keep-text", is_flag=True, help="Keep the prompts that were sent; otherwise none is written.")
@click.option("--workers", type=click.IntRange(1), help="Load generator processes on this machine.")
@click.option("--master", is_flag=True, help="Direct workers that come from other machines.")
@click.option("--expect-workers", type=click.IntRange(1), help="How many workers to wait for, with --master.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to await workers at, with --master.")
@click.option(
    "--port", type=PORT, default=MASTER_PORT, show_default=True, help="The master's port, with --master or --worker."
)
@click.option("--worker", is_flag=True, help="Be a worker of the master at --master-host, and nothing else.")
@click.option("--master-host", default="127.0.0.1", show_default=True, help="Where the master is, with --worker.")
@click.option(
    "--within", type=SECONDS, default=60.0, show_default=True, help="Seconds that master and workers wait to meet."
)
@click.option("--web-ui", is_flag=True, help="Locust's web pages and live charts, on loopback while the run goes on.")
@click.option("--web-port", type=PORT, default=8089, show_default=True, help="Port of the web pages.")
@click.option("--web-ui-linger", type=SECONDS, default=0.0, help="Seconds the web pages stay after the run.")
@writing_flags
@common_flags
def run_load(**flags: Any) -> None:
    """Stress a Triton or OpenAI server: a closed loop of users, or an open loop that no slow server delays.

    Writes one record for each request with the time of every token, the server's metrics sampled beside them, and
    what the run was. Nothing but the server's URL is needed.
    """
    from loadtest.cli.actions.run_load import run

    run(**flags | {"out": flags["out"] or RUN_OUT})
