"""Reads scenarios: files, and those that ship with the package; refuses keys that their load ignores."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import get_args

from engines.errors import UserError
from engines.files import Source, read_yaml, require_file, source_of
from loadtest.scenario.schema import Load, Scenario
from loadtest.scenario.traces import PATHS_HINT, Trace

_LOADS: tuple[Load, ...] = get_args(Load)
# Keys that one kind of load has and the others ignore.
_KEYS_OF: dict[Load, tuple[str, ...]] = {
    "concurrency": ("requests", "requests_per_user", "window_s", "warmup_requests", "start"),
    "rate_per_s": ("duration_s", "warmup_ratio"),
    "arrivals": ("warmup_ratio",),
}
_CALLED: dict[Load, str] = {
    "concurrency": "a closed loop (concurrency), which sends a fixed number of requests",
    "rate_per_s": "an open loop (rate_per_s), which sends for a duration",
    "arrivals": "arrivals, which state when requests are sent",
}


def scenario_names() -> list[str]:
    """Return the names of the scenarios that ship with the package."""
    return sorted(found.stem for found in scenario_folder().glob("*.yaml"))


def scenario_folder() -> Path:
    """Return where the scenarios that ship with the package are."""
    return Path(str(files("loadtest.scenario"))) / "library"


def read_scenario(name: str) -> Scenario:
    """Return a scenario from a file, or a shipped one by name; its paths start at its folder.

    Raises:
        UserError: It does not exist, and the shipped names are listed; or it states two kinds of load.
    """
    if Path(name).suffix in {".yaml", ".yml"}:
        scenario = read_yaml(Path(name), Scenario)
        stated = loads_in(scenario)
        if len(stated) > 1:
            raise UserError(
                f"{name}: both {stated[0]} and {stated[1]} are given", hint="a load has one: omit the other"
            )
        return scenario.moved(lambda path: str(Path(name).parent / path))
    path = scenario_folder() / f"{name}.yaml"
    if not path.is_file():
        close = difflib.get_close_matches(name, scenario_names(), n=1)
        meant = f"did you mean '{close[0]}'? Otherwise " if close else ""
        raise UserError(f"no scenario '{name}'", hint=f"{meant}a .yaml file, or one of: {', '.join(scenario_names())}")
    return read_yaml(path, Scenario)


def loads_in(scenario: Scenario) -> list[Load]:
    """Return the kinds of load that a scenario states itself; of a valid one at most one."""
    return [each for each in _LOADS if each in scenario.model_fields_set and getattr(scenario, each) is not None]


def refuse_ignored(stated: Mapping[str, str], scenario: Scenario, load: Load, *, hint: str) -> None:
    """Refuse keys that a kind of load ignores, and lengths beside a trace, which states its own.

    Args:
        stated: By dotted key, how a message names it: a file and its key, or a flag.
        load: The load that the keys were stated for.

    Raises:
        UserError: There is one.
    """
    of_others = (key for kind in _LOADS for key in _KEYS_OF[kind] if key not in _KEYS_OF[load])
    for key in of_others:
        if key in stated:
            raise UserError(f"{stated[key]} does not apply to {_CALLED[load]}", hint=hint)
    lengths = next((name for key, name in stated.items() if key.partition(".")[0] == "lengths"), None)
    if lengths and load == "arrivals" and isinstance(scenario.arrivals, Trace):
        raise UserError(f"{lengths} does not apply to a trace, which states the lengths", hint="omit it")


def inputs_of(scenario: Scenario) -> list[Source]:
    """Return the files that a scenario reads, with their hashes.

    Raises:
        MissingError: One does not exist.
    """
    for path in scenario.files():
        require_file(path, hint=PATHS_HINT)
    return [source_of(path) for path in scenario.files()]
