"""The implementation of `find-knee`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from engines.console import command_line, progress, quoted, show, wrote
from engines.errors import TargetMissedError, UserError
from engines.files import CONTENTS_NAME, made_by, read_yaml, source_of, to_json, validate, write_json
from engines.manifest import manifest_path, read_manifest
from engines.outputs import LOCKS, folder_in_place, paths_named, refuse_existing
from loadtest.cli.find_knee import no_objectives_error
from loadtest.cli.options import load_options, scenario_of, target_options
from loadtest.cli.tables import show_knee, warn_of_limits
from loadtest.knee import (
    KneeResult,
    KneeSearch,
    Range,
    Span,
    driving,
    predicting,
    search,
)
from loadtest.metrics import scopes_of
from loadtest.results import RUN_FILES
from loadtest.run import Enough, run_once
from loadtest.scenario import QUANTITIES, Objectives, ObjectiveScope, Scenario, Statistic, inputs_of

KNEE_NAME = "knee.json"
PROBES_NAME = "probes"


def run(engine_dir: Path | None, as_json: bool, verbose: bool, **flags: Any) -> None:  # noqa: ARG001
    """Find the highest load that meets every objective, by bisection, and what the next load misses."""
    knee_search = _search_of(flags)
    if flags["dry_run"]:
        show(to_json(knee_search.scenario).rstrip())
        for promise in knee_search.promises:
            show(f"{promise.class_name or 'all'}: {to_json(promise.objectives).rstrip()}")
        return
    out = flags["out"]
    inputs = paths_named({**flags, "engine_dir": engine_dir})
    refuse_existing(out, force=flags["force"], inputs=inputs, command="find-knee")
    head = made_by(command_line("find-knee"))
    sources = inputs_of(knee_search.scenario)
    if engine_dir is not None:
        sources.append(source_of(manifest_path(engine_dir)))
        player = predicting(read_manifest(engine_dir), made_by=head, made_from=sources)
    else:
        player = driving(_runner(flags), out / PROBES_NAME)
    of_a_probe = (LOCKS, *(f"*/{name}" for name in (CONTENTS_NAME, *RUN_FILES)))
    files = (KNEE_NAME, *(f"{PROBES_NAME}/{name}" for name in of_a_probe))
    with folder_in_place(out, made_by=head, files=files, last=KNEE_NAME, force=flags["force"], inputs=inputs):
        found = search(knee_search, player, made_by=head, made_from=sources, progress=progress)
        write_json(out / KNEE_NAME, found)
    if as_json:
        show(to_json(found).rstrip())
    else:
        show_knee(found)
        probes = f"report-load {quoted(out / PROBES_NAME)}/*"
        wrote(out, probes if engine_dir is None else f"build-repo {quoted(engine_dir)}")
    _require_some_load(found)


def _runner(flags: dict[str, Any]) -> Callable[[Scenario, Path, Enough], object]:
    """Return a function that runs a probe and prints its validity issues at once."""
    server = replace(target_options(flags), earlier_runs=flags["out"].absolute().parent)

    def run(scenario: Scenario, folder: Path, enough: Enough) -> None:
        nonlocal server
        # Detected settings are printed for the first probe only.
        target, server = server, replace(server, is_quiet=True)
        played = run_once("find-knee", scenario, folder, target, force=flags["force"], enough=enough)
        for issue in played.manifest.validity_issues:
            progress(f"not valid: {issue.code}: {issue.text}")

    return run


def _search_of(flags: dict[str, Any]) -> KneeSearch:
    scenario = scenario_of(load_options(flags))
    within = Range(flags["least"], flags["most"], flags["tolerance"])
    span = Span(first=min(Span().first, flags["max_requests"]), limit=flags["max_requests"])
    return KneeSearch(scenario, _promises(flags, scenario), flags["axis"], within, span)


def _promises(flags: dict[str, Any], scenario: Scenario) -> tuple[ObjectiveScope, ...]:
    """Return the objectives of a file, overridden by flags; without either, those of the scenario."""
    path = flags["objectives"]
    own = scopes_of(scenario)
    if own and path is None and not flags["objective"]:
        return own
    values = {} if path is None else read_yaml(path, Objectives).model_dump(exclude_defaults=True)
    typed = {}
    for text in flags["objective"]:
        name, limit, limits = *_name_and_limit(text), values
        if name in typed:
            raise UserError(f"--objective {text}: {name} is given twice", hint="omit one")
        quantity, _, statistic = name.partition(".")
        if statistic:
            limits = values.setdefault(quantity, {})
        limits[statistic or quantity] = limit
        typed[name] = typed[quantity] = f"--objective {text}"
    if not values:
        raise no_objectives_error()
    where = "flags" if path is None else str(path)
    found = validate(values, Objectives, where=where, flags=typed)
    warn_of_limits(found)
    return (ObjectiveScope(found),)


def _name_and_limit(text: str) -> tuple[str, str]:
    """Return what an --objective limits, as in `ttft_s.p95` or `errors_ratio`, and the limit as typed."""
    name, _, limit = (part.strip() for part in text.partition("="))
    quantity, _, statistic = name.partition(".")
    if not limit or "," in limit or bool(statistic) == (quantity == "errors_ratio"):
        raise UserError(
            f"--objective {text}: expected QUANTITY.STATISTIC=SECONDS, or errors_ratio=SHARE",
            hint=f"one --objective for each limit, such as --objective ttft_s.p95=0.5; quantities: "
            f"{', '.join(QUANTITIES)}; statistics: {', '.join(get_args(Statistic))}",
        )
    return name, limit


def _require_some_load(found: KneeResult) -> None:
    if found.load is None:
        missed = ", ".join(found.binding)
        raise TargetMissedError(
            f"even {found.above:.4g} {found.unit} misses {missed}", hint="try a lower --from or looser objectives"
        )
