"""The cold start of a demand: stated, or taken from the start that serve-repo recorded."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest
import yaml

from engines.autoscaling import START_NAME, ServerStart
from engines.errors import MissingError, UserError
from engines.files import MadeBy, write_json
from loadtest.capacity.inputs import Demand, read_demand
from loadtest.capacity.scaling import cold_start_of
from loadtest.capacity.what_if import what_if


def _read(folder: Path, autoscaling: dict[str, Any]) -> Demand:
    """Read a demand beside the record of a start that took 42.5 s."""
    start = ServerStart(
        made_by=MadeBy(command="serve-repo", version="0"), kind="emulated", loading_s=42.5, triton_version="2.51.0",
        started_on=date(2026, 11, 29), model="llama-3-8b", gpu="h100-sxm-80gb", precision="fp8", tensor_parallel=1,
    )  # fmt: skip
    write_json(folder / "repository" / START_NAME, start)
    values = {
        "name": "chat",
        "traffic": {"process": "described", "rate_per_s": 1.0, "lengths": {"isl": 64, "osl": 16}},
        "objectives": {"ttft_s": {"p90": 0.5}},
        "autoscaling": autoscaling,
    }
    (folder / "demand.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return read_demand(folder / "demand.yaml")


def test_a_recorded_start_is_the_loading_time(tmp_path: Path) -> None:
    """Image and machine as stated, loading as recorded, with its kind: an emulated start is never called measured."""
    demand = _read(tmp_path, {"loading_from": "repository/start.json", "pending_s": 160})
    cold = cold_start_of(demand.autoscaling)
    assert (cold.pending_s, cold.loading_s, cold.total_s) == (160.0, 42.5, 202.5)
    assert cold.source == (
        "pending 160 s as stated, loading 42.5 s emulated 2026-11-29, llama-3-8b fp8 on h100-sxm-80gb"
    )
    assert what_if(demand, "n_plus=0").demand.autoscaling == demand.autoscaling


@pytest.mark.parametrize(
    ("autoscaling", "said"),
    [
        ({"loading_from": "repository/start.json"}, "needs pending_s"),
        ({"pending_s": 160}, "belongs to loading_from"),
        ({"loading_from": "repository/start.json", "pending_s": 1, "loading_s": 5}, "loading_s is stated and taken"),
        ({"loading_from": "nowhere.json", "pending_s": 1}, "no such file"),
        ({"sync_s": 7}, "multiple of 5"),
    ],
)
def test_a_cold_start_comes_from_one_place(tmp_path: Path, autoscaling: dict[str, Any], said: str) -> None:
    """What is missing, stated twice, or not there is one clear error."""
    with pytest.raises((UserError, MissingError), match=said):
        _read(tmp_path, autoscaling)
