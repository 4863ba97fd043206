"""The load-testing room's commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from engines.build import emulated_manifest
from engines.console import Command, command_line, common_flags, progress, show, table_console, writing_flags, wrote
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import Document, made_by, source_of, to_json, validate
from engines.manifest import MANIFEST_NAME, EngineManifest, StepTimeChoice, read_manifest
from engines.plan import make_plan
from engines.recipe import ask
from loadtest.metrics import LevelSummary, Spread, Summary, summarize
from loadtest.monitor import metrics_url, server_facts
from loadtest.predict import predict
from loadtest.runner import Target, run_scenario
from loadtest.scenario import Scenario, read_scenario

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
@click.option("--scenario", "scenario_name", metavar="NAME|FILE", help="A scenario: sweep, quick, or a YAML file.")
@click.option("--concurrency", metavar="N,N,...", help="Users at each level.")
@click.option("--isl", type=int, help="Prompt length in tokens.")
@click.option("--osl", type=int, help="Reply length in tokens.")
@click.option("--requests", type=int, help="Requests measured at each level.")
@common_flags
def predict_load(engine_dir: Path | None, as_json: bool, verbose: bool, **flags: Any) -> None:  # noqa: ARG001
    """Predict what run-load would show, on a virtual clock: the same batcher, no server, no client.

    Takes an engine folder, or a model, a GPU and a precision. Step times are uncalibrated: see docs/measurements.md for
    how far off they are. Everything above the engine is left out.
    """
    scenario = _scenario({**flags, "model": None, "prompts": None, "seed": None})
    sources = [] if engine_dir is None else [source_of(engine_dir / MANIFEST_NAME)]
    manifest = _planned(flags) if engine_dir is None else read_manifest(engine_dir)
    if flags["step_time"] is not None:
        choice = StepTimeChoice(source=flags["step_time"])
        manifest = manifest.model_copy(update={"step_time": choice})
    found = predict(scenario, manifest, made_by=made_by(command_line("predict-load")), made_from=sources)
    summary = summarize(found.run, found.records, found.samples)
    if as_json:
        show(to_json(summary).rstrip())
        return
    _show_summary(summary)


def _planned(flags: dict[str, Any]) -> EngineManifest:
    by_key = {
        "model": flags["model_name"],
        "gpu": flags["gpu"],
        "precision": flags["precision"],
        "parallel.tensor": flags["tp"],
        "step_time": flags["step_time"],
        "limits.max_batch_size": flags["max_batch_size"],
        "workload.longest_input_tokens": flags["isl"],
        "workload.longest_output_tokens": flags["osl"],
        "workload.input_tokens": flags["isl"],
        "workload.output_tokens": flags["osl"],
    }
    asked = ask(None, by_key)
    plan = make_plan(asked, head=Document(made_by=made_by(command_line("predict-load"))))
    return emulated_manifest(plan, asked.recipe)


def _scenario(flags: dict[str, Any]) -> Scenario:
    base = read_scenario(flags["scenario_name"]) if flags["scenario_name"] else Scenario()
    values = base.model_dump()
    if flags["concurrency"] is not None:
        values["concurrency"] = _counts(flags["concurrency"])
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


def _cells(level: LevelSummary) -> list[str]:
    return [
        str(level.concurrency),
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
