"""Accuracy lost is computed over pairs, and only over the same questions."""

from __future__ import annotations

import math

import pytest

from engines.accuracy import losses
from engines.accuracy.loss import paired
from engines.manifest import AccuracyResult


def _result(correct: str, *, questions: str = "a") -> AccuracyResult:
    return AccuracyResult(
        task="t",
        metric="acc",
        is_main=True,
        value=correct.count("1") / len(correct),
        standard_error=None,
        questions=len(correct),
        limit=None,
        few_shot=0,
        chat=False,
        versions={},
        date="2026-11-29",
        measured_on="checkpoint",
        questions_sha256=questions,
        correct=correct,
    )


def test_the_error_of_a_loss_is_that_of_discordant_pairs() -> None:
    """With b and c discordant pairs of n, the loss is (b - c) / n, its variance (b + c - (b - c)^2 / n) / n (n - 1).

    Source: the mean and sample variance of n differences of -1, 0 and 1; McNemar, Psychometrika 12, 1947.
    """
    only_baseline, only_this, count = 98, 51, 1000
    same = "1" * (count - only_baseline - only_this)
    found = paired(
        "t", "acc", same + "1" * only_baseline + "0" * only_this, same + "0" * only_baseline + "1" * only_this
    )
    difference = only_baseline - only_this
    variance = (only_baseline + only_this - difference**2 / count) / (count - 1)
    assert found.loss == difference / count
    assert found.standard_error == pytest.approx(math.sqrt(variance / count))
    assert (found.verdict(0.01), found.verdict(0.05), found.verdict(0.1)) == ("missed", "undecided", "met")


def test_other_questions_are_not_compared() -> None:
    """Two results without the same questions have no loss, whatever their task's name."""
    assert losses([_result("1100")], [_result("1000")])[0].loss == 0.25
    assert losses([_result("1100")], [_result("1000", questions="b")]) == []
