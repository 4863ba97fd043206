"""Measured power: folders `<engine>/<GPU>/<model>/<workload>` with `energy.yaml` and `points.csv`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from engines.files import Strict, validate
from engines.spec import PlacedModel, PowerPrior, gpu_named, model_named
from engines.steptime import PowerModel, StepShape

HERE = Path(__file__).parent
COMPARISON = "comparison.csv"


class EnergyCase(Strict):
    """`energy.yaml`: a deployment under a steady batch.

    Attributes:
        isl: Mean prompt length, tokens; the source publishes none, so it is assumed.
        reply_cv: Coefficient of variation of reply lengths, which gives the mean context of a steady batch.
        steps: Case of `validation/` with the same points, whose predicted tokens a second are taken for the error of
            `predict-load`'s energy; None: step times there are not predicted.
    """

    model: str
    gpu: str
    precision: str
    isl: int
    reply_cv: float
    steps: str | None = None
    source: str
    licence: str


class EnergyPoint(NamedTuple):
    """A measured steady batch of one GPU."""

    batch: float
    osl: float
    tokens_per_s: float
    power_w: float
    energy_j_per_token: float


class Measured(NamedTuple):
    """A case with its points."""

    folder: Path
    case: EnergyCase
    points: list[EnergyPoint]

    @property
    def name(self) -> str:
        """The folder from `validation/energy`."""
        return str(self.folder.relative_to(HERE))


def read_cases() -> list[Measured]:
    """Return every case; errors as `files.validate`."""
    return [_read(path.parent) for path in sorted(HERE.rglob("energy.yaml"))]


def _read(folder: Path) -> Measured:
    text = (folder / "energy.yaml").read_text(encoding="utf-8")
    case = validate(yaml.safe_load(text), EnergyCase, where=str(folder))
    with (folder / "points.csv").open(encoding="utf-8", newline="") as file:
        points = [EnergyPoint(*(float(row[name]) for name in EnergyPoint._fields)) for row in csv.DictReader(file)]
    return Measured(folder, case, points)


def model_of(case: EnergyCase, prior: PowerPrior) -> PowerModel:
    """Return the power model of a case's deployment."""
    return PowerModel(PlacedModel(model_named(case.model), gpu_named(case.gpu), case.precision, "16bit"), prior=prior)


def watts(case: EnergyCase, points: Sequence[EnergyPoint], prior: PowerPrior) -> list[float]:
    """Return the predicted watts of each point, at its tokens a second."""
    model = model_of(case, prior)
    found = []
    for point in points:
        seconds = point.batch / point.tokens_per_s
        found.append(model.joules(_mean_step(case, point), seconds) / seconds)
    return found


def _mean_step(case: EnergyCase, point: EnergyPoint) -> StepShape:
    """Return the mean iteration of a steady batch; its counts are means, not whole numbers.

    A sequence in a steady batch is seen in proportion to its length: its reply so far has half of E[osl^2] / E[osl].
    """
    prompts = point.batch / point.osl
    context = case.isl + point.osl * (1 + case.reply_cv**2) / 2
    return StepShape(
        decode_sequences=point.batch,  # type: ignore[arg-type]
        decode_context_tokens=point.batch * context,  # type: ignore[arg-type]
        prefill_sequences=prompts,  # type: ignore[arg-type]
        prefill_tokens=prompts * case.isl,  # type: ignore[arg-type]
        prefill_attended_tokens=prompts * case.isl * (case.isl + 1) / 2,  # type: ignore[arg-type]
    )


def predicted_rates(case: EnergyCase) -> dict[float, float]:
    """Return the tokens a second that `predict-load` gives, by batch; empty if the case has none."""
    if case.steps is None:
        return {}
    with (HERE.parent / case.steps / COMPARISON).open(encoding="utf-8", newline="") as file:
        return {float(row["load"]): float(row["tokens_per_s_predicted"]) for row in csv.DictReader(file)}
