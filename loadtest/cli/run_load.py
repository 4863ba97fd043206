"""The command that loads a server: run-load."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from engines.console import Command, command_line, common_flags, progress, show, writing_flags, wrote
from engines.errors import TargetMissedError, UserError
from engines.files import made_by, to_json
from engines.outputs import CONTENTS_NAME, folder_in_place, paths_named, refuse_existing
from loadtest.cli.options import outlook, scenario_of, target_flags
from loadtest.results import RUN_FILES, RunManifest
from loadtest.run import GeneratorProcesses, join, run_once

RUN_OUT = Path("artifacts/run")
MASTER_PORT = 5557
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
GROUPS = {
    "Several load generators": (
        *("--workers", "--master", "--expect-workers", "--bind", "--port", "--worker", "--master-host"),
        "--within",
    ),
    "Watching": ("--web-ui", "--web-port", "--web-ui-linger"),
}


class TerminatedError(KeyboardInterrupt):
    """The system asked this process to end."""


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
    "--port", type=int, default=MASTER_PORT, show_default=True, help="The master's port, with --master or --worker."
)
@click.option("--worker", is_flag=True, help="Be a worker of the master at --master-host, and nothing else.")
@click.option("--master-host", default="127.0.0.1", show_default=True, help="Where the master is, with --worker.")
@click.option(
    "--within", type=float, default=60.0, show_default=True, help="Seconds that master and workers wait to meet."
)
@click.option("--web-ui", is_flag=True, help="Locust's web pages and live charts, on loopback while the run goes on.")
@click.option("--web-port", type=int, default=8089, show_default=True, help="Port of the web pages.")
@click.option("--web-ui-linger", type=float, default=0.0, help="Seconds the web pages stay after the run.")
@writing_flags
@common_flags
def run_load(**flags: Any) -> None:
    """Stress a Triton or OpenAI server: a closed loop of users, or an open loop that no slow server delays.

    Writes one record for each request with the time of every token, the server's metrics sampled beside them, and
    what the run was. Nothing but the server's URL is needed.
    """
    signal.signal(signal.SIGTERM, _terminated)
    if flags["worker"]:
        join(flags["master_host"], flags["port"], within_s=flags["within"])
        show("the master has let go")
        return
    fleet = _fleet(flags)
    scenario = scenario_of(flags)
    if flags["dry_run"]:
        show(to_json(scenario).rstrip())
        for line in outlook(scenario):
            progress(line)
        return
    out, repeats = flags["out"] or RUN_OUT, flags["repeat"]
    refuse_existing(out, force=flags["force"], inputs=paths_named(flags))
    if repeats == 1:
        _show([run_once("run-load", scenario, out, flags, fleet=fleet)], [out], out, flags)
        return
    head = made_by(command_line("run-load"))
    files = [f"*/{name}" for name in (CONTENTS_NAME, *RUN_FILES)]
    with folder_in_place(out, made_by=head, files=files, force=flags["force"]):
        folders = [out / str(number) for number in range(1, repeats + 1)]
        runs = []
        for number, folder in enumerate(folders):
            drawn = scenario.model_copy(update={"seed": scenario.seed + number})
            runs.append(run_once("run-load", drawn, folder, flags, fleet=fleet))
            progress(f"repeat {number + 1} of {repeats}: wrote {folder}")
    _show(runs, folders, out, flags)


def _show(runs: Sequence[RunManifest], folders: Sequence[Path], out: Path, flags: dict[str, Any]) -> None:
    doubts = [doubt for run in runs for doubt in run.doubts]
    if flags["as_json"]:
        show(
            "[" + ",".join(to_json(run).rstrip() for run in runs) + "]" if len(runs) > 1 else to_json(runs[0]).rstrip()
        )
    else:
        show(f"{runs[0].label}: {sum(len(run.levels) for run in runs)} levels")
        for doubt in doubts:
            progress(f"not valid: {doubt.code}: {doubt.text}")
        wrote(out, "report-load " + " ".join(str(folder) for folder in folders))
    if doubts and flags["strict"]:
        raise TargetMissedError(f"{out}: the figures are in doubt, {len(doubts)} reasons; see run.json")


def _fleet(flags: dict[str, Any]) -> GeneratorProcesses:
    """Return which processes send the load.

    Raises:
        UserError: Flags that exclude each other, or one without the other it needs.
    """
    if flags["master"] and not flags["expect_workers"]:
        raise UserError("--master: how many workers will come?", hint="--expect-workers N")
    if flags["expect_workers"] and not flags["master"]:
        raise UserError("--expect-workers is for a run with --master", hint="--workers N starts them on this machine")
    if flags["master"] and flags["workers"]:
        raise UserError(
            "--master waits for workers, --workers starts them: one or the other",
            hint="on this machine too, run-load --worker starts one",
        )
    if flags["master"] and flags["bind"] not in LOOPBACK:
        progress(
            f"warning: whoever reaches {flags['bind']}:{flags['port']} can read the plan and send records: "
            "Locust's messages carry no proof of who sent them; keep the port inside a network you trust"
        )
    if flags["master"]:
        _require_free(flags["bind"], flags["port"], "--port")
    if flags["web_ui"]:
        _require_free("127.0.0.1", flags["web_port"], "--web-port")
        progress(f"watch the run at http://127.0.0.1:{flags['web_port']}/live")
    workers = flags["workers"] or 0
    return GeneratorProcesses(
        workers=workers or int(flags["web_ui"] and not flags["master"]),
        expected=flags["expect_workers"] or 0,
        bind=flags["bind"] if flags["master"] else "127.0.0.1",
        port=flags["port"] if flags["master"] else 0,
        within_s=flags["within"],
        web_port=flags["web_port"] if flags["web_ui"] else None,
        linger_s=flags["web_ui_linger"],
    )


def _require_free(host: str, port: int, flag: str) -> None:
    address = "0.0.0.0" if host == "*" else host  # Locust's word for all interfaces
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            raise UserError(
                f"{flag} {port}: {host}:{port}: {error.strerror}", hint=f"{flag} with a free one"
            ) from error


def _terminated(*_: object) -> NoReturn:
    raise TerminatedError("terminated by the system")
