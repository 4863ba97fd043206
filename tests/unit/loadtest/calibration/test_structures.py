"""Which points choose a deployment's structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import pytest

from engines.spec import SPLIT
from loadtest.calibration import structures
from loadtest.calibration.fit import Known
from loadtest.calibration.measured_points import Point
from loadtest.calibration.structures import Request, Structure, fit_best


class _Fitted(NamedTuple):
    logs: str = "of the half"


def test_many_points_are_halved_by_their_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that was measured twice is on one side, with both of its points; the fit to all knows that side."""
    users = [1, 1, 2, 2, 5, 5, 10, 25, 50, 75, 100, 125, 150, 175, 200, 225, 250, 300]
    points = [Point(f"row {row}", "concurrency", 200, 200, each, 1.0, None, None) for row, each in enumerate(users)]
    best, fitted, seen = Structure(8192, SPLIT), _Fitted(), {}

    def compared(_request: Request, half: Sequence[Point]) -> tuple[Structure, dict[Structure, Any]]:
        seen["half"] = [each.concurrency for each in half]
        return best, {best: fitted}

    def fit(_context: Any, all_points: Sequence[Point], *, known: Known, **_: Any) -> str:
        seen["all"], seen["known"] = len(all_points), len(known.points)
        return "of all"

    monkeypatch.setattr(structures, "_compared", compared)
    monkeypatch.setattr(structures, "fit_context_of", lambda *_: None)
    monkeypatch.setattr(structures, "fit", fit)
    assert fit_best(cast(Request, None), points)[:2] == (best, "of all")
    assert seen == {"half": [1, 1, 5, 5, 25, 75, 125, 175, 225, 300], "all": 18, "known": 10}
