"""A scenario's file: what it may state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.errors import UserError
from loadtest.cli.options import LoadOptions, scenario_of
from loadtest.scenario.reading import read_scenario, scenario_names


def test_a_scenario_states_one_kind_of_load(tmp_path: Path) -> None:
    """Users beside a rate, or a rate beside a process: one of them would be ignored in silence."""
    path = tmp_path / "two.yaml"
    for text, both in (
        ("concurrency: [4]\nrate_per_s: [2]\n", "both concurrency and rate_per_s are given"),
        (
            "rate_per_s: [2]\narrivals: {process: poisson, rate_per_s: 1, duration_s: 9}\n",
            "both rate_per_s and arrivals",
        ),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=both):
            read_scenario(str(path))
    path.write_text("concurrency: [4]\nrate_per_s:\n")
    assert read_scenario(str(path)).concurrency == (4,)


CLOSED, OPEN, TRACE = "concurrency: [4]", "rate_per_s: [2]", "arrivals: {process: trace, path: x.csv}"
SPIKE = "arrivals: {process: poisson, rate_per_s: 1, duration_s: 9}"


@pytest.mark.parametrize(
    ("text", "flags", "error"),
    [
        (f"{CLOSED}\nrequests: 9\nstart: together", {"rate": (2.0,)}, None),  # the flag replaces that load
        (f"{OPEN}\nduration_s: 9", {"concurrency": (4,)}, None),
        (f"{OPEN}\nwarmup_ratio: 0.2\nseed: 5\nlengths: {{isl: 8}}", {}, None),
        ("duration_s: 9", {"rate": (2.0,)}, None),
        ("duration_s: 9", {"axis": "rate"}, None),
        (f"{TRACE}\nwarmup_ratio: 0.2", {}, None),
        (f"{OPEN}\nrequests: 9", {}, r"requests does not apply to an open loop \(rate_per_s\)"),
        (f"{OPEN}\nrequests: 9", {"concurrency": (4,)}, "requests does not apply to an open loop"),
        ("requests: 9", {"rate": (2.0,)}, "requests does not apply to an open loop"),
        (f"{OPEN}\nstart: together", {}, "start does not apply to an open loop"),
        (f"{CLOSED}\nduration_s: 9", {}, r"duration_s does not apply to a closed loop \(concurrency\)"),
        ("duration_s: 9", {}, "duration_s does not apply to a closed loop"),
        ("warmup_ratio: 0", {"axis": "concurrency"}, "warmup_ratio does not apply to a closed loop"),
        (f"{SPIKE}\nduration_s: 60", {}, "duration_s does not apply to arrivals"),
        (f"{TRACE}\nlengths: {{isl: 8}}", {}, "lengths does not apply to a trace"),
        (TRACE, {"isl": "8"}, "--isl does not apply to a trace"),
    ],
)
def test_a_key_that_the_load_ignores_is_refused(
    tmp_path: Path, text: str, flags: dict[str, Any], error: str | None
) -> None:
    """Which keys apply depends on the load that the file states, or, if it states none, on the flags'."""
    path = tmp_path / "asked.yaml"
    path.write_text(text + "\n")
    options = LoadOptions(scenario_name=str(path), **flags)
    if error is None:
        assert scenario_of(options).model_dump()
    else:
        with pytest.raises(UserError, match=error) as caught:
            scenario_of(options)
        assert caught.value.hint == "omit it"


@pytest.mark.parametrize("name", scenario_names())
def test_each_shipped_scenario_is_read(name: str) -> None:
    """None of them states two."""
    assert read_scenario(name).name == name
