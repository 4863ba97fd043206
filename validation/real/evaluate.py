"""Measured beside predicted: the table, the verdict on the goals, and the chart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from engines.files import Strict
from validation.fidelity.comparison import Compared, covered, errors_of
from validation.real.settings import COVERAGE, GOALS

WORDS = {"tokens_per_s": "tokens/s", "itl": "ITL p50, ms", "ttft": "TTFT p50, ms"}
_SCALES = {"tokens_per_s": 1.0, "itl": 1e3, "ttft": 1e3}


class Outcome(Strict):
    """How near predictions came on unseen loads.

    Attributes:
        errors_percent: Mean absolute errors by quantity; tokens a second of closed loops alone, which decide them.
        goals_percent: What was aimed at.
        inside: Measured values within their 90 % interval, of `intervals`.
    """

    errors_percent: dict[str, float]
    goals_percent: dict[str, float]
    inside: int
    intervals: int

    @property
    def met(self) -> dict[str, bool]:
        """Which goals were met, the coverage of the intervals among them."""
        found = {name: self.errors_percent[name] <= goal for name, goal in self.goals_percent.items()}
        return found | {"coverage": COVERAGE[0] <= self.inside / self.intervals <= COVERAGE[1]}


def outcome_of(found: Sequence[Compared]) -> Outcome:
    """Return how near the predictions of some cases came."""
    inside, total = covered(found)
    by_name = {name: errors_of(found, name) for name in GOALS}
    errors = {name: float(np.mean(np.abs(each))) for name, each in by_name.items() if each}
    goals = {name: GOALS[name] for name in errors}
    return Outcome(errors_percent=errors, goals_percent=goals, inside=inside, intervals=total)


def table_of(found: Sequence[Compared]) -> str:
    """Return every point, measured and predicted, as Markdown."""
    lines = ["| load | prompt/reply | " + " | ".join(f"{word}: measured, predicted" for word in WORDS.values()) + " |"]
    lines.append("|" + " --- |" * (2 + len(WORDS)))
    for each in found:
        for point, seen in zip(each.points, each.predicted, strict=True):
            cells = [_cell(point.values.get(name), seen.values, seen.low, seen.high, name) for name in WORDS]
            lines.append(f"| {_load(each, point.load)} | {point.isl}/{point.osl} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(
    measured: float | None, values: dict[str, float], low: dict[str, float], high: dict[str, float], name: str
) -> str:
    if measured is None or name not in values:
        return "-"
    scale = _SCALES[name]
    text = f"{measured * scale:.4g}, {values[name] * scale:.4g} ({100 * (values[name] / measured - 1):+.1f} %"
    if name in low:
        text += f"; {low[name] * scale:.3g} to {high[name] * scale:.3g}"
        text += "" if low[name] <= measured <= high[name] else ", outside"
    return text + ")"


def _load(case: Compared, load: float) -> str:
    name = case.folder.name
    unit = {"closed_loop": "users", "open_loop": "requests/s", "trace": "requests/s in bursts"}[case.case.load]
    return f"{name}: {load:.3g} {unit}"


def verdicts_of(outcome: Outcome) -> Iterator[str]:
    """Yield one line for each goal."""
    for name, goal in outcome.goals_percent.items():
        verdict = "met" if outcome.met[name] else "missed"
        yield f"{WORDS[name].removesuffix(', ms')}: {outcome.errors_percent[name]:.1f} % (goal {goal:g} %: {verdict})"
    share = outcome.inside / outcome.intervals
    verdict = "met" if outcome.met["coverage"] else "missed"
    low, high = COVERAGE
    yield (
        f"90 % intervals hold {outcome.inside} of {outcome.intervals}, {share:.0%} (goal {low:.0%} to {high:.0%}: "
        f"{verdict})"
    )


def draw(found: Sequence[Compared], path: Path, title: str) -> None:
    """Draw predicted against measured, a panel for each quantity, the interval as a bar."""
    import matplotlib as mpl  # noqa: PLC0415 (slow to import)

    mpl.use("svg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(WORDS), figsize=(11, 4), layout="constrained")
    for axis, (name, word) in zip(axes, WORDS.items(), strict=True):
        for each in found:
            rows = [
                (point.values[name], seen.values[name], seen.low.get(name), seen.high.get(name))
                for point, seen in zip(each.points, each.predicted, strict=True)
                if point.values.get(name) is not None and name in seen.values
            ]
            if not rows:
                continue
            measured, predicted, low, high = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
            ends = np.array([predicted - low, high - predicted]) * _SCALES[name]
            scaled = (measured * _SCALES[name], predicted * _SCALES[name])
            axis.errorbar(*scaled, yerr=ends, fmt="o", label=each.folder.name, capsize=2, markersize=4)
        ends = np.array(axis.get_xlim())
        axis.plot(ends, ends, color="grey", linewidth=0.8)
        axis.set(xlabel=f"{word}, measured", ylabel=f"{word}, predicted")
    axes[0].legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
