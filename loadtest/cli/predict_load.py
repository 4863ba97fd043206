"""Commands that compute instead of measuring: predict-load, calibrate-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, command_line, common_flags, show, wrote
from engines.files import made_by, source_of, to_json
from engines.manifest import MANIFEST_NAME, read_manifest
from engines.outputs import paths_named, refuse_existing
from loadtest.cli.engine_options import calibration_of, engine_of
from loadtest.cli.options import scenario_of
from loadtest.cli.tables import show_intervals, show_summary, show_verdicts
from loadtest.metrics import summarize
from loadtest.scenario import Scenario, inputs_of
from loadtest.simulate import at_once, bare, like, predict, with_intervals, write_prediction
from loadtest.traffic import ConversationSampler, LevelPlan, Rows, count_rows, plans_of


@click.command("predict-load", cls=Command)
@click.argument("engine_dir", required=False, type=click.Path(path_type=Path))
@click.option("--model", "model_name", help="A known model, where no engine is given.")
@click.option("--gpu", help="A known GPU, where no engine is given.")
@click.option("--precision", help="Number format, where no engine is given.")
@click.option("--tp", type=int, help="Tensor parallel size, where no engine is given.")
@click.option("--max-batch-size", type=int, help="Sequences in one iteration, where no engine is given.")
@click.option(
    "--step-time",
    type=click.Choice(["roofline", "silicon"]),
    help="Data sheets, or tables of measured kernels; the engine's own choice where one is given.",
)
@click.option("--calibration", type=click.Path(path_type=Path), help="calibration.json of calibrate-engine.")
@click.option("--max-num-tokens", type=int, help="Tokens in one iteration, where no engine is given.")
@click.option("--kv-cache", type=click.Choice(["16bit", "fp8", "int8"]), help="KV cache format, as above.")
@click.option(
    "--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario that comes with the package, or a YAML file."
)
@click.option("--concurrency", metavar="N,N,...", help="Users at each level.")
@click.option("--static-batch", is_flag=True, help="--concurrency is a batch: all at once, once, the bare engine.")
@click.option("--rate", metavar="R,R,...", help="Requests a second at each level instead: Poisson arrivals.")
@click.option(
    "--duration", type=float, help="Seconds that an open loop sends for; its shape shrinks with it, its rates stay."
)
@click.option("--isl", help="Prompt length in tokens: a number, or as in 'lognormal(mean=1024, cv=0.8)'.")
@click.option("--osl", help="Reply length in tokens, likewise.")
@click.option("--requests", type=int, help="Requests measured at each level.")
@click.option("--prompts", metavar="SOURCE", help="A file of prompts whose own lengths are wanted.")
@click.option(
    "--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json, to count them; default: the engine's own."
)
@click.option("--seed", type=int, help="Seed of arrivals and lengths.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write the run to, for report-load.")
@click.option("--force", is_flag=True, help="Replace what --out already holds.")
@common_flags
def predict_load(engine_dir: Path | None, as_json: bool, verbose: bool, **flags: Any) -> None:  # noqa: ARG001
    """Predict what run-load would show, on a virtual clock: the same batcher, no server, no client.

    Takes an engine folder, or a model, a GPU and a precision. Without --calibration, step times are uncalibrated and
    everything above the engine is left out: see docs/measurements.md for how far off that is. With it, the means carry
    intervals, and a closed loop sends as the calibration's load generator did. --out keeps what run-load would have.
    """
    if flags["out"] is not None:
        inputs = paths_named({**flags, "engine_dir": engine_dir})
        refuse_existing(flags["out"], force=flags["force"], inputs=inputs)
    scenario = scenario_of({**flags, "model": None})
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
    summary = summarize(found.run, found.records, found.samples)
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
