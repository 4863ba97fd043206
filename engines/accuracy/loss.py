"""Accuracy loss against another engine, question by question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from engines.files import Strict
from engines.manifest import AccuracyResult
from engines.steptime import Z_95


class AccuracyLoss(Strict):
    """One task's accuracy loss against a baseline, on the same questions.

    Attributes:
        loss: Mean of the baseline's score minus this engine's; negative: this engine did better.
        standard_error: Of the loss, over pairs: questions that both answer alike add nothing.
        only_baseline: Questions that only the baseline answered right; `only_this` the reverse.
    """

    task: str
    metric: str
    loss: float
    standard_error: float
    questions: int
    only_baseline: int
    only_this: int

    @property
    def high(self) -> float:
        """Upper end of the loss: exceeded with a probability of 5 %."""
        return self.loss + Z_95 * self.standard_error

    @property
    def low(self) -> float:
        """Lower end, likewise."""
        return self.loss - Z_95 * self.standard_error

    def verdict(self, limit: float) -> Literal["met", "missed", "undecided"]:
        """Return whether the loss is within a limit; undecided if its interval contains the limit.

        >>> paired("t", "acc", "11110000", "11100000").verdict(0.01)
        'undecided'
        >>> paired("t", "acc", "1010" * 100, "1010" * 100).verdict(0.01)
        'met'
        """
        if self.high <= limit:
            return "met"
        return "missed" if self.low > limit else "undecided"


def losses(baseline: Sequence[AccuracyResult], judged: Sequence[AccuracyResult]) -> list[AccuracyLoss]:
    """Return the loss of every task whose main metric both engines have for the same questions."""
    known = {_questions(each): each for each in baseline if each.is_main and each.correct}
    return [
        paired(each.task, each.metric, str(known[_questions(each)].correct), str(each.correct))
        for each in judged
        if each.is_main and each.correct and _questions(each) in known
    ]


def paired(task: str, metric: str, baseline: str, judged: str) -> AccuracyLoss:
    """Return the loss from two results by question, `1` right and `0` wrong.

    >>> found = paired("t", "acc", "1" * 80 + "0" * 20, "1" * 70 + "0" * 20 + "1" * 10)
    >>> found.loss, round(found.standard_error, 4), found.only_baseline, found.only_this
    (0.0, 0.0449, 10, 10)
    """
    differences = [int(one) - int(other) for one, other in zip(baseline, judged, strict=True)]
    count = len(differences)
    loss = sum(differences) / count
    squares = sum((each - loss) ** 2 for each in differences)
    return AccuracyLoss(
        task=task,
        metric=metric,
        loss=loss,
        standard_error=math.sqrt(squares / max(count - 1, 1) / count),
        questions=count,
        only_baseline=differences.count(1),
        only_this=differences.count(-1),
    )


def _questions(result: AccuracyResult) -> tuple[object, ...]:
    return result.task, result.metric, result.questions_sha256, result.few_shot, result.chat
