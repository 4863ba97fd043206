"""A plan's tables on a narrow terminal."""

from __future__ import annotations

import pytest

from engines.files import MadeBy
from loadtest.capacity.output.terminal import show_compared
from loadtest.capacity.what_if import Compared, Side


def test_any_number_of_what_if_plans_fits_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A plan is a row, and no word of it is broken. As a column each, five plans left 13 columns a plan."""
    monkeypatch.setenv("COLUMNS", "80")
    changes = ("original", "precision=int8_sq", "gpu=a100-sxm-80gb", "osl*=1.5", "traffic*=2,n_plus=2")
    row = {"recommended": "h100-sxm-80gb int8_sq b384 t8192", "basis": "predicted", "replicas": 15}
    sides = [
        Side(
            change=change, peak_per_s=67.8, rate_per_s=23.9, usd_per_month=11_680.0, usd_per_million_tokens=0.772, **row
        )
        for change in changes
    ]
    show_compared(Compared(made_by=MadeBy(command="test", version="0"), sides=sides))
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    words = said.split()
    assert {"precision=int8_sq", "gpu=a100-sxm-80gb", "traffic*=2,", "h100-sxm-80gb", "(predicted)", "11,680"} <= set(
        words
    )
