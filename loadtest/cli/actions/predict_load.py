"""Commands that compute instead of measuring: predict-load, calibrate-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.console import command_line, show, wrote
from engines.files import made_by, source_of, to_json
from engines.manifest import MANIFEST_NAME, read_manifest
from engines.outputs import paths_named, refuse_existing
from loadtest.cli.engine_options import calibration_of, engine_of
from loadtest.cli.options import load_options, scenario_of
from loadtest.cli.tables import show_intervals, show_summary, show_verdicts
from loadtest.metrics import summarize
from loadtest.scenario import Scenario, inputs_of
from loadtest.simulate import at_once, bare, like, predict, with_intervals, write_prediction
from loadtest.traffic import ConversationSampler, LevelPlan, Rows, count_rows, plans_of


def run(engine_dir: Path | None, as_json: bool, verbose: bool, **flags: Any) -> None:  # noqa: ARG001
    """Predict what run-load would show, on a virtual clock: the same batcher, no server, no client."""
    if flags["out"] is not None:
        inputs = paths_named({**flags, "engine_dir": engine_dir})
        refuse_existing(flags["out"], force=flags["force"], inputs=inputs)
    scenario = scenario_of(load_options(flags))
    sources = [] if engine_dir is None else [source_of(engine_dir / MANIFEST_NAME)]
    sources += inputs_of(scenario)
    known = calibration_of(flags["calibration"])
    plans = plans_of(scenario)
    rows = _rows(scenario, plans, flags["tokenizer"], engine_dir)
    manifest = engine_of(
        flags, engine_dir, known, [plan.seen(scenario, ConversationSampler(scenario, rows)) for plan in plans]
    )
    if known is not None:
        sources.append(source_of(flags["calibration"]))
        if flags["requests"] is None and flags["scenario_name"] is None:
            scenario = like(scenario, known.generator)
    if flags["static_batch"]:
        scenario, manifest = at_once(scenario), bare(manifest, scenario)
    found = predict(scenario, manifest, made_by=made_by(command_line("predict-load")), made_from=sources, rows=rows)
    if flags["out"] is not None:
        write_prediction(found, flags["out"], force=flags["force"])
    summary = summarize(found.run, found.columns, found.samples)
    if known is not None:
        summary = with_intervals(summary, known)
    if as_json:
        show(to_json(summary).rstrip())
        return
    show_summary(summary)
    show_intervals(summary)
    show_verdicts(summary, scenario)
    if flags["out"] is not None:
        wrote(flags["out"], f"report-load {flags['out']}")


def _rows(
    scenario: Scenario, plans: list[LevelPlan], tokenizer: Path | None, engine_dir: Path | None
) -> dict[str, Rows]:
    """Return what the scenario's prompt files hold, counted by the engine's tokenizer where lengths depend on it."""
    if not any(kind.needs_file_lengths for kind in scenario.kinds):
        return {}
    if tokenizer is None and engine_dir is not None:
        named = read_manifest(engine_dir).tokenizer
        tokenizer = None if named is None else engine_dir / named / "tokenizer.json"
    return count_rows(scenario, plans, tokenizer)
