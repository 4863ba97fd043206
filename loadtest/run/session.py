"""One run as started by a command: generators, target, inputs, terminal."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from engines.console import command_line
from engines.files import made_by, source_of
from loadtest.run.early_stop import Enough
from loadtest.run.processes import GeneratorProcesses, Generators
from loadtest.run.runner import FinishedRun, RunRequest, run_scenario
from loadtest.run.target import TargetOptions, target_of
from loadtest.run.terminal import Terminal
from loadtest.scenario import Scenario, inputs_of


def run_once(
    command: str,
    scenario: Scenario,
    out: Path,
    server: TargetOptions,
    *,
    force: bool,
    keep_text: bool = False,
    fleet: GeneratorProcesses | None = None,
    enough: Enough | None = None,
) -> FinishedRun:
    """Run a scenario once; the generators start while the server is queried. Raises as `run_scenario` does.

    Args:
        command: Name of the command.
        server: The target server.
        force: Whether to replace an existing `out`.
        keep_text: Keep the sent prompts beside the records.
        enough: Ends the current level once its results are conclusive.
    """
    columns = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    sends = fleet or GeneratorProcesses()
    with tempfile.TemporaryDirectory(prefix=f"{command}-") as folder, Generators(sends, Path(folder)) as generators:
        target = target_of(server, scenario.model)
        request = RunRequest(
            scenario=scenario.model_copy(update={"model": target.facts.model}),
            target=target,
            out=out,
            made_by=made_by(command_line(command)),
            made_from=[source_of(target.tokenizer), *inputs_of(scenario)],
            force=force,
            keep_text=keep_text,
            enough=enough,
        )
        terminal = Terminal(sys.stderr, columns=columns, clock=time.monotonic)
        return run_scenario(request, generators, Path(folder), terminal)
