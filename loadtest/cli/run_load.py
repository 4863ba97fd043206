"""The command `run-load`: its flags and its help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from engines.console import PORT, SECONDS, Command, common_flags, given_flags, writing_flags
from engines.errors import UserError
from loadtest.cli.load_flags import concurrency_flag, load_flags, refuse_two_loads, scenario_flag
from loadtest.cli.target_options import target_flags

RUN_OUT = Path("artifacts/run")
MASTER_PORT = 5557
MAX_WORKERS_A_CORE = 4
GROUPS = {
    "Server": ("--url", "--protocol", "--model", "--tokenizer", "--metrics-url", "--power-url", "--power-gpu"),
    "Load": (
        *("--scenario", "--concurrency", "--rate", "--duration", "--requests", "--isl", "--osl", "--prompts"),
        "--seed",
    ),
    "Run": ("--repeat", "--strict", "--keep-going", "--keep-text"),
    "Access and TLS": ("--api-key-env", "--ca-file", "--insecure"),
    "Several load generators": (
        *("--workers", "--master", "--expect-workers", "--bind", "--port", "--worker", "--master-host"),
        "--within",
    ),
    "Watching": ("--web-ui", "--web-port", "--web-ui-linger"),
}

# Flags that have no effect without another.
_NEEDS = {
    "--web-port": "--web-ui",
    "--web-ui-linger": "--web-ui",
    "--bind": "--master",
    "--port": "--master",
    "--within": "--master",
    "--master-host": "--worker",
}
_OF_A_WORKER = {"--worker", "--master-host", "--port", "--within", "--verbose", "--json"}


@click.command(
    "run-load",
    cls=Command,
    example="run-load --url http://127.0.0.1:8000 --concurrency 1,8,32 --isl 1000 --osl 200",
    epilog=f"Writes {RUN_OUT} unless --out is given.",
    groups=GROUPS,
)
@scenario_flag
@target_flags
@concurrency_flag
@load_flags
@click.option(
    "--prompts", metavar="SOURCE", help="Prompt source: chat, random, or a file in ShareGPT JSON or JSON Lines."
)
@click.option("--seed", type=int, help="Seed for arrivals, lengths and prompts.")
@click.option("--strict", is_flag=True, help="Exit with status 3 if the run is not valid.")
@click.option(
    "--repeat",
    type=click.IntRange(1, 1000),
    default=1,
    help="Number of runs of the scenario, in folders 1, 2, ... of --out.",
)
@click.option(
    "--keep-going", is_flag=True, help="If the server becomes unreachable, wait for it until the level's time limit."
)
@click.option("--keep-text", is_flag=True, help="Also write the prompts that were sent.")
@click.option("--workers", type=click.IntRange(1), help="Number of worker processes on this machine.")
@click.option("--master", is_flag=True, help="Coordinate workers on other machines.")
@click.option("--expect-workers", type=click.IntRange(1), help="Number of workers to wait for, with --master.")
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on for workers, with --master.")
@click.option(
    "--port", type=PORT, default=MASTER_PORT, show_default=True, help="Port of the master, with --master or --worker."
)
@click.option("--worker", is_flag=True, help="Run as a worker of the master at --master-host.")
@click.option("--master-host", default="127.0.0.1", show_default=True, help="Address of the master, with --worker.")
@click.option(
    "--within", type=SECONDS, default=60.0, show_default=True, help="Maximum seconds for master and workers to connect."
)
@click.option("--web-ui", is_flag=True, help="Serve Locust's web pages and live charts on loopback during the run.")
@click.option("--web-port", type=PORT, default=8089, show_default=True, help="Port of the web pages.")
@click.option("--web-ui-linger", type=SECONDS, default=0.0, help="Seconds to keep serving the web pages after the run.")
@writing_flags
@common_flags
def run_load(**flags: Any) -> None:
    """Load-test a Triton or OpenAI server, in a closed loop of users or an open loop that a slow server does not delay.

    Writes one record per request with the time of every token, samples of the server's metrics, and a description of
    the run. Only the server's URL is required.
    """
    _refuse_flags(flags)
    from loadtest.cli.actions.run_load import run

    run(**flags | {"out": flags["out"] or RUN_OUT})


def _refuse_flags(flags: dict[str, Any]) -> None:
    """Refuse flags that exclude each other, and flags without the one they require."""
    if flags["worker"]:
        _refuse_flags_of_a_load()
        return
    refuse_two_loads(flags)
    given = given_flags()
    for flag in sorted(given & _NEEDS.keys()):
        if _NEEDS[flag] not in given:
            raise UserError(f"{flag} has no effect without {_NEEDS[flag]}", hint=f"add {_NEEDS[flag]}, or omit {flag}")
    if flags["master"] and not flags["expect_workers"]:
        raise UserError("--master needs --expect-workers", hint="--expect-workers N")
    if flags["expect_workers"] and not flags["master"]:
        raise UserError("--expect-workers needs --master", hint="to start workers on this machine, use --workers N")
    limit = MAX_WORKERS_A_CORE * len(os.sched_getaffinity(0))
    if (flags["workers"] or 0) > limit:
        raise UserError(
            f"--workers {flags['workers']}: at most {limit} workers are started on this machine, "
            f"{MAX_WORKERS_A_CORE} a core: more of them would delay each other",
            hint="start workers on other machines too, with --master here and --worker there",
        )
    if flags["master"] and flags["workers"]:
        raise UserError(
            "--master and --workers exclude each other: --master waits for workers, --workers starts them",
            hint="run-load --worker also starts one on this machine",
        )


def _refuse_flags_of_a_load() -> None:
    """Refuse what a worker would ignore: its load comes from the master."""
    if ignored := sorted(given_flags() - _OF_A_WORKER):
        raise UserError(
            f"--worker: {ignored[0]} has no effect, because the load comes from the master",
            hint=f"give {ignored[0]} to run-load --master",
        )
