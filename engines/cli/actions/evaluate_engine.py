"""The implementation of `evaluate-engine`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from engines.accuracy import (
    KNOWN_TASKS,
    AccuracyLoss,
    Questions,
    Server,
    add_results,
    evaluate_checkpoint,
    evaluate_server,
    losses,
    refuse_emulated,
    tasks_at_hand,
)
from engines.build import available_memory_bytes
from engines.checkpoint import loaded_memory_bytes
from engines.cli.tables import show_quality
from engines.console import progress, quoted, show, wrote
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import Strict, not_of_kind, to_json
from engines.manifest import MANIFEST_NAME, AccuracyResult, EngineManifest, read_manifest
from engines.spec import gib
from engines.terminal_tables import table_console

RUNS_CODE = "humaneval"


class Found(Strict):
    """What `--json` prints."""

    accuracy: tuple[AccuracyResult, ...]
    losses: tuple[AccuracyLoss, ...] = ()


def run(engine: Path | None, url: str | None, as_json: bool, verbose: bool, **flags: Any) -> None:  # noqa: ARG001
    """Measure the accuracy of an engine or a server."""
    if engine is None and url is None:
        raise UserError("nothing to evaluate", hint="give an engine folder, or --url of a server")
    manifest = None if engine is None else read_manifest(engine)
    if engine is not None and manifest is not None:
        refuse_emulated(manifest, str(engine))
    against = None if flags["against"] is None else read_manifest(flags["against"])
    _require_pair(engine, flags)
    questions = _questions(flags)
    if url is not None:
        server = Server(url, flags["model"], flags["concurrency"])
        tokenizer = _tokenizer_folder(flags["tokenizer"], engine, manifest)
        results = evaluate_server(server, tokenizer, questions, progress=progress)
    elif against is not None and not questions.tasks:
        results = []
    else:
        assert engine is not None
        assert manifest is not None
        _require_memory(engine, manifest)
        results = evaluate_checkpoint(engine, manifest, questions, progress=progress)
    if engine is not None and results:
        manifest = add_results(engine, results)
    found = () if against is None or manifest is None else tuple(losses(against.accuracy, manifest.accuracy))
    if as_json:
        show(to_json(Found(accuracy=tuple(results), losses=found)).rstrip())
    else:
        _report(engine, manifest, results, found)
    if against is not None:
        _require_accuracy(found, flags["max_accuracy_loss"])


def _report(
    engine: Path | None, manifest: EngineManifest | None, results: list[AccuracyResult], found: Sequence[AccuracyLoss]
) -> None:
    if results or not found:
        _show(results)
    if found:
        _show_losses(found)
    if engine is not None and manifest is not None:
        show_quality(manifest)
    if engine is not None and results:
        wrote(engine / MANIFEST_NAME, f"evaluate-engine {quoted(engine)} --against BASELINE")


def _require_pair(engine: Path | None, flags: dict[str, Any]) -> None:
    if flags["against"] is not None and engine is None:
        raise UserError("--against compares two engines", hint="give the engine folder, too")
    if flags["max_accuracy_loss"] is not None and flags["against"] is None:
        raise UserError("--max-accuracy-loss needs a baseline", hint="give --against ENGINE")


def _require_accuracy(found: Sequence[AccuracyLoss], limit: float | None) -> None:
    """Raise unless every task's loss is within the limit.

    Raises:
        UserError: The engines have no questions in common.
        TargetMissedError: A loss is above the limit, or its interval contains the limit.
    """
    if not found:
        raise UserError(
            "the two engines have no task with the same questions", hint="evaluate both with the same tasks and flags"
        )
    verdicts = {} if limit is None else {each.task: each.verdict(limit) for each in found}
    wrong = [f"{task} ({verdict})" for task, verdict in verdicts.items() if verdict != "met"]
    if wrong:
        raise TargetMissedError(
            f"accuracy loss of at most {limit:g} is not shown: {', '.join(wrong)}",
            hint="ask more questions, with a higher --limit" if "undecided" in verdicts.values() else None,
        )


def _show_losses(found: Sequence[AccuracyLoss]) -> None:
    table = Table(title="accuracy loss against the baseline, on the same questions", title_justify="left")
    for heading in ("task", "metric", "loss", "standard error", "5 % to 95 %", "right: only baseline / only this"):
        table.add_column(heading, justify="left" if heading in {"task", "metric"} else "right")
    for each in found:
        pairs = f"{each.only_baseline} / {each.only_this} of {each.questions:,}"
        interval = f"{each.low:+.4f} to {each.high:+.4f}"
        table.add_row(each.task, each.metric, f"{each.loss:+.4f}", f"{each.standard_error:.4f}", interval, pairs)
    table_console().print(table)


def _questions(flags: dict[str, Any]) -> Questions:
    data, task_folder = flags["data"], flags["task_folder"]
    for folder in (data, task_folder):
        if folder is not None and not folder.is_dir():
            raise not_of_kind("a folder", folder, "files", hint="create it, or give another")
    return Questions(
        tasks=_tasks(flags["tasks"], data, run_code=flags["run_code"]),
        data=data,
        task_folder=task_folder,
        limit=flags["limit"],
        few_shot=flags["few_shot"],
        max_tokens=flags["max_tokens"],
        chat=flags["chat"],
        runs_code=flags["run_code"],
    )


def _tasks(tasks: str | None, data: Path | None, *, run_code: bool) -> tuple[str, ...]:
    """Return the tasks to run: the named ones, else the known ones whose data is at hand."""
    if tasks is not None:
        names = tuple(dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip()))
        if not names:
            raise UserError("--tasks names no task", hint=f"for example {', '.join(KNOWN_TASKS)}")
        return names
    found = [name for name in tasks_at_hand(data) if run_code or name != RUNS_CODE]
    absent = [name for name in KNOWN_TASKS if name not in found]
    if absent:
        progress(f"not evaluated, without data or permission: {', '.join(absent)}")
    return tuple(found)


def _tokenizer_folder(tokenizer: Path | None, engine: Path | None, manifest: EngineManifest | None) -> Path:
    if tokenizer is not None:
        return tokenizer
    if engine is None or manifest is None or manifest.tokenizer is None:
        raise UserError("the served model's tokenizer is needed", hint="give --tokenizer DIR, or the engine folder")
    return engine / manifest.tokenizer


def _require_memory(engine: Path, manifest: EngineManifest) -> None:
    needed, available = loaded_memory_bytes(manifest.model), available_memory_bytes()
    if available < needed:
        raise MissingError(
            f"{engine}: its weights in float32 need about {gib(needed)} of memory; {gib(available)} are available",
            hint="serve the engine, and evaluate it with --url",
        )


def _show(results: list[AccuracyResult]) -> None:
    if not results:
        show("nothing was measured: no task, and the server returns no log probabilities")
        return
    on = "the served model" if results[0].measured_on == "server" else "the exported checkpoint's forward pass"
    table = Table(title=f"measured on {on}", title_justify="left")
    for heading in ("task", "metric", "value", "standard error", "questions", "few-shot"):
        table.add_column(heading, justify="left" if heading in {"task", "metric"} else "right")
    for each in results:
        error = "-" if each.standard_error is None else f"{each.standard_error:.4f}"
        mark = " *" if each.is_main else ""
        few = str(each.few_shot)
        table.add_row(each.task, each.metric + mark, f"{each.value:.4f}", error, f"{each.questions:,}", few)
    table_console().print(table)
    if any(each.is_main for each in results):
        show("*: the metric that losses are computed from")
