"""Runs a scenario against a server: controls the load generators, samples metrics, completes the run folder."""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from engines.console import quoted
from engines.errors import MissingError, ToolError, UserError
from engines.files import MadeBy, Source, write_json
from engines.outputs import folder_in_place
from engines.signals import interrupts_deferred
from loadtest.client.protocols import protocol_for, takes_ids
from loadtest.generator import GeneratorPlan, Progress, add_lost
from loadtest.results import (
    PROMPTS_NAME,
    REQUESTS_NAME,
    RUN_FILES,
    RUN_NAME,
    SAMPLES_NAME,
    Columns,
    Level,
    RunManifest,
    ValidityIssue,
    WorkerClock,
    columns_of,
    read_records,
)
from loadtest.run.early_stop import EarlyStop, Enough
from loadtest.run.fork import run_in_child
from loadtest.run.processes import SILENT_S, STOP_WITHIN_S, Generators
from loadtest.run.sampler import Monitor, PageReader, page_of, power_readings, read_metrics
from loadtest.run.target import Target
from loadtest.run.terminal import Terminal
from loadtest.run.time_left import TimeLeft
from loadtest.run.validity import LevelObservations, observations_of, validity_issues_of
from loadtest.scenario import Scenario
from loadtest.traffic import ConversationSampler, LevelPlan, PromptMaker, copy_ready_chats, plans_of, prepare

UNDER_WAY_NAME = "under-way.jsonl"
_REPORT_HINT = "report what was measured with report-load {}"


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run to execute: scenario, target, output folder.

    Attributes:
        made_from: The tokenizer's file first.
        keep_text: Keep the sent prompts beside the records.
        enough: Ends the only level once its results are conclusive; None: it runs to its end.
    """

    scenario: Scenario
    target: Target
    out: Path
    made_by: MadeBy
    made_from: list[Source]
    force: bool = False
    keep_text: bool = False
    enough: Enough | None = None


@dataclass(slots=True)
class RunProgress:
    """Progress of a run.

    Attributes:
        begun: The current level, as it started.
        interrupted: Why the run ended before its last level.
        hint: What to try, if the generator said so.
        lost: The message about a lost worker.
        now_s: Time of the last message, on the run's clock.
    """

    levels: list[Level] = field(default_factory=list)
    clocks: list[WorkerClock] = field(default_factory=list)
    begun: Level | None = None
    interrupted: str | None = None
    hint: str | None = None
    lost: str | None = None
    now_s: float = 0.0

    def note(self, message: dict[str, Any], terminal: Terminal) -> None:
        """Process a generator's message, and show what is relevant to the user."""
        match message:
            case {"began": values}:
                self.begun = Level.model_validate(values)
                terminal.begin()
            case {"progress": values}:
                live = Progress.model_validate(values)
                self.now_s = live.t_s
                terminal.show_progress(live)
            case {"level": values}:
                with interrupts_deferred():
                    self.levels.append(Level.model_validate(values))
                    self.begun = None
                terminal.line(_level_text(self.levels[-1]))
            case {"clocks": values}:
                self.clocks += [WorkerClock.model_validate(each) for each in values]
            case {"lost": why}:
                self.lost = str(why)
            case {"ended": why}:
                self.interrupted, self.hint = str(why), message.get("hint")
            case {"lingering": seconds} if seconds:
                terminal.line(f"the run has ended; its web pages are served for another {seconds:g} s")

    def end(self, now_s: float) -> None:
        """Keep a level that was in progress when the messages ended."""
        if self.begun is not None:
            end_s = max(now_s, self.begun.begin_s)
            self.levels.append(self.begun.model_copy(update={"measure_s": self.begun.begin_s, "end_s": end_s}))
            self.begun = None


class FinishedRun(NamedTuple):
    """A run that has ended.

    Attributes:
        records: None if they contain what is impossible, which `read_records` refuses.
    """

    manifest: RunManifest
    records: Columns | None


def run_scenario(request: RunRequest, generators: Generators, folder: Path, terminal: Terminal) -> FinishedRun:
    """Run a scenario's levels against a server.

    The folder is filled during the run. However the run ends, `run.json` describes what was done and the records so far
    are kept; requests in flight have a record too.

    Args:
        folder: For files that are needed only during the run.

    Raises:
        UserError: The folder may not be written; see `folder_in_place`.
        ToolError: The server went away, a generator failed or was lost, a file could not be written, or no measured
            request succeeded.
    """
    out, by = request.out, request.made_by
    with folder_in_place(out, made_by=by, files=RUN_FILES, main=REQUESTS_NAME, force=request.force):
        return _run_levels(request, generators, folder, terminal)


def _run_levels(request: RunRequest, generators: Generators, folder: Path, terminal: Terminal) -> FinishedRun:
    out, target = request.out, request.target
    if target.facts.emulated:
        terminal.line(f"{target.label}: latencies and rates are shown in engine time")
    began = time.monotonic()
    progress, is_stopped = RunProgress(), False

    def on_end() -> None:
        """Keep `run.json` up to date, so that a killed run can be reported."""
        begun = [] if progress.begun is None else [progress.begun.model_copy(update={"complete": False})]
        run = _manifest(request, progress, generators.fleet.processes)
        write_json(out / RUN_NAME, run.model_copy(update={"levels": [*run.levels, *begun], "unfinished": True}))

    try:
        on_end()
        plan = _plan(request, folder, began)
        interval_s = request.scenario.sample_interval_s
        with Monitor(_pages(target), out / SAMPLES_NAME, interval_s, lambda: time.monotonic() - began) as monitor:
            generators.begin(plan, target.label)
            levels = plan.levels()
            terminal.expect(_time_left(plan, levels))
            early_stop = request.enough and EarlyStop(out / REQUESTS_NAME, request.enough, target.facts.time_scale)
            _follow(
                generators, progress, terminal, monitor, on_end, limit_s=_limit_s(plan, levels), early_stop=early_stop
            )
    except ToolError as error:
        progress.interrupted = error.message.splitlines()[0]
        if _has_records(out):
            error.hint = error.hint or _REPORT_HINT.format(quoted(out))
        raise
    except OSError as error:
        progress.interrupted = f"{error.filename or out}: {error.strerror}"
        raise ToolError(
            f"the run could not continue: {progress.interrupted}", hint="check the free disk space"
        ) from error
    except KeyboardInterrupt as error:
        progress.interrupted, is_stopped = str(error) or "interrupted by the user", True
        raise
    finally:
        terminal.clear()
        generators.end()
        progress.end(time.monotonic() - began)
        run, observations = _complete(request, folder, progress, generators.fleet.processes)
        if is_stopped:
            terminal.line(_recorded_text(out, observations))
    _require_success(out, run.manifest, observations, generators.failed_workers(), hint=progress.hint)
    return run


def _pages(target: Target) -> list[PageReader]:
    """Return a reader for each metrics page: the server's own, then those with the GPUs' power."""
    own = [partial(read_metrics, page_of(url, target.endpoint)) for url in target.metrics_urls]
    power = [partial(power_readings, url, target.power_gpus) for url in target.power_urls]
    return [*own, *power]


def _follow(
    generators: Generators,
    progress: RunProgress,
    terminal: Terminal,
    monitor: Monitor,
    on_end: Callable[[], None],
    *,
    limit_s: float,
    early_stop: EarlyStop | None = None,
) -> None:
    """Process the generator's messages until it ends, including its final ones after an interrupt.

    Args:
        on_end: Called whenever a level has started or ended.

    Raises:
        ToolError: It failed or fell silent, a level exceeded its time limit by far, or samples cannot be written.
    """
    try:
        for message in generators.lines(within_s=SILENT_S):
            progress.note(message, terminal)
            if "began" in message or "level" in message:
                on_end()
            if progress.begun is not None and progress.now_s - progress.begun.begin_s > limit_s:
                raise ToolError(f"a level did not end within {limit_s:g} s")
            if monitor.failed is not None:
                raise ToolError(monitor.failed, hint="check the free disk space")
            if early_stop is not None and "progress" in message and early_stop.is_satisfied():
                early_stop = None
                generators.suffice()
    except KeyboardInterrupt:
        generators.stop()
        for message in generators.lines(within_s=STOP_WITHIN_S):
            progress.note(message, terminal)
        raise


def _limit_s(plan: GeneratorPlan, levels: Sequence[LevelPlan]) -> float:
    """Return how long a level may take: its own limit, plus the time its last requests may take."""
    own_s = max(level.limit_s(plan.scenario, plan.time_scale) for level in levels)
    return own_s + plan.scenario.request_timeout_s + SILENT_S


def _time_left(plan: GeneratorPlan, levels: Sequence[LevelPlan]) -> TimeLeft:
    return TimeLeft(
        [
            (None, level.arrivals[-1].at_s * plan.time_scale)
            if level.concurrency is None
            else (plan.scenario.requests_of(level.concurrency), None)
            for level in levels
        ]
    )


def _complete(
    request: RunRequest, folder: Path, progress: RunProgress, workers: int
) -> tuple[FinishedRun, dict[int, LevelObservations]]:
    """Write records for lost requests, and `run.json`; return both, and aggregates of the records.

    Raises:
        ToolError: They cannot be written.
    """
    out, facts = request.out, request.target.facts
    records = out / REQUESTS_NAME
    try:
        if progress.interrupted is not None:
            with contextlib.suppress(OSError):  # disk full, which is already the reason for the end of the run
                add_lost(records, folder / UNDER_WAY_NAME, now_s=progress.now_s)
        columns, is_possible = own_records(out) if records.is_file() else (columns_of([]), False)
        observations = observations_of(columns)
        validity_issues = list(
            validity_issues_of(request.scenario, facts, progress.levels, observations, progress.clocks, out)
        )
        if progress.lost is not None:
            validity_issues.append(ValidityIssue(code="worker-lost", text=progress.lost))
        run = _manifest(request, progress, workers).model_copy(update={"validity_issues": tuple(validity_issues)})
        write_json(out / RUN_NAME, run)
    except OSError as error:
        raise ToolError(
            f"{out}: the run could not be completed: {error.strerror}", hint=(f"the records so far are in {records}")
        ) from error
    return FinishedRun(run, columns if is_possible else None), observations


def own_records(out: Path) -> tuple[Columns, bool]:
    """Return a run's own records, and whether they are possible; impossible ones are kept."""
    try:
        return columns_of(read_records(out)), True
    except UserError:
        return columns_of(read_records(out, check=False)), False


def _manifest(request: RunRequest, progress: RunProgress, workers: int) -> RunManifest:
    facts = request.target.facts
    return RunManifest(
        made_by=request.made_by,
        made_from=request.made_from,
        kind="emulated" if facts.emulated else "measured",
        time_scale=facts.time_scale,
        server=facts,
        scenario=request.scenario,
        levels=list(progress.levels),
        interrupted=progress.interrupted,
        workers=workers,
        clocks=tuple(progress.clocks),
    )


def _plan(request: RunRequest, folder: Path, began: float) -> GeneratorPlan:
    scenario, target, out = request.scenario, request.target, request.out
    plans = plans_of(scenario)
    as_text = not takes_ids(target.endpoint, scenario.model)
    # Only to refuse an invalid key or field here, before the generators do.
    protocol_for(target.endpoint, scenario.model, environment=os.environ, extra=scenario.extra_body)
    prompts = folder / "prompts"
    prompts.mkdir()
    salt = secrets.randbits(32)  # the only value no seed determines: words that this server has not cached
    tokenizer = request.made_from[0]
    if not copy_ready_chats(scenario, plans, tokenizer.sha256, prompts, as_text=as_text, salt=salt):
        run_in_child(lambda: prepare(scenario, plans, target.tokenizer, prompts, as_text=as_text, salt=salt))
    sampler = ConversationSampler(scenario, PromptMaker(scenario, prompts).rows)
    counted = [plan.counted(scenario, sampler) for plan in plans]
    return GeneratorPlan(
        endpoint=target.endpoint.model_copy(
            update={
                "perf_metrics": target.facts.perf_metrics,
                "kv_block_tokens": target.facts.kv_block_tokens or 0,
            }
        ),
        scenario=scenario,
        prompts=str(prompts),
        records=str(out / REQUESTS_NAME),
        under_way=str(folder / UNDER_WAY_NAME),
        texts=str(out / PROMPTS_NAME) if request.keep_text else None,
        began_monotonic_s=began,
        time_scale=target.facts.time_scale,
        lengths=tuple((plan.isl, plan.osl) for plan in counted),
    )


def _require_success(
    out: Path,
    run: RunManifest,
    observations: dict[int, LevelObservations],
    failed_workers: list[str],
    *,
    hint: str | None,
) -> None:
    if run.interrupted is not None:
        hint = hint or (_REPORT_HINT.format(quoted(out)) if _has_records(out) else None)
        raise ToolError(f"the run ended early: {run.interrupted}", last_lines=failed_workers, hint=hint)
    measured = sum(level.measured for level in observations.values())
    if not any(level.good for level in observations.values()):
        errors = (level.first_error for level in observations.values() if level.first_error)
        why = next(errors, "no error was recorded")
        raise MissingError(
            f"none of {measured} measured requests succeeded: {why}" if measured else f"no request was measured: {why}",
            hint=f"the records are in {out / REQUESTS_NAME}",
        )


def _has_records(out: Path) -> bool:
    """Whether a request was recorded; if none was, the run's folder is removed."""
    records = out / REQUESTS_NAME
    return records.is_file() and records.stat().st_size > 0


def _recorded_text(out: Path, observations: dict[int, LevelObservations]) -> str:
    """Return what is known of a run that was cut short."""
    if not _has_records(out):
        return f"no request was recorded; {out} was removed"
    measured = sum(level.measured for level in observations.values())
    incomplete = sum(level.incomplete for level in observations.values())
    cut = f", {incomplete} in flight were cut short" if incomplete else ""
    return f"{measured} measured requests recorded{cut}; {_REPORT_HINT.format(quoted(out))}"


def _level_text(level: Level) -> str:
    ended = "" if level.complete else ", incomplete"
    ended += f"; {level.failed_rows} rows of the trace had no prompt or no reply" if level.failed_rows else ""
    return f"{level.load}: measured {level.end_s - level.measure_s:.1f} s{ended}"
