"""The implementation of `predict-load`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.console import command_line, quoted, say, show, wrote
from engines.errors import MissingError, UserError
from engines.files import Source, made_by, require_file, source_of, to_json
from engines.manifest import EngineManifest, manifest_path, read_manifest
from engines.names import TOKENIZER_FILE
from engines.outputs import paths_named, refuse_existing
from engines.planning import Payoff, payoff_of
from engines.spec import sources_named
from engines.steptime import NONE, Slowdown, step_time_words
from loadtest.cli.engine_options import calibration_of, engine_of
from loadtest.cli.options import load_options, scenario_of
from loadtest.cli.tables import show_energy, show_intervals, show_speculation, show_summary, show_verdicts
from loadtest.metrics import Summary, summarize
from loadtest.scenario import Scenario, inputs_of
from loadtest.simulate import (
    Prediction,
    at_once,
    bare,
    like,
    predict,
    profile_ends,
    with_ends,
    with_intervals,
    with_power_range,
    write_prediction,
)
from loadtest.traffic import ConversationSampler, LevelPlan, Rows, count_rows, plans_of


def run(engine_dir: Path | None, as_json: bool, verbose: bool, **flags: Any) -> None:  # noqa: ARG001
    """Predict the results of run-load on a virtual clock: the same batcher, without server and client."""
    if flags["out"] is not None:
        inputs = paths_named({**flags, "engine_dir": engine_dir})
        refuse_existing(flags["out"], force=flags["force"], inputs=inputs, command="predict-load")
    scenario = scenario_of(load_options(flags))
    sources = [*_engine_sources(engine_dir, flags), *inputs_of(scenario)]
    known = calibration_of(flags["calibration"])
    plans = plans_of(scenario)
    rows = _rows(scenario, plans, flags["tokenizer"], engine_dir)
    manifest = engine_of(
        flags, engine_dir, known, [plan.length_stats(scenario, ConversationSampler(scenario, rows)) for plan in plans]
    )
    if known is not None:
        sources.append(source_of(flags["calibration"]))
        if flags["requests"] is None and flags["scenario_name"] is None:
            scenario = like(scenario, known.generator)
    scenario, manifest = _queued(scenario, manifest, flags)
    made = made_by(command_line("predict-load"))

    def predicted(load: Scenario, slowdown: Slowdown = NONE) -> Prediction:
        queued = flags["at_once"]
        return predict(load, manifest, made_by=made, made_from=sources, rows=rows, queued=queued, slowdown=slowdown)

    found = predicted(scenario)
    if flags["out"] is not None:
        write_prediction(found, flags["out"], force=flags["force"])
    summary, rests_on = _summary(found), f"calibration {flags['calibration']}"
    if known is not None:
        summary = with_intervals(summary, known)
    elif manifest.step_time.profile is not None:
        ends = profile_ends(manifest, alone=flags["static_batch"])
        summary = with_ends(summary, scenario, ends, lambda *asked: _summary(predicted(*asked)))
        rests_on = ends.provenance
    summary = with_power_range(summary, manifest)
    if as_json:
        show(to_json(summary).rstrip())
        _require_success(summary)
        return
    _show(
        summary,
        scenario,
        f"step times: {step_time_words(manifest.step_time, manifest.gpu.name)}; intervals: {rests_on}",
        _payoff(manifest, summary),
    )
    if flags["out"] is not None:
        wrote(flags["out"], f"report-load {quoted(flags['out'])}")
    _require_success(summary)


def _engine_sources(engine_dir: Path | None, flags: dict[str, Any]) -> list[Source]:
    """Return the files that say what the engine is."""
    if engine_dir is not None:
        return [source_of(manifest_path(engine_dir))]
    return sources_named(gpu=flags["gpu"], model=flags["model_name"])


def _require_success(summary: Summary) -> None:
    """Refuse a prediction in which no measured request succeeds, as `run-load` does for a run.

    Raises:
        MissingError: No measured request succeeds.
    """
    requests = sum(level.requests for level in summary.levels)
    if requests > sum(level.errors for level in summary.levels):
        return
    texts = (text for level in summary.levels for text in level.errors_by_text)
    raise MissingError(
        f"none of {requests} measured requests would succeed: {next(texts, 'no request was measured')}",
        hint="shorter prompts or replies, or an engine with larger limits",
    )


def _queued(scenario: Scenario, manifest: EngineManifest, flags: dict[str, Any]) -> tuple[Scenario, EngineManifest]:
    """Return scenario and engine, adapted for --static-batch or --at-once, where a level's users form a queue."""
    if flags["static_batch"] and flags["at_once"]:
        raise UserError("--static-batch and --at-once exclude each other")
    if flags["static_batch"]:
        return at_once(scenario), bare(manifest, scenario)
    return (at_once(scenario) if flags["at_once"] else scenario), manifest


def _payoff(manifest: EngineManifest, summary: Summary) -> Payoff | None:
    """Return where the engine's speculation pays with the first level's mean lengths; None without any."""
    first = summary.levels[0]
    return payoff_of(manifest, isl=max(1, first.isl), osl=max(1, first.osl))


def _show(summary: Summary, scenario: Scenario, provenance: str, payoff: Payoff | None) -> None:
    show_summary(summary)
    show_intervals(summary)
    show_speculation(summary)
    show_energy(summary)
    show_verdicts(summary, scenario)
    if payoff is not None:
        say(f"{payoff.sentence} (predicted in closed form, requests of {payoff.isl:,}/{payoff.osl:,} tokens)")
    say(provenance)


def _summary(found: Prediction) -> Summary:
    return summarize(found.run, found.columns, found.samples)


def _rows(
    scenario: Scenario, plans: list[LevelPlan], tokenizer: Path | None, engine_dir: Path | None
) -> dict[str, Rows]:
    """Return the rows of the scenario's prompt files, with token counts by the engine's tokenizer where needed."""
    if tokenizer is not None:
        require_file(tokenizer)  # also where every length is given, and it is not read
    if not any(kind.needs_file_lengths for kind in scenario.kinds):
        return {}
    if tokenizer is None and engine_dir is not None:
        named = read_manifest(engine_dir).tokenizer
        tokenizer = None if named is None else engine_dir / named / TOKENIZER_FILE
    return count_rows(scenario, plans, tokenizer)
