"""From a command's flags to the scenario they ask for."""

from __future__ import annotations

from typing import Any

from engines.errors import UserError
from engines.files import validate
from loadtest.scenario import Scenario, read_scenario


def scenario_of(flags: dict[str, Any]) -> Scenario:
    """Return a named scenario, or the default one, with flags laid over it; errors as `read_scenario`, `validate`."""
    base = read_scenario(flags["scenario_name"]) if flags["scenario_name"] else Scenario()
    values = base.model_dump()
    if flags["concurrency"] is not None:
        values["concurrency"] = _counts(flags["concurrency"])
    if flags.get("rate") is not None:
        values["rate_per_s"] = _rates(flags["rate"])
    if flags.get("duration") is not None:
        values["duration_s"] = flags["duration"]
    for key in ("model", "requests", "prompts", "seed"):
        if flags[key] is not None:
            values[key] = flags[key]
    if flags.get("keep_going"):
        values["unreachable_s"] = values["level_timeout_s"]
    for key in ("isl", "osl"):
        if flags[key] is not None:
            values["lengths"][key] = flags[key]
    return validate(values, Scenario, where="flags")


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UserError(f"--concurrency {text}: whole numbers from 1 up are expected", hint="--concurrency 1,4,16")
    return counts


def _rates(text: str) -> tuple[float, ...]:
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not min(rates) > 0:
        raise UserError(f"--rate {text}: numbers above 0 are expected", hint="--rate 1,2.5,5")
    return rates
