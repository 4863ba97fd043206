"""Commands that compute instead of measuring: predict-load, calibrate-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.build.pipeline import emulated_manifest
from engines.calibration import Calibration, LoadGenerator, read_calibration, require_match
from engines.console import Command, command_line, common_flags, progress, show, writing_flags, wrote
from engines.errors import UserError
from engines.files import Document, made_by, refuse_existing, sha256_of, source_of, to_json, write_json
from engines.manifest import MANIFEST_NAME, EngineManifest, StepTimeChoice, read_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import ask
from engines.spec.gpu import gpu_named
from loadtest.asked import inputs_of, scenario_of
from loadtest.calibrate import LEAST_POINTS, TOKEN_BUDGETS, Request, calibrate
from loadtest.conversations import Mix, Rows, Seen, seen_of
from loadtest.metrics import summarize
from loadtest.points import Deployment, Point, read_points
from loadtest.predict import at_once, bare, calibrated, like, predict, with_intervals, write_prediction
from loadtest.preparation import count_rows
from loadtest.records import RUN_NAME, read_run
from loadtest.scenario import Scenario
from loadtest.tables import show_calibration, show_intervals, show_summary, show_verdicts
from loadtest.traffic import LevelPlan, plans_of

CALIBRATION_OUT = Path("artifacts/calibration.json")


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
        refuse_existing(flags["out"], force=flags["force"])
    scenario = scenario_of({**flags, "model": None})
    sources = [] if engine_dir is None else [source_of(engine_dir / MANIFEST_NAME)]
    sources += inputs_of(scenario)
    known = _calibration(flags["calibration"])
    plans = plans_of(scenario)
    rows = _rows(scenario, plans, flags["tokenizer"], engine_dir)
    manifest = _engine(flags, engine_dir, known, [plan.seen(scenario, Mix(scenario, rows)) for plan in plans])
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


@click.command("calibrate-engine", cls=Command, epilog=f"Writes {CALIBRATION_OUT} unless --out is given.")
@click.option(
    "--measurements",
    multiple=True,
    required=True,
    type=click.Path(exists=True, path_type=Path),
    help="A CSV of measured points, or the folder of a run; may be given again.",
)
@click.option("--model", "model_name", default="deepseek-r1-0528-qwen3-8b", show_default=True, help="A known model.")
@click.option("--gpu", default="h100-sxm-80gb", show_default=True, help="A known GPU.")
@click.option("--precision", default="fp8", show_default=True, help="Number format of the linear layers.")
@click.option("--kv-cache", type=click.Choice(["16bit", "fp8", "int8"]), help="KV cache format; default: as built.")
@click.option("--tp", type=int, default=1, show_default=True, help="Tensor parallel size.")
@click.option("--max-batch-size", type=int, default=512, show_default=True, help="The deployment's.")
@click.option("--max-num-tokens", type=int, help="The deployment's; default: what explains the points best.")
@click.option(
    "--step-time",
    type=click.Choice(["roofline", "silicon"]),
    default="silicon",
    show_default=True,
    help="What the factors stand before: data sheets, or tables of measured kernels.",
)
@click.option(
    "--start",
    type=click.Choice(["together", "staggered"]),
    help="How the measured load began; default: together for a CSV, staggered for runs of run-load.",
)
@writing_flags
@common_flags
def calibrate_engine(**flags: Any) -> None:
    """Learn from measurements how a deployment differs from its parts: a handful of physical factors.

    A CSV has the columns concurrency_or_batch, isl, osl, ttft_ms, itl_ms, throughput_out_tok_s, any of the last three
    possibly empty; rows that say they are of another model, GPU, precision or load are left out. Six points are enough
    to begin with; two shapes of prompt and reply let the errors be judged on what was not seen.
    """
    points, kinds = _read_measurements(flags)
    target = flags["out"] or CALIBRATION_OUT
    if flags["dry_run"]:
        show(f"would fit {len(points)} points and write {target}")
        return
    refuse_existing(target, force=flags["force"])
    longest = seen_of([max(point.isl for point in points)], [max(point.osl for point in points)])
    limits = {"max_num_tokens": flags["max_num_tokens"] or max(TOKEN_BUDGETS)}
    manifest = _planned({**flags, **limits}, None, [longest])
    request = Request(
        manifest,
        tuple(points),
        LoadGenerator(start=flags["start"] or ("together" if "table" in kinds else "staggered")),
        flags["max_num_tokens"],
        "emulated" if "emulated" in kinds else "measured",
    )
    head = Document(
        made_by=made_by(command_line("calibrate-engine")),
        made_from=[source_of(path / RUN_NAME if path.is_dir() else path) for path in flags["measurements"]],
    )
    found = calibrate(request, head=head, progress=progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_json(target, found)
    if flags["as_json"]:
        show(to_json(found).rstrip())
        return
    show_calibration(found)
    wrote(target, f"predict-load --calibration {target}")


def _read_measurements(flags: dict[str, Any]) -> tuple[list[Point], set[str]]:
    """Return the points of all files, and their kinds: `table`, `measured`, `emulated`."""
    wanted = Deployment(flags["model_name"], gpu_named(flags["gpu"]).name, flags["precision"], flags["tp"])
    points: list[Point] = []
    kinds: set[str] = set()
    for path in flags["measurements"]:
        kinds.add(read_run(path).kind if path.is_dir() else "table")
        found, others = read_points(path, wanted)
        points += found
        if others:
            progress(f"{path}: {others} rows of another model, GPU, precision or load left out")
    if len(points) < LEAST_POINTS:
        raise UserError(
            f"{len(points)} measured points of {wanted.model} {wanted.precision} on {wanted.gpu}, tensor parallel "
            f"{wanted.tensor_parallel}; at least {LEAST_POINTS} are needed",
            hint="do --model, --gpu, --precision and --tp say what was measured?",
        )
    if "emulated" in kinds and len(kinds) > 1:
        raise UserError("emulated and measured points cannot be fitted together", hint="one kind at a time")
    if len({point.load == "concurrency" for point in points}) > 1:
        raise UserError(
            "points of a served load and of the bare engine are mixed (load_kind)",
            hint="keep rows of one load_kind in the file",
        )
    return points, kinds


def _calibration(path: Path | None) -> Calibration | None:
    return None if path is None else read_calibration(path)


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


def _engine(
    flags: dict[str, Any], engine_dir: Path | None, known: Calibration | None, seen: list[Seen]
) -> EngineManifest:
    """Return the engine of a folder, or one planned for requests as seen, as flags and a calibration have it."""
    manifest = _planned(flags, known, seen) if engine_dir is None else read_manifest(engine_dir)
    if flags["step_time"] is not None:
        manifest = manifest.model_copy(update={"step_time": StepTimeChoice(source=flags["step_time"])})
    if known is None:
        return manifest
    require_match(
        known,
        gpu=manifest.gpu.name,
        precision=manifest.precision.name,
        tensor_parallel=manifest.parallel.tensor,
        path=flags["calibration"],
    )
    return calibrated(manifest, known, sha256_of(flags["calibration"]))


def _planned(flags: dict[str, Any], known: Calibration | None, seen: list[Seen]) -> EngineManifest:
    """Plan an engine where none is given, for requests as seen; a calibration's limits stand unless a flag differs."""
    engine = None if known is None else known.engine
    by_key = {
        "model": flags["model_name"],
        "gpu": flags["gpu"],
        "precision": flags["precision"],
        "parallel.tensor": flags["tp"],
        "step_time": flags["step_time"],
        "kv_cache.format": flags["kv_cache"] or (known.kv_cache if known else None),
        "limits.max_batch_size": flags["max_batch_size"] or (engine.max_batch_size if engine else None),
        "limits.max_num_tokens": flags["max_num_tokens"] or (engine.max_num_tokens if engine else None),
        "limits.max_seq_len": max(each.longest for each in seen),
        "workload.longest_input_tokens": max(each.longest_isl for each in seen),
        "workload.longest_output_tokens": max(each.longest_osl for each in seen),
        "workload.input_tokens": round(max(each.isl for each in seen)),
        "workload.output_tokens": round(max(each.osl for each in seen)),
    }
    asked = ask(None, by_key)
    plan = make_plan(asked, head=Document(made_by=made_by(command_line("predict-load"))))
    return emulated_manifest(plan, asked.recipe)
