"""How far predictions are from published measurements: one table, one chart, the misses included (`make fidelity`).

Every figure is of points that the fit behind it has not seen: a whole shape of prompt and reply left out, all but six
points left out, another model, or no fit at all. The rows are copies of published tables; each names its source.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from engines.build.pipeline import emulated_manifest
from engines.calibration import LoadGenerator
from engines.emulator.settings import settings_of
from engines.files import Document, MadeBy
from engines.planning.plan import make_plan
from engines.planning.recipe import ask
from engines.steptime.source import step_time_for
from loadtest.calibration.calibrate import Request, errors_of, fit_best, predicted_logs, waves_of
from loadtest.calibration.fit import PARAMETERS, Array, FitContext, observe
from loadtest.calibration.measured_points import Deployment, Point, read_points

HERE = Path(__file__).parent
ROWS = HERE / "published.csv"
DOCS = HERE.parent.parent / "docs"
HEAD = Document(made_by=MadeBy(command="make fidelity", version="0"))
SIX, DRAWS, SEED = 6, 5, 20261124
NO_FIT = np.log([1.0, 1.0, 1.0, 1.0, 1e-12, 1e-12, 1e-12, 1e-12, 1.0])  # factors of 1 and no host: the tables alone
NIM = (("h100-sxm-80gb", "fp8"), ("a100-sxm-80gb", "fp16"))
STATIC = (("h100-sxm-80gb", "fp8"), ("h100-sxm-80gb", "fp16"), ("a100-sxm-80gb", "fp16"))


class Result(NamedTuple):
    """Points of one deployment, and what was predicted of them unseen; logs of shape (points, 3)."""

    row: str
    deployment: str
    points: list[Point]
    seen: Array


class Goal(NamedTuple):
    """A row of the table: what the issue asks for, in percent; None: not asked."""

    row: str
    tokens: float | None
    itl: float | None
    ttft: float | None


GOALS = (
    Goal("served Llama-3-8B, calibrated, unseen shape", 3, 4, 12),
    Goal("served Llama-3-8B, calibrated on any 6 points", 6, 7, 20),
    Goal("static batch, calibrated on another model of the size", None, 5, 8),
    Goal("offline maximum load, uncalibrated silicon, H100 fp8", 3, None, None),
)


def main() -> int:
    """Work everything out, write table and chart, print the table."""
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        waiting = [pool.submit(unseen_shape, *each, shape) for each in NIM for shape in shapes_of(*each)]
        waiting += [pool.submit(six_points, *each, draw) for each in NIM for draw in range(DRAWS)]
        waiting += [pool.submit(other_model, *each, first, second) for each in STATIC for first, second in PAIRS]
        waiting += [pool.submit(max_load)]
        results = [found.result() for found in waiting]
    text = table_of(results)
    sys.stdout.write(text)
    (DOCS / "measurements").mkdir(exist_ok=True)
    (DOCS / "measurements" / "fidelity.md").write_text(page_of(text), encoding="utf-8")
    draw(results).savefig(DOCS / "images" / "fidelity.svg", format="svg", metadata={"Date": None, "Creator": None})
    return 0


PAIRS = (("mistral-7b", "gpt-j-6b"), ("gpt-j-6b", "mistral-7b"))


def unseen_shape(gpu: str, precision: str, shape: tuple[int, int]) -> Result:
    """Fit a served deployment without one shape of prompt and reply; predict that shape."""
    points = points_of("llama-3-8b", gpu, precision, "concurrency")
    left_out = [point for point in points if point.shape == shape]
    kept = [point for point in points if point.shape != shape]
    return _fit_and_predict(GOALS[0].row, f"{gpu} {precision}", "llama-3-8b", gpu, precision, kept, left_out)


def six_points(gpu: str, precision: str, draw_number: int) -> Result:
    """Fit a served deployment to six points drawn at random; predict all others."""
    points = points_of("llama-3-8b", gpu, precision, "concurrency")
    rng = np.random.default_rng((SEED, draw_number))
    chosen = set(rng.choice(len(points), SIX, replace=False).tolist())
    kept = [point for place, point in enumerate(points) if place in chosen]
    others = [point for place, point in enumerate(points) if place not in chosen]
    return _fit_and_predict(GOALS[1].row, f"{gpu} {precision}", "llama-3-8b", gpu, precision, kept, others)


def other_model(gpu: str, precision: str, model: str, unseen: str) -> Result:
    """Fit the bare engine's static batches of one model; predict another model's with the same factors."""
    kept = points_of(model, gpu, precision, "static_batch")
    others = points_of(unseen, gpu, precision, "static_batch")
    request = _request(model, gpu, precision, kept, source="roofline")
    best, found, _ = fit_best(request, kept)
    elsewhere = replace(request, manifest=_manifest(unseen, gpu, precision, others, source="roofline"))
    best = best._replace(waves=waves_of(elsewhere.manifest)[waves_of(request.manifest).index(best.waves)])
    seen = predicted_logs(elsewhere, best, found.logs, others)
    return Result(GOALS[2].row, f"{gpu} {precision}, {unseen} by {model}", others, seen)


def max_load() -> Result:
    """Predict offline maximum load from the tables alone."""
    points = points_of("mistral-7b", "h100-sxm-80gb", "fp8", "max_load")
    seen = []
    for point in points:
        manifest = _manifest("mistral-7b", "h100-sxm-80gb", "fp8", [point], max_batch_size=2048, max_num_tokens=8192)
        seen.append(observe(FitContext(settings_of(manifest), step_time_for(manifest), LoadGenerator()), point, NO_FIT))
    return Result(GOALS[3].row, "h100-sxm-80gb fp8, mistral-7b", points, np.array(seen))


def shapes_of(gpu: str, precision: str) -> list[tuple[int, int]]:
    """Return the shapes a served deployment was measured at."""
    return sorted({point.shape for point in points_of("llama-3-8b", gpu, precision, "concurrency")})


def points_of(model: str, gpu: str, precision: str, load: str) -> list[Point]:
    """Return the published points of a deployment under one kind of load."""
    points, _ = read_points(ROWS, Deployment(model, gpu, precision))
    return [point for point in points if point.load == load]


def table_of(results: Sequence[Result]) -> str:
    """Return the errors against their goals, a line for each row of the table and for each deployment of it."""
    lines = [
        "| data (predicted unseen) | points | tokens/s | ITL | TTFT (median) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for goal in GOALS:
        of_row = [result for result in results if result.row == goal.row]
        lines.append(_line(f"**{goal.row}**", of_row, goal))
        names = dict.fromkeys(result.deployment for result in of_row)
        lines += [_line(name, [result for result in of_row if result.deployment == name], None) for name in names]
    lines.append(
        "| official open-loop Triton table, H100 BF16 | 0 | - | no rows at hand; goal 5 % | no rows; goal 6 % |"
    )
    return "\n".join(lines) + "\n"


def page_of(table: str) -> str:
    """Return the page of the documentation."""
    sources = sorted({row["source_url"] for row in csv.DictReader(ROWS.open(encoding="utf-8"))})
    cited = "\n".join(f"- {source}" for source in sources)
    return f"""# Predicted against published

Written by `make fidelity` on {date.today().isoformat()}; do not edit. Mean absolute percentage errors (for TTFT the
median) on points that the fit had not seen, and in parentheses the goal where there is one: `met` or `missed`.

{table}
![predicted against measured](../images/fidelity.svg)

- *Unseen shape*: three fits for each deployment, each without one shape of prompt and reply, which it then predicts.
- *Any 6 points*: {DRAWS} draws of six points for each deployment (seed {SEED}); all other points predicted.
- *Static batch*: factors of one model's table on another's, both ways, over the data-sheet source: measured kernels
  have nothing of GPT-J's heads of 256.
- *Maximum load*: no fit, no host; TensorRT-LLM's own counts of requests as its performance pages state them.

The rows are in `tests/fidelity/published.csv`, from:

{cited}
"""


def draw(results: Sequence[Result]) -> Figure:
    """Draw predicted against measured, log-log: a panel for each quantity, a colour a row, a mark a GPU."""
    figure = Figure(figsize=(13.5, 5.4), facecolor="white")
    panels = figure.subplots(1, 3)
    figure.subplots_adjust(left=0.06, right=0.985, top=0.86, bottom=0.3, wspace=0.24)
    colours = dict(zip((goal.row for goal in GOALS), ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd"), strict=True))
    for place, (panel, name) in enumerate(zip(panels, ("tokens/s", "ITL, s", "TTFT, s"), strict=True)):
        lowest, highest = np.inf, -np.inf
        for row, colour in colours.items():
            for gpu, marker in (("h100", "o"), ("a100", "^")):
                of_both = [each for each in results if each.row == row and each.deployment.startswith(gpu)]
                pairs = np.concatenate([np.empty((0, 2)), *(_pairs(result, place) for result in of_both)])
                if len(pairs):
                    name_of = f"{row} ({gpu.upper()})"
                    panel.plot(*np.exp(pairs).T, marker, ms=3.5, alpha=0.55, color=colour, mew=0, label=name_of)
                    lowest, highest = min(lowest, np.exp(pairs.min())), max(highest, np.exp(pairs.max()))
        line = np.array([lowest / 1.3, highest * 1.3])
        panel.plot(line, line, color="#444444", lw=1)
        panel.fill_between(line, line / 1.1, line * 1.1, color="#444444", alpha=0.12, lw=0)
        panel.set(xscale="log", yscale="log", xlabel=f"published {name}", ylabel=f"predicted {name}", title=name)
        panel.grid(alpha=0.25)
    handles, labels = panels[0].get_legend_handles_labels()
    more = panels[2].get_legend_handles_labels()
    known = dict(zip(labels + more[1], handles + more[0], strict=True))
    figure.legend(known.values(), known.keys(), loc="lower center", ncol=2, frameon=False, fontsize=9)
    figure.suptitle("Predicted, unseen by the fit, against published; the band is 10 % either side", x=0.06, ha="left")
    return figure


def _pairs(result: Result, place: int) -> Array:
    measured = np.array([point.logs for point in result.points])[:, place]
    known = ~np.isnan(measured)
    return np.stack([measured[known], result.seen[known, place]], axis=1)


def _fit_and_predict(
    row: str, deployment: str, model: str, gpu: str, precision: str, kept: list[Point], others: list[Point]
) -> Result:
    request = _request(model, gpu, precision, kept + others)
    best, found, _ = fit_best(request, kept)
    return Result(row, deployment, others, predicted_logs(request, best, found.logs, others))


def _request(model: str, gpu: str, precision: str, points: list[Point], source: str = "silicon") -> Request:
    static = points[0].load != "concurrency"
    return Request(
        _manifest(model, gpu, precision, points, source=source),
        tuple(points),
        LoadGenerator(),
        32768 if static else None,
    )


def _manifest(model: str, gpu: str, precision: str, points: Sequence[Point], **changed: Any) -> Any:
    longest = max(point.isl + point.osl for point in points)
    asked = ask(
        None,
        {
            "model": model,
            "gpu": gpu,
            "precision": precision,
            "step_time": changed.get("source", "silicon"),
            "limits.max_batch_size": changed.get("max_batch_size", 512),
            "limits.max_num_tokens": changed.get("max_num_tokens", 32768),
            "limits.max_seq_len": longest if model != "gpt-j-6b" else min(longest, 2048),
            "workload.longest_input_tokens": max(point.isl for point in points),
            "workload.longest_output_tokens": max(point.osl for point in points),
        },
    )
    return emulated_manifest(make_plan(asked, head=HEAD), asked.recipe)


def _line(name: str, results: Sequence[Result], goal: Goal | None) -> str:
    errors = np.abs(np.concatenate([errors_of(result.seen, result.points) for result in results])) * 100
    tokens, itl, ttft = (_statistic(errors[:, place], place) for place in range(len(errors.T)))
    wanted = (goal.tokens, goal.itl, goal.ttft) if goal else (None, None, None)
    cells = (_cell(value, most) for value, most in zip((tokens, itl, ttft), wanted, strict=True))
    return f"| {name} | {len(errors)} | {' | '.join(cells)} |"


def _statistic(errors: Array, place: int) -> float | None:
    known = errors[~np.isnan(errors)]
    if not len(known):
        return None
    return float(np.median(known) if place == len(("tokens", "itl")) else known.mean())


def _cell(value: float | None, goal: float | None) -> str:
    if value is None:
        return "-"
    if goal is None:
        return f"{value:.1f} %"
    return f"{value:.1f} % ({goal:g} %: {'met' if value <= goal else 'missed'})"


if __name__ == "__main__":
    mpl.use("agg")
    assert len(NO_FIT) == len(PARAMETERS)
    raise SystemExit(main())
