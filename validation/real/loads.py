"""The loads: what is calibrated on, what is predicted unseen, and how each is measured."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from loadtest.metrics import LevelSummary, summarize
from loadtest.results import read_records, read_run, read_samples
from loadtest.scenario import Scenario
from loadtest.traffic import ConversationSampler, plans_of
from validation.fidelity.cases import Case, Measured
from validation.fidelity.predict import arguments_of
from validation.real.commands import ours
from validation.real.server_process import Server
from validation.real.settings import (
    BURST_CV,
    BURST_SECONDS,
    BURST_SEED,
    CALIBRATION_SECONDS,
    CLOSED_REQUESTS,
    LIMITS,
    ROUNDS,
    UNSEEN_REQUESTS,
    CalibrationRun,
    Shape,
    UnseenLoad,
)

CASE, POINTS = "case.yaml", "points.csv"
TRACE, SCENARIO = "bursts.csv", "bursts.yaml"
SEEDS = 100  # of which half offer at least the mean rate


class Target(NamedTuple):
    """The server that loads go to, and where they come from."""

    server: Server
    tokenizer: Path
    core: int

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags of run-load and find-knee that name it."""
        at = ("--url", self.server.url, "--protocol", "openai-completions", "--model", self.server.model)
        return (*at, "--tokenizer", str(self.tokenizer))


def run_once(target: Target, out: Path, *words: object) -> None:
    """Run a load, unless an earlier run of the chain has."""
    if not out.is_dir():
        ours("run-load", *target.flags, *words, "--out", out, core=target.core)


def levels_of(run: Path) -> list[LevelSummary]:
    """Return the figures of a run."""
    return summarize(read_run(run), list(read_records(run)), read_samples(run)).levels


def measure_calibration(target: Target, out: Path, runs: tuple[CalibrationRun, ...]) -> list[Path]:
    """Measure every calibration run and return their folders; open loops at a share of what the closed one carried.

    The closed loops are measured once more at the end: what the machine changes meanwhile widens the intervals.
    """
    for number, run in enumerate(runs):
        run_once(target, out / f"{number}-closed", *_closed_flags(run))
    largest = capacity_tokens_per_s(out)
    for number, (shape, _, share) in enumerate(runs):
        flags = ("--isl", shape.isl, "--osl", shape.osl, "--duration", CALIBRATION_SECONDS)
        run_once(target, out / f"{number}-open", *flags, "--rate", f"{rate_per_s(shape, share, largest):.3g}")
    for number, run in enumerate(runs):
        run_once(target, out / f"{number}-again", *_closed_flags(run))
    return [out / f"{number}-{load}" for number in range(len(runs)) for load in ("closed", "open", "again")]


def _closed_flags(run: CalibrationRun) -> tuple[object, ...]:
    requests = max(CLOSED_REQUESTS, ROUNDS * run.users)
    return ("--isl", run.shape.isl, "--osl", run.shape.osl, "--requests", requests, "--concurrency", run.users)


def capacity_tokens_per_s(out: Path) -> float:
    """Return the most reply tokens a second that a closed loop of the calibration reached."""
    return max(level.output_tokens_per_s or 0.0 for run in out.glob("*-closed") for level in levels_of(run))


def rate_per_s(shape: Shape, share: float, capacity: float) -> float:
    """Return requests a second at a share of the capacity, prompts weighed by what a token of each costs.

    A prompt's tokens are read together: here one of a reply costs as much as some eight of a prompt.
    """
    return share * capacity / (shape.osl + shape.isl / 8)


def write_case(
    load: UnseenLoad, folder: Path, *, capacity: float, model: str, gpu: str, calibration: str | None
) -> None:
    """Write a case, its points still without figures, and the trace where it has one."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = {
        "row": "A real vLLM on a CPU, calibrated on other loads, measured here",
        "kind": "measured",
        "engine_profile": "vllm-v1",
        "model": model,
        "gpu": gpu,
        "precision": "fp32",
        "max_batch_size": LIMITS.max_batch_size,
        "max_num_tokens": LIMITS.max_num_tokens,
        "load": load.load,
        "requests": UNSEEN_REQUESTS,
        "itl": "p50",
        "ttft": "p50",
        "tuned": False,
        "wants": {"tokens_per_s": 5, "itl": 8, "ttft": 15},
        "source": "make real: vLLM for CPUs on the machine of machine.yaml",
        "licence": "Apache-2.0",
    }
    if calibration is not None:
        values["calibration"] = calibration
    values |= {name: text for name, text in (("isl", load.isl), ("osl", load.osl)) if text and load.load != "trace"}
    points = [
        Measured(at if load.load == "closed_loop" else rate_per_s(shape, at, capacity), *shape, {}, "")
        for at, shape in load.points
    ]
    if load.load == "trace":
        values["scenario_file"] = SCENARIO
        points = [_write_trace(load, folder, points[0].load)]
    (folder / CASE).write_text(yaml.safe_dump(values, sort_keys=False, width=120), encoding="utf-8")
    write_points(folder, points)


def _write_trace(load: UnseenLoad, folder: Path, rate: float) -> Measured:
    """Write a trace of bursts with lengths of its own; return its point with what its requests come to."""
    scenario = Scenario.model_validate(
        {
            "name": "bursts",
            "arrivals": {"process": "gamma", "rate_per_s": rate, "burstiness": BURST_CV, "duration_s": BURST_SECONDS},
            "lengths": {"isl": load.isl, "osl": load.osl},
            "seed": BURST_SEED,
        }
    )
    (plan,) = plans_of(scenario)
    sampler = ConversationSampler(scenario)
    drawn = ((arrival.at_s, sampler.draw(number).exchanges[0]) for number, arrival in enumerate(plan.arrivals))
    rows = [(at_s, request.prompt_tokens, request.reply_tokens) for at_s, request in drawn]
    with (folder / TRACE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["at_s", "isl", "osl"])
        writer.writerows((f"{at_s:.4f}", isl, osl) for at_s, isl, osl in rows)
    replay = {"name": "bursts", "arrivals": {"process": "trace", "path": TRACE}, "seed": BURST_SEED}
    (folder / SCENARIO).write_text(yaml.safe_dump(replay, sort_keys=False), encoding="utf-8")
    isl, osl = (round(float(np.mean([row[place] for row in rows]))) for place in (1, 2))
    return Measured(len(rows) / BURST_SECONDS, isl, osl, {}, "")


def shortened(plan: Path, target: Path, seconds: float) -> Path:
    """Write the scenario that verifies a plan, cut to some seconds, and return its path.

    A short draw may offer less than the plan's rate, and would verify nothing: the first seed that offers it is taken.
    """
    values = yaml.safe_load(plan.read_text(encoding="utf-8"))
    values["arrivals"]["duration_s"] = seconds
    wanted = float(values["arrivals"]["rate_per_s"])
    for seed in range(SEEDS):
        scenario = Scenario.model_validate({**values, "seed": seed})
        (level,) = plans_of(scenario)
        if len(level.arrivals) >= wanted * seconds:
            break
    target.write_text(yaml.safe_dump({**values, "seed": seed}, sort_keys=False), encoding="utf-8")
    return target


def write_points(folder: Path, points: list[Measured]) -> None:
    """Write the points of a case; what is not measured yet stays empty."""
    with (folder / POINTS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["load", "isl", "osl", "tokens_per_s", "itl_ms", "ttft_ms", "where"])
        for point in points:
            figures = [point.values.get(name) for name in ("tokens_per_s", "itl", "ttft")]
            scaled = [
                None if value is None else value * scale for value, scale in zip(figures, (1, 1e3, 1e3), strict=True)
            ]
            texts = ["" if value is None else f"{value:.5g}" for value in scaled]
            writer.writerow([f"{point.load:.4g}", point.isl, point.osl, *texts, point.where])


def measured(target: Target, case: Case, points: list[Measured], out: Path) -> Iterator[Measured]:
    """Measure every point of a case as it was predicted, with the same flags of the load."""
    for number, point in enumerate(points):
        run = out / str(number)
        run_once(target, run, *load_flags(arguments_of(case, point)))
        (level,) = levels_of(run)
        assert level.itl_s is not None
        assert level.ttft_s is not None
        values: dict[str, float | None] = {
            "tokens_per_s": level.output_tokens_per_s,
            "itl": level.itl_s.p50,
            "ttft": level.ttft_s.p50,
        }
        issues = ", ".join(issue.code for issue in read_run(run).validity_issues)
        where = f"run-load, {level.requests} requests, {level.errors} errors" + (
            f"; not valid: {issues}" if issues else ""
        )
        yield point._replace(values=values, where=where)


def load_flags(arguments: list[str]) -> list[str]:
    """Return those flags of a predict-load command that are run-load's too: what is sent.

    >>> load_flags(["--gpu", "machine.yaml", "--isl", "96", "--concurrency", "4"])
    ['--isl', '96', '--concurrency', '4']
    """
    sent = {"--isl", "--osl", "--concurrency", "--rate", "--duration", "--requests", "--scenario"}
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    return [word for flag, value in pairs if flag in sent for word in (flag, value)]
