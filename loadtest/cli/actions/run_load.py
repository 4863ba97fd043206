"""The implementation of `run-load`."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.console import command_line, progress, quoted, show, wrote
from engines.errors import TargetMissedError, UserError
from engines.files import CONTENTS_NAME, made_by, to_json
from engines.outputs import LOCKS, folder_in_place, paths_named, refuse_existing
from engines.ports import why_not_free
from loadtest.cli.options import load_options, outlook, scenario_of, target_options
from loadtest.cli.tables import show_energy, show_speculation, show_summary
from loadtest.metrics import summary_of_runs
from loadtest.results import RUN_FILES
from loadtest.run import FinishedRun, GeneratorProcesses, join, run_once

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def run(**flags: Any) -> None:
    """Load-test a Triton or OpenAI server, in a closed loop or in an open loop."""
    if flags["worker"]:
        _require_known(flags["master_host"], flags["port"], "--master-host")
        join(flags["master_host"], flags["port"], within_s=flags["within"])
        show("the master ended the run")
        return
    fleet = _fleet(flags)
    scenario = scenario_of(load_options(flags))
    if flags["dry_run"]:
        show(to_json(scenario).rstrip())
        for line in outlook(scenario):
            progress(line)
        return
    out, repeats = flags["out"], flags["repeat"]
    refuse_existing(out, force=flags["force"], inputs=paths_named(flags), command="run-load")
    server = replace(target_options(flags), earlier_runs=out.absolute().parent)
    how: dict[str, Any] = {"force": flags["force"], "keep_text": flags["keep_text"], "fleet": fleet}
    if repeats == 1:
        _show([run_once("run-load", scenario, out, server, **how)], [out], out, flags)
        return
    head = made_by(command_line("run-load"))
    files = [LOCKS, *(f"*/{name}" for name in (CONTENTS_NAME, *RUN_FILES))]
    with folder_in_place(out, made_by=head, files=files, force=flags["force"]):
        folders = [out / str(number) for number in range(1, repeats + 1)]
        runs = []
        for number, folder in enumerate(folders):
            drawn = scenario.model_copy(update={"seed": scenario.seed + number})
            runs.append(run_once("run-load", drawn, folder, replace(server, is_quiet=number > 0), **how))
            progress(f"repeat {number + 1} of {repeats}: wrote {folder}")
    _show(runs, folders, out, flags)


def _show(finished: Sequence[FinishedRun], folders: Sequence[Path], out: Path, flags: dict[str, Any]) -> None:
    runs = [run.manifest for run in finished]
    validity_issues = [issue for run in runs for issue in run.validity_issues]
    if flags["as_json"]:
        show(
            "[" + ",".join(to_json(run).rstrip() for run in runs) + "]" if len(runs) > 1 else to_json(runs[0]).rstrip()
        )
    else:
        summary = summary_of_runs(folders, [run.records for run in finished])
        show_summary(summary)
        show_speculation(summary)
        show_energy(summary)
        wrote(out, "report-load " + " ".join(map(quoted, folders)))
    if validity_issues and flags["strict"]:
        raise TargetMissedError(f"{out}: the run is not valid: {len(validity_issues)} validity issues; see run.json")


def _fleet(flags: dict[str, Any]) -> GeneratorProcesses:
    """Return the processes that generate the load."""
    if flags["master"] and flags["bind"] not in LOOPBACK:
        progress(
            f"warning: anyone who can reach {flags['bind']}:{flags['port']} can read the plan and send records: "
            "Locust's messages are not authenticated; keep the port inside a network you trust"
        )
    if flags["master"]:
        if flags["bind"] != "*":
            _require_known(flags["bind"], flags["port"], "--bind")
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


def _require_known(host: str, port: int, flag: str) -> None:
    """Refuse a host name that is empty or has no address."""
    try:
        if not host or any(map(str.isspace, host)):
            raise ValueError("not a host name")
        socket.getaddrinfo(host, port)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"{flag} {host}: {reason}", hint="expected a host name or an address") from error


def _require_free(host: str, port: int, flag: str) -> None:
    address = "0.0.0.0" if host == "*" else host  # Locust's notation for all interfaces
    if (reason := why_not_free(address, port)) is not None:
        raise UserError(f"{flag} {port}: {host}:{port}: {reason}", hint=f"choose a free port with {flag}")
