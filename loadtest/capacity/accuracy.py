"""Accuracy that a candidate loses against the demand's baseline, from the results of `evaluate-engine`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from engines.accuracy import AccuracyLoss, losses
from engines.errors import UserError
from engines.files import Source, Strict, source_of
from engines.manifest import MANIFEST_NAME, AccuracyResult, EngineManifest, read_manifest
from engines.spec import ModelSpec, resolve_model
from loadtest.capacity.inputs import Demand

SIZES = {
    "layers",
    "hidden_size",
    "intermediate_size",
    "attention_heads",
    "kv_heads",
    "head_size",
    "vocab_size",
    "qk_norm",
    "tied_embeddings",
}


class CandidateAccuracy(Strict):
    """What a candidate loses.

    Attributes:
        losses: Of each task that both engines answered; empty for the baseline, which loses nothing.
        engine: Folder of the evaluated engine, as the demand names it.
    """

    losses: tuple[AccuracyLoss, ...]
    engine: str

    @property
    def worst(self) -> AccuracyLoss | None:
        """The task that loses most; None for the baseline."""
        return max(self.losses, key=lambda each: each.loss, default=None)

    @property
    def loss(self) -> float:
        """The loss of the task that loses most; 0 for the baseline."""
        return 0.0 if self.worst is None else self.worst.loss


def ranked_loss(accuracy: CandidateAccuracy | None) -> float:
    """Return the loss that candidates are compared by; an unknown one counts as the largest."""
    return math.inf if accuracy is None else accuracy.loss


def interval_text(loss: AccuracyLoss) -> str:
    """Return both ends of a loss."""
    return f"{loss.low:.3f} to {loss.high:.3f}"


class _Evaluated(NamedTuple):
    name: str
    manifest: EngineManifest
    results: tuple[AccuracyResult, ...]
    source: Source


class Evaluations(NamedTuple):
    """The demand's evaluated engines, the baseline first."""

    engines: tuple[_Evaluated, ...]
    max_loss: float | None

    @property
    def sources(self) -> tuple[Source, ...]:
        """The manifests that the results were read from."""
        return tuple(each.source for each in self.engines)

    def of(self, precision: str, kv_cache: str | None) -> CandidateAccuracy | None:
        """Return the accuracy of a precision; None if no engine with it was evaluated.

        Args:
            kv_cache: Format of the KV cache; None: unknown, and only one evaluated engine may have the precision.
        """
        alike = [
            each
            for each in self.engines
            if each.manifest.precision.name == precision and kv_cache in (None, each.manifest.precision.kv_cache)
        ]
        if len(alike) != 1:
            return None
        return self._compared(alike[0])

    def refusal(self, found: CandidateAccuracy | None) -> str | None:
        """Return why a candidate is refused; None if it is not."""
        limit = self.max_loss
        if limit is None:
            return None
        if found is None:
            return (
                f"objectives.max_accuracy_loss is {limit:g}, and no engine of this precision and KV cache format was "
                "evaluated; evaluate-engine measures one, accuracy.engines names it"
            )
        for wanted, text in (("missed", "loses"), ("undecided", "may lose")):
            tasks = [each for each in found.losses if each.verdict(limit) == wanted]
            if tasks:
                worst = max(tasks, key=lambda each: each.loss)
                more = "; more questions would decide" if wanted == "undecided" else ""
                return (
                    f"{text} more than objectives.max_accuracy_loss, {limit:g}: {worst.loss:.3f} of {worst.task} "
                    f"({interval_text(worst)}, {worst.questions:,} questions){more}"
                )
        return None

    def _compared(self, evaluated: _Evaluated) -> CandidateAccuracy:
        baseline = self.engines[0]
        found = () if evaluated is baseline else losses(baseline.results, evaluated.results)
        return CandidateAccuracy(losses=tuple(found), engine=evaluated.name)


def evaluations_of(demand: Demand, folder: Path) -> Evaluations | None:
    """Return the demand's evaluated engines; None if it names none.

    Args:
        folder: Where the demand's relative paths start.

    Raises:
        MissingError, UserError: A folder has no results, not all on the baseline's questions, or another model.
    """
    chosen = demand.accuracy
    if chosen is None:
        return None
    found = [_read(folder, name, model=demand.model, tasks=chosen.tasks) for name in (chosen.baseline, *chosen.engines)]
    _require_comparable(found, chosen.tasks)
    return Evaluations(tuple(found), demand.objectives.max_accuracy_loss)


def _read(folder: Path, name: str, *, model: str, tasks: Sequence[str] | None) -> _Evaluated:
    manifest = read_manifest(folder / name)
    found, wanted = _shape(manifest.model), _shape(resolve_model(model))
    for key, value in wanted.items():
        if found[key] != value:
            raise UserError(
                f"accuracy: {name} is an engine of another model: its {key} is {found[key]}, that of {model} is {value}"
            )
    results = tuple(each for each in manifest.accuracy if each.is_main and (tasks is None or each.task in tasks))
    if not results:
        raise UserError(
            f"accuracy: {name} has no results" + ("" if tasks is None else f" of {', '.join(tasks)}"),
            hint=f"evaluate-engine {folder / name}",
        )
    return _Evaluated(name, manifest, results, source_of(folder / name / MANIFEST_NAME))


def _shape(model: ModelSpec) -> dict[str, object]:
    """Return a model's sizes: the name of a folder is independent of its model."""
    return model.model_dump(include=SIZES)


def _require_comparable(found: Sequence[_Evaluated], wanted: Sequence[str] | None) -> None:
    """Refuse two engines of one kind, and one that did not answer every question of the baseline's tasks."""
    baseline, *others = found
    tasks = {each.task for each in losses(baseline.results, baseline.results)}
    if not tasks or set(wanted or ()) - tasks:
        missing = f": {', '.join(sorted(set(wanted or ()) - tasks))}" if tasks else ""
        raise UserError(f"accuracy: {baseline.name} lacks tasks whose answers are right or wrong{missing}")
    seen = {_kind(baseline): baseline.name}
    for each in others:
        if _kind(each) in seen:
            precision, kv_cache = _kind(each)
            raise UserError(f"accuracy: {seen[_kind(each)]} and {each.name} are both {precision}, KV cache {kv_cache}")
        seen[_kind(each)] = each.name
        lacks = tasks - {task.task for task in losses(baseline.results, each.results)}
        if lacks:
            raise UserError(
                f"accuracy: {each.name} has not answered {baseline.name}'s questions in {', '.join(sorted(lacks))}",
                hint="run evaluate-engine on both with the same options, or name the tasks in accuracy.tasks",
            )


def _kind(evaluated: _Evaluated) -> tuple[str, str]:
    precision = evaluated.manifest.precision
    return precision.name, precision.kv_cache
