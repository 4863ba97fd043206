"""Run a scenario: start the load generator, sample the server beside it, complete the run folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engines.errors import MissingError, ToolError
from engines.files import MadeBy, Source, refuse_existing, write_json
from loadtest.dialects import takes_ids
from loadtest.dialects.endpoint import Endpoint
from loadtest.monitor import Monitor
from loadtest.prompts import prepare
from loadtest.records import (
    REQUESTS_NAME,
    RUN_NAME,
    SAMPLES_NAME,
    Doubt,
    Level,
    RequestRecord,
    RunManifest,
    ServerFacts,
    read_records,
    read_samples,
)
from loadtest.scenario import Scenario
from loadtest.traffic import GeneratorPlan, plans_of

LAST_LINES = 12
LATE_SERIES = "emulator_lateness_seconds{"


@dataclass(frozen=True, slots=True)
class Target:
    """The server of a run.

    Attributes:
        metrics_url: None where its metrics cannot be read.
        tokenizer: File of the engine's tokenizer.
    """

    endpoint: Endpoint
    facts: ServerFacts
    metrics_url: str | None
    tokenizer: Path


def run_scenario(
    scenario: Scenario,
    target: Target,
    out: Path,
    *,
    force: bool,
    made_by: MadeBy,
    made_from: list[Source],
    progress: Callable[[str], None],
) -> RunManifest:
    """Drive a server through a scenario's levels.

    The folder fills as the run goes on. However the run ends, `run.json` says what was done, and the records up to
    there are kept.

    Raises:
        ToolError: The server went away, the generator failed, or not one measured request succeeded.
    """
    _clear(out, force=force)
    out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    levels: list[Level] = []
    interrupted: str | None = None
    try:
        with tempfile.TemporaryDirectory(prefix="run-load-") as folder:
            plan = _plan(scenario, target, out, Path(folder), began)
            with Monitor(
                target.metrics_url, out / SAMPLES_NAME, scenario.sample_interval_s, lambda: time.monotonic() - began
            ):
                for line in _generate(plan, Path(folder)):
                    if "gone" in line:
                        interrupted = str(line["gone"])
                        break
                    levels.append(Level.model_validate(line))
                    progress(_level_text(levels[-1]))
    except ToolError as error:
        interrupted = error.message.splitlines()[0]
        raise
    except KeyboardInterrupt:
        interrupted = "interrupted by the user"
        raise
    finally:
        run = _manifest(scenario, target, out, levels, interrupted, made_by, made_from)
        write_json(out / RUN_NAME, run)
    _require_success(out, run)
    return run


def _clear(out: Path, *, force: bool) -> None:
    refuse_existing(out, force=force)
    for name in (RUN_NAME, REQUESTS_NAME, SAMPLES_NAME):
        (out / name).unlink(missing_ok=True)


def _plan(scenario: Scenario, target: Target, out: Path, folder: Path, began: float) -> GeneratorPlan:
    plans = plans_of(scenario)
    as_text = not takes_ids(target.endpoint, scenario.model)
    prepare(scenario, plans, target.tokenizer, folder, as_text=as_text)
    return GeneratorPlan(
        endpoint=target.endpoint,
        scenario=scenario,
        prompts=str(folder),
        records=str(out / REQUESTS_NAME),
        began_monotonic_s=began,
        time_scale=target.facts.time_scale,
    )


def _generate(plan: GeneratorPlan, folder: Path) -> Iterator[dict[str, Any]]:
    """Start the generator and yield the lines it prints; it is gone when this ends, however this ends."""
    plan_path, log = folder / "plan.json", folder / "generator.log"
    plan_path.write_text(plan.model_dump_json(), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).with_name("locustfile.py")), str(plan_path)]
    environment = {**os.environ, "GEVENT_SUPPORT": "True"}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, env=environment, start_new_session=True, text=True
        )
    try:
        for line in process.stdout or ():
            yield json.loads(line)
        status = process.wait()
        if status != 0:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            raise ToolError("the load generator failed", status=status, last_lines=lines)
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the generator; interrupted first, so that the records under way are written."""
    for number in (signal.SIGINT, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=3)
    if process.stdout is not None:
        process.stdout.close()


def _manifest(
    scenario: Scenario,
    target: Target,
    out: Path,
    levels: list[Level],
    interrupted: str | None,
    made_by: MadeBy,
    made_from: list[Source],
) -> RunManifest:
    doubts = [doubt for index, level in enumerate(levels) for doubt in _doubts(scenario, target, out, index, level)]
    return RunManifest(
        made_by=made_by,
        made_from=made_from,
        kind="emulated" if target.facts.emulated else "measured",
        time_scale=target.facts.time_scale,
        server=target.facts,
        scenario=scenario,
        levels=levels,
        interrupted=interrupted,
        doubts=tuple(doubts),
    )


def _doubts(scenario: Scenario, target: Target, out: Path, index: int, level: Level) -> Iterator[Doubt]:
    """Yield why one level's figures should not be believed."""
    trust = scenario.trust
    gap_s = _median_gap_s(out, index)
    if gap_s and level.generator_late_p99_s > trust.generator_late_ratio * gap_s:
        text = f"the load generator woke up {level.generator_late_p99_s * 1e3:.1f} ms late (p99) between tokens"
        text += f" {gap_s * 1e3:.1f} ms apart; limit {trust.generator_late_ratio:.0%} of that"
        yield Doubt(code="generator-late", text=text, level=index)
    late_s = _late_p99_s(out, index)
    if level.concurrency is None and late_s > trust.arrivals_late_s * target.facts.time_scale:
        text = (
            f"requests were sent {late_s * 1e3:.0f} ms after their time (p99); limit {trust.arrivals_late_s * 1e3:g} ms"
        )
        yield Doubt(code="arrivals-late", text=f"{text} of engine time: this was not the load asked for", level=index)
    if not level.complete:
        yield Doubt(code="incomplete", text="the level ended before all its requests", level=index)
    if target.facts.emulated:
        yield from _emulator_doubts(scenario, out, index, level)


def _late_p99_s(out: Path, index: int) -> float:
    """Return how many wall seconds after their time requests of a level were sent, 99th percentile."""
    late = [record.sent_s - record.scheduled_s for record in read_records(out) if record.level == index]
    return float(np.percentile(late, 99)) if late else 0.0


def _median_gap_s(out: Path, index: int) -> float:
    """Return the median wall time between tokens of one level's measured requests; 0 where there is none."""
    records = (record for record in read_records(out) if record.level == index and record.phase == "measure")
    gaps = [gap for record in records for gap in np.diff(record.token_times_s).tolist()]
    return float(np.median(gaps)) if gaps else 0.0


def _emulator_doubts(scenario: Scenario, out: Path, index: int, level: Level) -> Iterator[Doubt]:
    window = [sample.values for sample in read_samples(out) if level.measure_s <= sample.t_s <= level.end_s]
    late = [
        value
        for values in window
        for key, value in values.items()
        if key.startswith(LATE_SERIES) and 'statistic="p99"' in key
    ]
    steps = _grown(window, "emulator_steps_total")
    if not late or not steps:
        return
    step_s = _grown(window, "emulator_step_seconds_total") / steps
    ratio = float(np.median(late)) / step_s
    if ratio > scenario.trust.server_late_ratio:
        yield Doubt(
            code="emulator-late",
            text=f"the emulated engine ended its steps late by {ratio:.0%} of a step (p99); "
            f"limit {scenario.trust.server_late_ratio:.0%}: a larger --time-scale of build-repo gives it room",
            level=index,
        )


def _grown(window: list[dict[str, float]], name: str) -> float:
    """Return by how much a counter grew over samples."""
    values = [value for sample in window for key, value in sample.items() if key.startswith(name + "{")]
    return max(values) - min(values) if values else 0.0


def _require_success(out: Path, run: RunManifest) -> None:
    measured = [record for record in read_records(out) if record.phase == "measure"] if run.levels else []
    if run.interrupted is not None:
        raise ToolError(
            f"the run ended early: {run.interrupted}",
            hint=f"what was measured is in {out}; report-load {out} shows it",
        )
    if not any(record.outcome == "ok" for record in measured):
        raise MissingError(
            f"not one of {len(measured)} measured requests succeeded: {_first_error(measured)}",
            hint=f"the records are in {out / REQUESTS_NAME}",
        )


def _first_error(records: list[RequestRecord]) -> str:
    return next((record.error for record in records if record.error), "no error was recorded")


def _level_text(level: Level) -> str:
    ended = "" if level.complete else ", incomplete"
    ended += f"; {level.failed_rows} rows of the trace had no prompt or no reply" if level.failed_rows else ""
    return f"{level.load}: measured {level.end_s - level.measure_s:.1f} s{ended}"
