"""The load-testing room's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from engines.build import emulated_manifest
from engines.calibration import Calibration, LoadGenerator, read_calibration, require_match
from engines.console import Command, command_line, common_flags, progress, show, table_console, writing_flags, wrote
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import Document, made_by, refuse_existing, sha256_of, source_of, to_json, validate, write_json
from engines.manifest import MANIFEST_NAME, EngineManifest, StepTimeChoice, read_manifest
from engines.plan import make_plan
from engines.recipe import ask
from engines.spec.gpu import gpu_named
from loadtest.calibrate import TOKEN_BUDGETS, Request, calibrate
from loadtest.metrics import LevelSummary, Spread, Summary, summarize
from loadtest.monitor import metrics_url, server_facts
from loadtest.points import Deployment, Point, read_points
from loadtest.predict import calibrated, like, predict, with_intervals
from loadtest.records import RUN_NAME, read_run
from loadtest.runner import Target, run_scenario
from loadtest.scenario import Scenario, read_scenario

CALIBRATION_OUT = Path("artifacts/calibration.json")
REPORT_OUT = Path("artifacts/report")
RUN_OUT = Path("artifacts/run")
MS = 1e3


@click.command("report-load", cls=Command, epilog=f"Writes {REPORT_OUT} unless --out is given.")
@click.argument(
    "runs",
    metavar="RUN_DIR...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
)
@writing_flags
@common_flags
def report_load(
    runs: tuple[Path, ...],
    out: Path | None,
    force: bool,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Turn run folders into figures: summary.json, charts, and one page that needs nothing else.

    Several runs share a report only if they are of one kind: measured, emulated or predicted.
    """
    try:
        from loadtest.report import REPORT_NAME, summarize_runs, write_report  # noqa: PLC0415 (charts are an extra)
    except ModuleNotFoundError as error:
        raise MissingError(f"{error.name} is not installed", hint="pip install 'engine-to-capacity[load]'") from error
    target = out or REPORT_OUT
    command = command_line("report-load")
    if dry_run:
        summary = summarize_runs(list(runs), command=command)
    else:
        summary = write_report(list(runs), target, force=force, command=command)
    if verbose:
        progress(f"percentiles: {summary.percentiles}")
    if as_json:
        show(to_json(summary).rstrip())
        return
    _show_summary(summary)
    if dry_run:
        show(f"would write {target}")
    else:
        wrote(target / REPORT_NAME)


@click.command("run-load", cls=Command, epilog=f"Writes {RUN_OUT} unless --out is given.")
@click.option("--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario: sweep, quick, or a YAML file.")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server: http://HOST:PORT.")
@click.option(
    "--protocol",
    type=click.Choice(["triton-http", "triton-grpc"]),
    default="triton-http",
    show_default=True,
    help="HTTP generate_stream, or gRPC streaming.",
)
@click.option("--model", help="Model to send to: tensorrt_llm (tokens; the default), ensemble or tensorrt_llm_bls.")
@click.option("--concurrency", metavar="N,N,...", help="Users at each level.")
@click.option("--isl", type=int, help="Prompt length in tokens.")
@click.option("--osl", type=int, help="Reply length in tokens.")
@click.option("--requests", type=int, help="Requests measured at each level.")
@click.option("--prompts", type=click.Choice(["chat", "random"]), help="Real chat text, or random tokens.")
@click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json; default: the server's own.")
@click.option("--metrics-url", help="Page of the server's metrics; default: Triton's usual port beside --url.")
@click.option("--seed", type=int, help="Seed of the prompts.")
@click.option("--strict", is_flag=True, help="End with status 3 where the run's figures are in doubt.")
@writing_flags
@common_flags
def run_load(**flags: Any) -> None:
    """Stress a Triton server: a closed loop of users at each level of concurrency.

    Writes one record for each request with the time of every token, the server's metrics sampled beside them, and
    what the run was. Nothing but the server's URL is needed.
    """
    scenario = _scenario(flags)
    if scenario.rate_per_s is not None:
        raise UserError(
            "run-load drives closed loops; a rate can only be predicted so far", hint="--concurrency 1,4,16"
        )
    if flags["dry_run"]:
        show(to_json(scenario).rstrip())
        return
    target = _target(flags, scenario)
    out = flags["out"] or RUN_OUT
    run = run_scenario(
        scenario,
        target,
        out,
        force=flags["force"],
        made_by=made_by(command_line("run-load")),
        made_from=[source_of(target.tokenizer)],
        progress=progress,
    )
    if flags["as_json"]:
        show(to_json(run).rstrip())
    else:
        show(f"{run.label}: {len(run.levels)} levels")
        for doubt in run.doubts:
            progress(f"not valid: {doubt.code}: {doubt.text}")
        wrote(out, f"report-load {out}")
    if run.doubts and flags["strict"]:
        raise TargetMissedError(f"{out}: the figures are in doubt, {len(run.doubts)} reasons; see run.json")


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
@click.option("--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario: sweep, quick, or a YAML file.")
@click.option("--concurrency", metavar="N,N,...", help="Users at each level.")
@click.option("--rate", metavar="R,R,...", help="Requests a second at each level instead: Poisson arrivals.")
@click.option("--duration", type=float, help="Seconds that requests are sent for, with --rate.")
@click.option("--isl", type=int, help="Prompt length in tokens.")
@click.option("--osl", type=int, help="Reply length in tokens.")
@click.option("--requests", type=int, help="Requests measured at each level.")
@click.option("--seed", type=int, help="Seed of the arrivals.")
@common_flags
def predict_load(engine_dir: Path | None, as_json: bool, verbose: bool, **flags: Any) -> None:  # noqa: ARG001
    """Predict what run-load would show, on a virtual clock: the same batcher, no server, no client.

    Takes an engine folder, or a model, a GPU and a precision. Without --calibration, step times are uncalibrated and
    everything above the engine is left out: see docs/measurements.md for how far off that is. With it, the means carry
    intervals, and a closed loop sends as the calibration's load generator did.
    """
    scenario = _scenario({**flags, "model": None, "prompts": None})
    sources = [] if engine_dir is None else [source_of(engine_dir / MANIFEST_NAME)]
    known = _calibration(flags["calibration"])
    manifest = _planned(flags, known) if engine_dir is None else read_manifest(engine_dir)
    if flags["step_time"] is not None:
        choice = StepTimeChoice(source=flags["step_time"])
        manifest = manifest.model_copy(update={"step_time": choice})
    if known is not None:
        path = flags["calibration"]
        require_match(
            known,
            gpu=manifest.gpu.name,
            precision=manifest.precision.name,
            tensor_parallel=manifest.parallel.tensor,
            path=path,
        )
        sources.append(source_of(path))
        manifest = calibrated(manifest, known, sha256_of(path))
        if flags["requests"] is None and flags["scenario_name"] is None:
            scenario = like(scenario, known.generator)
    found = predict(scenario, manifest, made_by=made_by(command_line("predict-load")), made_from=sources)
    summary = summarize(found.run, found.records, found.samples)
    if known is not None:
        summary = with_intervals(summary, known)
    if as_json:
        show(to_json(summary).rstrip())
        return
    _show_summary(summary)
    _show_intervals(summary)


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
    longest = {"isl": max(point.isl for point in points), "osl": max(point.osl for point in points)}
    manifest = _planned({**flags, **longest, "max_num_tokens": flags["max_num_tokens"] or max(TOKEN_BUDGETS)}, None)
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
    _show_calibration(found)
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


def _planned(flags: dict[str, Any], known: Calibration | None) -> EngineManifest:
    """Plan an engine where none is given; a calibration's own limits stand unless a flag says otherwise."""
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
        "workload.longest_input_tokens": flags["isl"],
        "workload.longest_output_tokens": flags["osl"],
        "workload.input_tokens": flags["isl"],
        "workload.output_tokens": flags["osl"],
    }
    if flags["isl"] and flags["osl"]:
        by_key["limits.max_seq_len"] = flags["isl"] + flags["osl"]
    asked = ask(None, by_key)
    plan = make_plan(asked, head=Document(made_by=made_by(command_line("predict-load"))))
    return emulated_manifest(plan, asked.recipe)


def _scenario(flags: dict[str, Any]) -> Scenario:
    base = read_scenario(flags["scenario_name"]) if flags["scenario_name"] else Scenario()
    values = base.model_dump()
    if flags["concurrency"] is not None:
        values["concurrency"] = _counts(flags["concurrency"])
    if flags.get("rate") is not None:
        values["rate_per_s"] = _rates(flags["rate"])
    if flags.get("duration") is not None:
        values["duration_s"] = flags["duration"]
    for key in ("model", "requests", "prompts", "seed"):
        if flags[key] is not None:
            values[key] = flags[key]
    for key in ("isl", "osl"):
        if flags[key] is not None:
            values["lengths"][key] = flags[key]
    return validate(values, Scenario, where="flags")


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UserError(f"--concurrency {text}: whole numbers from 1 up are expected", hint="--concurrency 1,4,16")
    return counts


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not min(rates) > 0:
        raise UserError(f"--rate {text}: numbers above 0 are expected", hint="--rate 1,2.5,5")
    return rates


def _target(flags: dict[str, Any], scenario: Scenario) -> Target:
    """Ask the server what it is; learn from it where its tokenizer and its metrics are."""
    url, protocol = flags["url"], flags["protocol"]
    facts, tokenizer_folder = server_facts(url, protocol, scenario.model)
    tokenizer = flags["tokenizer"] or (Path(tokenizer_folder) if tokenizer_folder else None)
    if tokenizer is None:
        raise MissingError(f"{url}: the server names no tokenizer", hint="--tokenizer FILE gives the engine's")
    if tokenizer.is_dir():
        tokenizer = tokenizer / "tokenizer.json"
    if not tokenizer.is_file():
        raise MissingError(
            f"{tokenizer}: no such tokenizer on this machine", hint="--tokenizer FILE gives the engine's"
        )
    found = flags["metrics_url"] or metrics_url(url, protocol)
    if found is None:
        progress("no metrics page beside this server: batch sizes will come from the client's records alone")
    return Target(url, protocol, facts, found, tokenizer)


def _show_summary(summary: Summary) -> None:
    """Print the levels, under their kind, and every doubt on stderr."""
    several = len(summary.runs) > 1
    table = Table(title=f"latency, ms ({escape(summary.label)})", title_justify="left")
    if several:
        table.add_column("run", overflow="fold")
    for name in ("users", "requests", "errors", "batch", "ITL p50", "p95", "p99", "TTFT p50", "p95", "p99"):
        table.add_column(name, justify="right")
    table.add_column("tokens/s", justify="right")
    for level in summary.levels:
        run = [escape(level.run or "")] if several else []
        table.add_row(*run, *_cells(level))
    table_console().print(table)
    for doubt in summary.doubts:
        progress(f"not valid: {doubt.code}: {doubt.text}")


def _show_intervals(summary: Summary) -> None:
    """Print between what a calibrated prediction's means lie."""
    found = [(level, level.intervals) for level in summary.levels if level.intervals]
    if not found:
        return
    table = Table(title="means, and where nine of ten deployments like the calibrated one lie", title_justify="left")
    for name in ("load", "tokens/s", "ITL, ms", "TTFT, ms"):
        table.add_column(name, justify="right")
    for level, intervals in found:
        cells = [
            f"{each.mean * scale:,.{digits}f}  ({each.low * scale:,.{digits}f} to {each.high * scale:,.{digits}f})"
            if (each := intervals.get(name))
            else "-"
            for name, scale, digits in (("tokens_per_s", 1, 0), ("itl_s", MS, 2), ("ttft_s", MS, 1))
        ]
        table.add_row(level.load, *cells)
    table_console().print(table)


def _show_calibration(found: Calibration) -> None:
    """Print the parameters with their confidence, what shapes held out said, and every warning on stderr."""
    table = Table(title=f"{found.model} {found.precision} on {found.gpu}, over {found.source}", title_justify="left")
    for name in ("parameter", "value", "95 % confidence", "expected", "meaning"):
        table.add_column(name, justify="left" if name == "meaning" else "right")
    for each in found.parameters:
        mark = "" if each.identified else " (not identified)"
        table.add_row(
            each.name,
            f"{each.value:.4g}",
            f"{each.low:.3g} to {each.high:.3g}",
            f"{each.expected:g}",
            each.meaning + mark,
        )
    table_console().print(table)
    for shape in found.held_out:
        errors = " ".join(
            f"{name} {value:.1%}"
            for name, value in (("tokens/s", shape.tokens_per_s), ("ITL", shape.itl_s), ("TTFT (median)", shape.ttft_s))
            if value is not None
        )
        show(f"held out {shape.isl}/{shape.osl}, {shape.points} points: {errors}")
    for warning in found.warnings:
        progress(f"warning: {warning}")


def _cells(level: LevelSummary) -> list[str]:
    return [
        level.load,
        str(level.requests),
        str(level.errors),
        _batch(level),
        *_percentiles(level.itl_s),
        *_percentiles(level.ttft_s),
        "-" if level.output_tokens_per_s is None else f"{level.output_tokens_per_s:,.0f}",
    ]


def _batch(level: LevelSummary) -> str:
    """Return the mean batch size by the server; with a tilde, by the client."""
    if level.batch_size is not None:
        return f"{level.batch_size.mean:.1f}"
    return "-" if level.batch_size_client is None else f"~{level.batch_size_client.mean:.1f}"


def _percentiles(found: Spread | None) -> list[str]:
    if found is None:
        return ["-", "-", "-"]
    return [f"{value * MS:,.2f}" for value in (found.p50, found.p95, found.p99)]
