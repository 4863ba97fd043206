"""Hold predictions to published measurements: every case of this folder, its goals met or missed (`make fidelity`).

A case is a folder `<engine>/<GPU>/<model>/<workload>` with `case.yaml` (what was deployed, how it was loaded, source
and licence) and `points.csv` (as published). Each point is predicted by the very `predict-load` command that stands
beside it in `comparison.csv`, which this script writes. See README.md.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml
from click.testing import CliRunner
from pydantic import Field

from engines.files import Strict, validate
from engines.spec import model_named
from loadtest.cli.predict_load import predict_load
from loadtest.results import read_records
from validation.calibrated import GOALS, Row, calibrated_rows, read_rows, write_rows

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "measurements" / "fidelity.md"
QUANTITIES = ("tokens_per_s", "itl", "ttft")
PER_TOKEN = "tpot"  # of cases with speculation, whose ITL is the time per step
AISIMULATE_TIMEOUT_S = 120
AISIMULATE_GPUS = {"a100-sxm-80gb": "a100_sxm", "h100-sxm-80gb": "h100_sxm", "h200-sxm-141gb": "h200_sxm"}
AISIMULATE_BACKENDS = {"trtllm-1.x-triton": "trtllm", "trtllm-serve": "trtllm", "vllm-v1": "vllm", "sglang": "sglang"}


class Speculated(Strict):
    """The speculative decoding of a case's points; `acceptance` by position, cut to each point's draft length."""

    mode: str
    draft_model: str
    acceptance: tuple[float, ...] | None = None


class Case(Strict):
    """`case.yaml`.

    Attributes:
        row: Row of the table of goals.
        engine_profile: What predicts it.
        kind: `measured` here by `make real`, or `published`.
        model, gpu: Known names; of a measured case, folder and file of its own, from the case's folder.
        calibration: What was calibrated on other loads of a measured deployment, from the case's folder.
        load: `open_loop`: requests a second; `closed_loop`: users; `at_once`: a queue of so many requests; `trace`: the
            requests of `scenario_file`, a scenario in the case's folder.
        requests: Requests of an open loop, or of a closed one at each level; of a queue the point itself says it, as
            its load, or in a column of its own where the load is the batch.
        full_batch_window: A queue's rate is that between the time when a full batch has its first tokens and the time
            when all but a full batch (and one) have ended, as ML.ENERGY's benchmark measures.
        itl_of_chunks: The load generator counted the end of each reply as one more gap, of no length: published gaps
            are those of a reply of one token more.
        isl, osl: Lengths where they vary, `{osl}` the point's own mean; the points' own otherwise.
        itl: Which statistic of the gaps was published; `ttft` likewise.
        max_batch_size: The point's load where `load`.
        scenario: How the load generator behaved, where `predict-load` differs.
        tuned: The profile's numbers were fitted to these points; False: nothing of them was used.
        fast: Part of the quick subset.
        speculative: Mode, draft model and acceptance (None: the default) of the points with a draft length; those
            without are of the same deployment without speculation.
        wants: Mean absolute errors asked for, in percent, by quantity; TTFT is a median where `ttft_median`.
        leave_out: Why a published statistic is not compared.
        aisimulate: NVIDIA's simulator is asked, too.
    """

    row: str
    engine_profile: str
    kind: Literal["published", "measured"] = "published"
    model: str
    gpu: str
    precision: str
    calibration: str | None = None
    kv_cache: str | None = None
    step_time: str | None = None
    max_batch_size: int | Literal["load"]
    max_num_tokens: int
    load: Literal["open_loop", "closed_loop", "at_once", "trace"]
    requests: int | None = None
    isl: str | None = None
    osl: str | None = None
    itl: Literal["mean", "p50"] = "mean"
    ttft: Literal["mean", "p50"] = "mean"
    full_batch_window: bool = False
    itl_of_chunks: bool = False
    scenario_file: str | None = None
    scenario: dict[str, Any] | None = None
    speculative: Speculated | None = None
    tuned: bool
    fast: bool = False
    wants: dict[str, float] = Field(default_factory=dict)
    ttft_median: bool = False
    leave_out: str | None = None
    aisimulate: bool = False
    source: str
    licence: str


class Measured(NamedTuple):
    """A published point; None: not published. Seconds, tokens a second."""

    load: float
    isl: int
    osl: int
    values: dict[str, float | None]
    where: str
    requests: int | None = None
    max_draft_len: int | None = None
    max_total_draft_tokens: int | None = None


class Predicted(NamedTuple):
    """What a command said of a point, with the ends of its interval."""

    command: str
    values: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


class Compared(NamedTuple):
    """A case with all its points predicted."""

    folder: Path
    case: Case
    points: list[Measured]
    predicted: list[Predicted]
    beside: list[dict[str, float] | None]


def main() -> int:
    """Predict every case, write each comparison and the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="Only the quick subset; writes no page.")
    parser.add_argument("--only", default="", help="Only cases whose folder contains this; writes no page.")
    parser.add_argument(
        "--page", action="store_true", help="Run nothing: write the page from the comparisons there are."
    )
    parser.add_argument(
        "--calibrated", action="store_true", help="Only the calibrations; the page takes the comparisons there are."
    )
    parser.add_argument("--aisimulate", metavar="PYTHON", help="Python of an environment that has NVIDIA's aisimulate.")
    options = parser.parse_args()
    folders = [path.parent for path in sorted(HERE.rglob("case.yaml"))]
    chosen = [folder for folder in folders if options.only in str(folder.relative_to(HERE))]
    chosen = [folder for folder in chosen if read_case(folder).fast or not options.fast]
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        if not (options.page or options.calibrated):
            list(pool.map(compare, chosen, [options.aisimulate] * len(chosen)))
        if not (options.page or options.fast or options.only):
            write_rows(calibrated_rows(pool))
    found = [read_comparison(folder) for folder in (folders if options.page else chosen)]
    whole = not (options.fast or options.only)
    text = tables_of(found) + speculation_table(found) + (calibrated_table(read_rows()) if whole else "")
    sys.stdout.write(text)
    if whole:
        PAGE.write_text(page_of(text, found), encoding="utf-8")
    return 0


def write_page() -> None:
    """Write the page from the comparisons there are; nothing is predicted."""
    found = [read_comparison(path.parent) for path in sorted(HERE.rglob("case.yaml"))]
    text = tables_of(found) + speculation_table(found) + calibrated_table(read_rows())
    PAGE.write_text(page_of(text, found), encoding="utf-8")


def read_case(folder: Path) -> Case:
    """Return the case of a folder; errors as `files.validate`."""
    case = validate(yaml.safe_load((folder / "case.yaml").read_text(encoding="utf-8")), Case, where=str(folder))
    return case if case.kind == "published" else _placed(case, folder)


def _placed(case: Case, folder: Path) -> Case:
    """Return a measured case with its own files' paths: from the repository's root where they are below it."""

    def place(name: str | None) -> str | None:
        if name is None:
            return None
        path = (folder / name).resolve()
        return str(path.relative_to(HERE.parent)) if path.is_relative_to(HERE.parent) else str(path)

    names = ("model", "gpu", "calibration", "scenario_file")
    return case.model_copy(update={name: place(getattr(case, name)) for name in names})


def compare(folder: Path, aisimulate: str | None) -> Compared:
    """Predict all points of a case, and write its comparison."""
    found = predict_case(folder, aisimulate)
    write_comparison(found)
    return found


def predict_case(folder: Path, aisimulate: str | None) -> Compared:
    """Predict all points of a case."""
    case = read_case(folder)
    points = read_points(folder)
    by_command: dict[str, Predicted] = {}  # systems that were measured alike are predicted once
    for point in points:
        command = shlex.join(arguments_of(case, point))
        by_command[command] = by_command.get(command) or predict_point(case, point)
    predicted = [by_command[shlex.join(arguments_of(case, point))] for point in points]
    beside = [None if aisimulate is None else ask_aisimulate(aisimulate, case, point) for point in points]
    return Compared(folder, case, points, predicted, beside)


def read_comparison(folder: Path) -> Compared:
    """Return a case as its comparison has it."""
    with (folder / "comparison.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def column(row: dict[str, str], what: str) -> dict[str, float]:
        cells = {name: row.get(f"{name}_{what}", "") for name in (*QUANTITIES, PER_TOKEN)}
        return {name: float(text) for name, text in cells.items() if text}

    predicted = [
        Predicted(row["command"], column(row, "predicted"), column(row, "low"), column(row, "high")) for row in rows
    ]
    beside = [column(row, "aisimulate") or None for row in rows]
    return Compared(folder, read_case(folder), read_points(folder), predicted, beside)


def read_points(folder: Path) -> list[Measured]:
    """Return the published points of a case, gaps between tokens as every other case counts them."""
    case = read_case(folder)
    with (folder / "points.csv").open(encoding="utf-8", newline="") as file:
        return [
            Measured(
                float(row["load"]),
                int(row["isl"]),
                int(row["osl"]),
                {
                    "tokens_per_s": _number(row.get("tokens_per_s")),
                    "itl": _number(row.get("itl_ms"), _itl_scale(case, int(row["osl"]))),
                    "ttft": _number(row.get("ttft_ms"), 1e-3),
                    PER_TOKEN: _number(row.get("tpot_ms"), 1e-3),
                },
                row.get("where", ""),
                *(
                    int(row[name]) if row.get(name) else None
                    for name in ("requests", "max_draft_len", "max_total_draft_tokens")
                ),
            )
            for row in csv.DictReader(file)
        ]


def _itl_scale(case: Case, osl: int) -> float:
    """Return the seconds that a published millisecond of ITL stands for."""
    return 1e-3 * (osl / (osl - 1) if case.itl_of_chunks else 1.0)


def _number(text: str | None, scale: float = 1.0) -> float | None:
    return float(text) * scale if text else None


def arguments_of(case: Case, point: Measured) -> list[str]:
    """Return the arguments of `predict-load` for a point."""
    batch = int(point.load) if case.max_batch_size == "load" else case.max_batch_size
    flags: dict[str, object] = {
        "engine-profile": case.engine_profile,
        "model": case.model,
        "gpu": case.gpu,
        "precision": case.precision,
        "kv-cache": case.kv_cache,
        "step-time": case.step_time,
        "max-batch-size": batch,
        "max-num-tokens": case.max_num_tokens,
        "calibration": case.calibration,
        **_speculative_flags(case, point),
    }
    if case.load == "trace":
        flags |= {"scenario": case.scenario_file}
    else:
        osl = point.osl if case.osl is None else case.osl.format(osl=point.osl)
        flags |= {"isl": case.isl or point.isl, "osl": osl}
    if case.load == "open_loop":
        flags |= {"rate": f"{point.load:g}", "duration": f"{(case.requests or 0) / point.load:g}"}
    elif case.load != "trace":
        flags |= {"concurrency": point.requests or f"{point.load:g}"}
    if case.load == "closed_loop" and case.requests is not None:
        flags["requests"] = max(case.requests, 3 * int(point.load))
    found = [text for name, value in flags.items() if value is not None for text in (f"--{name}", str(value))]
    return [*found, "--at-once"] if case.load == "at_once" else found


def _speculative_flags(case: Case, point: Measured) -> dict[str, object]:
    chosen, draft_len = case.speculative, point.max_draft_len
    if chosen is None or draft_len is None:
        return {}
    rates = None if chosen.acceptance is None else ",".join(f"{rate:g}" for rate in chosen.acceptance[:draft_len])
    return {
        "speculative": chosen.mode,
        "draft-model": chosen.draft_model,
        "max-draft-len": draft_len,
        "max-total-draft-tokens": point.max_total_draft_tokens,
        "acceptance": rates,
    }


def predict_point(case: Case, point: Measured) -> Predicted:
    """Run `predict-load` for a point.

    Raises:
        RuntimeError: The command failed.
    """
    arguments = arguments_of(case, point)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if case.scenario is not None:
            (folder / "scenario.yaml").write_text(yaml.safe_dump(case.scenario), encoding="utf-8")
            arguments += ["--scenario", str(folder / "scenario.yaml")]
        result = CliRunner().invoke(predict_load, [*arguments, "--json", "--out", str(folder / "run")])
        if result.exit_code:
            raise RuntimeError(f"predict-load {shlex.join(arguments)}: {result.output}") from result.exception
        level = json.loads(result.stdout)["levels"][0]
        values = _of_queue(folder / "run", case, point) if case.load == "at_once" else _of_level(level, case)
        command = shlex.join(["predict-load", *arguments]).replace(str(folder / "scenario.yaml"), "scenario.yaml")
    ends = level["intervals"] or {}
    names = {"tokens_per_s": "tokens_per_s", "itl": "itl_s", "ttft": "ttft_s"}
    scale = {name: values[name] / ends[key]["mean"] for name, key in names.items() if key in ends and name in values}
    return Predicted(
        command,
        values,
        {name: ends[names[name]]["low"] * ratio for name, ratio in scale.items()},
        {name: ends[names[name]]["high"] * ratio for name, ratio in scale.items()},
    )


def _of_level(level: dict[str, Any], case: Case) -> dict[str, float]:
    """Return the published statistics of a level as `predict-load` prints it."""
    values = {"tokens_per_s": level["output_tokens_per_s"]}
    for name, statistic in (("itl", case.itl), ("ttft", case.ttft), (PER_TOKEN, "mean")):
        if level[f"{name}_s"] is not None:
            values[name] = level[f"{name}_s"][statistic]
    return values


def _of_queue(run: Path, case: Case, point: Measured) -> dict[str, float]:
    """Return what published tables say of a queue: tokens over the whole time, and means over every reply and gap."""
    records = list(read_records(run))
    if case.full_batch_window:
        return _of_full_batch([record.token_times_s for record in records], int(point.load))
    gaps = sum(len(record.token_times_s) - 1 for record in records)
    return {
        "tokens_per_s": sum(record.output_tokens for record in records) / max(record.done_s for record in records),
        "itl": sum(record.token_times_s[-1] - record.token_times_s[0] for record in records) / max(1, gaps),
        "ttft": float(np.mean([record.token_times_s[0] - record.sent_s for record in records])),
    }


def _of_full_batch(replies: Sequence[Sequence[float]], batch: int) -> dict[str, float]:
    """Return the tokens a second while the batch was full, and the median gap of all replies.

    Args:
        replies: When the tokens of each reply left, in seconds.
        batch: Sequences of a full batch.
    """
    begin_s = sorted(times[0] for times in replies)[batch - 1]
    end_s = sorted(times[-1] for times in replies)[len(replies) - batch - 2]
    every = np.concatenate([np.asarray(times) for times in replies])
    made = np.count_nonzero((every > begin_s) & (every <= end_s))
    gaps = np.concatenate([np.diff(times) for times in replies])
    return {"tokens_per_s": float(made / (end_s - begin_s)), "itl": float(np.median(gaps))}


def write_comparison(found: Compared) -> None:
    """Write `comparison.csv`: what was published, predicted, the interval, and the command."""
    with (found.folder / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        columns = ("published", "predicted", "low", "high", "error_percent", "aisimulate")
        names = QUANTITIES if found.case.speculative is None else (*QUANTITIES, PER_TOKEN)
        writer.writerow(["load", "isl", "osl", *(f"{name}_{each}" for name in names for each in columns), "command"])
        for point, seen, other in zip(found.points, found.predicted, found.beside, strict=True):
            cells: list[str] = []
            for name in names:
                measured, value = point.values[name], seen.values.get(name)
                off = None if measured is None or value is None else 100 * (value / measured - 1)
                row = (measured, value, seen.low.get(name), seen.high.get(name), off, (other or {}).get(name))
                cells += ["" if each is None else f"{each:.5g}" for each in row]
            writer.writerow([f"{point.load:g}", point.isl, point.osl, *cells, seen.command])


def errors_of(found: Iterable[Compared], name: str, *, beside: bool = False) -> list[float]:
    """Return predicted over published, minus 1, in percent."""
    errors = []
    for each in found:
        for point, seen, other in zip(each.points, each.predicted, each.beside, strict=True):
            measured = point.values[name]
            value = (other or {}).get(name) if beside else seen.values.get(name)
            if measured is not None and value is not None and not _is_given(each.case, name):
                errors.append(100 * (value / measured - 1))
    return errors


def _is_given(case: Case, name: str) -> bool:
    """Whether the load alone decides a figure: tokens a second of an open loop."""
    return name == "tokens_per_s" and case.load in {"open_loop", "trace"}


def covered(found: Iterable[Compared]) -> tuple[int, int]:
    """Return how many published values lie in the stated interval, and how many there are."""
    inside = total = 0
    for each in found:
        for point, seen in zip(each.points, each.predicted, strict=True):
            for name in QUANTITIES:
                measured = point.values[name]
                if measured is None or name not in seen.low or _is_given(each.case, name):
                    continue
                total += 1
                inside += seen.low[name] <= measured <= seen.high[name]
    return inside, total


def tables_of(found: Sequence[Compared]) -> str:
    """Return the table: a line for each row of goals and for each of its cases."""
    lines = [
        "| data | points | tokens/s | ITL | TTFT | in the 90 % interval | aisimulate: tokens/s, ITL, TTFT |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in dict.fromkeys(each.case.row for each in found):
        cases = [each for each in found if each.case.row == row]
        lines.append(_line(f"**{row}**", cases, cases[0].case.wants))
        lines += [_line(_name(each), [each], {}) for each in cases]
    return "\n".join(lines) + "\n"


def speculation_table(found: Sequence[Compared]) -> str:
    """Return the errors of time per token and of the speed-up over the same deployment without speculation."""
    cases = [each for each in found if each.case.speculative is not None]
    if not cases:
        return ""
    lines = [
        "",
        "| speculative decoding | points | TPOT | speed-up | worst of each |",
        "| --- | --- | --- | --- | --- |",
    ]
    for each in cases:
        tpot, speedup = speculation_errors(each)
        worst = ", ".join(f"{max(errors, key=abs):+.1f} %" for errors in (tpot, speedup))
        goals = each.case.wants
        cells = [_cell(tpot, goals.get(PER_TOKEN), median=False), _cell(speedup, goals.get("speedup"), median=False)]
        lines.append(f"| {_name(each)} | {len(tpot)} | {cells[0]} | {cells[1]} | {worst} |")
    return "\n".join(lines) + "\n"


def speculation_errors(found: Compared) -> tuple[list[float], list[float]]:
    """Return the errors of the points with speculation, in percent: of TPOT, and of its ratio to that without."""
    pairs = [
        (point.values[PER_TOKEN], seen.values[PER_TOKEN], point.max_draft_len)
        for point, seen in zip(found.points, found.predicted, strict=True)
    ]
    (plain,) = ((published or 0.0, predicted) for published, predicted, draft_len in pairs if draft_len is None)
    drafted = [(published or 0.0, predicted) for published, predicted, draft_len in pairs if draft_len is not None]
    tpot = [100 * (predicted / published - 1) for published, predicted in drafted]
    speedup = [100 * ((plain[1] / predicted) / (plain[0] / published) - 1) for published, predicted in drafted]
    return tpot, speedup


def calibrated_table(rows: Sequence[Row]) -> str:
    """Return the table of what calibrations predict unseen; empty where none was fitted."""
    if not rows:
        return ""
    lines = ["", "| calibrated | points | tokens/s | ITL | TTFT (median) |", "| --- | --- | --- | --- | --- |"]
    for name, goals in GOALS.items():
        of_row = [row for row in rows if row.name == name]
        lines.append(_calibrated_line(f"**{name}**", of_row, goals))
        for folder in dict.fromkeys(row.deployment for row in of_row):
            of_folder = [row for row in of_row if row.deployment == folder]
            lines.append(_calibrated_line(f"[{folder}](../../validation/{folder})", of_folder, None))
    return "\n".join(lines) + "\n"


def _calibrated_line(name: str, rows: Sequence[Row], goals: tuple[float, ...] | None) -> str:
    errors = np.concatenate([row.errors for row in rows])
    known = [column[~np.isnan(column)] for column in errors.T]
    wanted = goals or (None,) * len(known)
    cells = [
        _cell(column.tolist(), goal, median=place == len(known) - 1)
        for place, (column, goal) in enumerate(zip(known, wanted, strict=True))
    ]
    return f"| {name} | {len(errors)} | {' | '.join(cells)} |"


def _name(each: Compared) -> str:
    folder = each.folder.relative_to(HERE).as_posix()
    return f"[{folder}](../../validation/{folder}){' (fitted)' if each.case.tuned else ''}"


def _line(name: str, cases: Sequence[Compared], wants: dict[str, float]) -> str:
    cells = [
        _cell(errors_of(cases, each), wants.get(each), median=each == "ttft" and cases[0].case.ttft_median)
        for each in QUANTITIES
    ]
    if all(each.case.tuned for each in cases):
        cells = [cell.replace("met)", "met in sample)").replace("missed)", "missed in sample)") for cell in cells]
    inside, total = covered(cases)
    share = f"{100 * inside / total:.0f} % of {total}" if total else "-"
    others = [errors_of(cases, each, beside=True) for each in QUANTITIES]
    beside = ", ".join(f"{np.abs(each).mean():.1f}" if each else "-" for each in others) if any(others) else "-"
    return f"| {name} | {sum(len(each.points) for each in cases)} | {' | '.join(cells)} | {share} | {beside} |"


def _cell(errors: list[float], goal: float | None, *, median: bool) -> str:
    if not errors:
        return "-"
    value = float((np.median if median else np.mean)(np.abs(errors)))
    verdict = "" if goal is None else f" ({goal:g} %: {'met' if value <= goal else 'missed'})"
    return f"{value:.1f} %, {np.mean(errors):+.1f}{verdict}"


def ask_aisimulate(python: str, case: Case, point: Measured) -> dict[str, float] | None:
    """Return what NVIDIA's simulator says of a point; None where it refuses the case, or takes too long.

    It takes lengths as they are on average; all its other settings are its defaults.
    """
    hardware, backend = AISIMULATE_GPUS.get(case.gpu), AISIMULATE_BACKENDS.get(case.engine_profile)
    if not case.aisimulate or hardware is None or backend is None:
        return None
    load: dict[str, Any] = {"type": "concurrency", "concurrency": int(point.load)}
    requests = 3 * int(point.load) if case.load == "closed_loop" else int(point.load)
    if case.load == "open_loop":
        load, requests = {"type": "poisson", "requests_per_second": point.load, "seed": 0}, 1000
    batch = int(point.load) if case.max_batch_size == "load" else case.max_batch_size
    worker: dict[str, Any] = {"scheduler": {"max_batched_tokens": case.max_num_tokens, "max_sequences": batch}}
    if case.precision == "fp8":
        worker["timing"] = {"gemm_quant_mode": "fp8_static", "kvcache_quant_mode": "fp8"}
    source = {"type": "synthetic", "input_tokens": point.isl, "output_tokens": point.osl}
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_geometry(case.model)), encoding="utf-8")
        engine = {"model": folder, "hardware": hardware, "backend": backend, "workers": {"aggregated": worker}}
        config = {"traffic": {"source": source, "load": load, "stop": {"requests": requests}}, "engine": engine}
        (Path(folder) / "aisimulate.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        command = [python, "-m", "aisimulate", "predict", "-c", f"{folder}/aisimulate.yaml", "--format", "json"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=AISIMULATE_TIMEOUT_S, check=True, cwd=folder
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
    found = json.loads(done.stdout.strip().splitlines()[-1])
    itl = found["median_itl_ms" if case.itl == "p50" else "mean_itl_ms"]
    return {
        "tokens_per_s": found["output_throughput_tok_s"],
        "itl": itl * 1e-3,
        "ttft": found["mean_ttft_ms"] * 1e-3,
    }


def _geometry(name: str) -> dict[str, Any]:
    model = model_named(name)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.attention_heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "max_position_embeddings": model.max_position_embeddings,
        "rms_norm_eps": model.norm_epsilon,
        "vocab_size": model.vocab_size,
        "torch_dtype": "bfloat16",
    }


def page_of(tables: str, found: Sequence[Compared]) -> str:
    """Return the page of the documentation."""
    sources = "\n".join(f"- {each}" for each in sorted({f"{one.case.source} ({one.case.licence})" for one in found}))
    inside, total = covered(each for each in found if not each.case.tuned)
    counted = sum(each is not None for one in found for each in one.beside)
    beside = f"\nNVIDIA's aisimulate, with its defaults, was asked for {counted} of the points.\n"
    share = "-" if not total else f"{100 * inside / total:.0f} % of {total}"
    missed = (HERE / "missed.md").read_text(encoding="utf-8")
    return PAGE_TEXT.format(
        missed=missed, date=date.today().isoformat(), tables=tables, share=share, sources=sources, beside=beside
    )


PAGE_TEXT = """# Predicted against published

Written by `make fidelity` on {date}; do not edit. Each cell: the mean absolute error in percent, the mean error with
its sign, and the goal where there is one. Each case is a folder under `validation/`: points as published, the command
that predicts each, the prediction with its interval, the comparison. `(fitted)`: the profile's numbers were fitted to
these very points, and a goal is met or missed in sample; of all others nothing was used.

{tables}
Of the points that nothing was fitted to, {share} published values lie in their stated 90 % interval.
{beside}
{missed}
## Sources

{sources}
"""


if __name__ == "__main__":
    raise SystemExit(main())
