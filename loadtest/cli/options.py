"""Resolve a command's flags: the scenario, and the server to send it to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from engines.errors import UserError
from engines.files import validate
from loadtest.cli.tables import warn_of_limits
from loadtest.metrics import scopes_of
from loadtest.results import load_text
from loadtest.scenario import Load, Scenario, loads_in, read_scenario, refuse_ignored, with_duration
from loadtest.traffic import ConversationSampler, plans_of

if TYPE_CHECKING:
    from loadtest.run import TargetOptions


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The load as given on the command line; None where a flag was not given or the command does not have it."""

    scenario_name: str | None = None
    model: str | None = None
    concurrency: tuple[int, ...] | None = None
    rate: tuple[float, ...] | None = None
    duration: float | None = None
    isl: str | None = None
    osl: str | None = None
    requests: int | None = None
    prompts: str | None = None
    seed: int | None = None
    keep_going: bool = False
    axis: str | None = None  # what find-knee searches over


# Keys of a scenario, with the option and the flag that set them.
_FLAGS = {
    "model": ("model", "--model"),
    "concurrency": ("concurrency", "--concurrency"),
    "rate_per_s": ("rate", "--rate"),
    "duration_s": ("duration", "--duration"),
    "lengths.isl": ("isl", "--isl"),
    "lengths.osl": ("osl", "--osl"),
    "requests": ("requests", "--requests"),
    "prompts": ("prompts", "--prompts"),
    "seed": ("seed", "--seed"),
}


def load_options(flags: dict[str, Any]) -> LoadOptions:
    """Return a command's load flags."""
    return LoadOptions(**{each.name: flags[each.name] for each in fields(LoadOptions) if each.name in flags})


def target_options(flags: dict[str, Any]) -> TargetOptions:
    """Return a command's server flags."""
    from loadtest.run import TargetOptions

    return TargetOptions(**{each.name: flags[each.name] for each in fields(TargetOptions) if each.name in flags})


def scenario_of(options: LoadOptions) -> Scenario:
    """Return the named or default scenario, overridden by flags; print its objectives that look like milliseconds.

    Raises:
        UserError: As `read_scenario` and `validate` do; or a flag, or a key of the file, would have no effect.
    """
    base = read_scenario(options.scenario_name) if options.scenario_name else Scenario()
    values = base.model_dump()
    values.update(_load(options, base))
    for key in ("model", "requests", "prompts", "seed"):
        if getattr(options, key) is not None:
            values[key] = getattr(options, key)
    if options.keep_going:
        values["unreachable_s"] = values["level_timeout_s"]
    lengths = {key: value for key, value in (("isl", options.isl), ("osl", options.osl)) if value is not None}
    own = {"lengths": next(iter(lengths), None), "prompts": "prompts" if options.prompts is not None else None}
    for what, flag in own.items():
        if flag is not None and any(getattr(each, what) for each in base.classes):
            raise UserError(
                f"--{flag}: scenario {base.name} has classes with their own {what}", hint=("edit the scenario's file")
            )
    values["lengths"].update(lengths)
    given = {key: flag for key, (name, flag) in _FLAGS.items() if getattr(options, name) is not None}
    scenario = validate(values, Scenario, where="flags", flags=given)
    _refuse_ignored(options, base, scenario)
    warn_of_limits(*(scope.objectives for scope in scopes_of(scenario)))
    return scenario


def _refuse_ignored(options: LoadOptions, base: Scenario, scenario: Scenario) -> None:
    """Refuse flags, and keys of the scenario's file, that its load ignores; a load in flags replaces the file's."""
    by_axis: dict[str | None, Load] = {"rate": "rate_per_s", "concurrency": "concurrency"}
    load = next(iter(loads_in(base)), by_axis.get(options.axis, scenario.load))
    in_file = {key: f"{options.scenario_name}: {key}" for key in base.model_fields_set}
    given = {key: flag for key, (name, flag) in _FLAGS.items() if getattr(options, name) is not None}
    if scenario.load == "arrivals":
        given.pop("duration_s", None)  # it is the arrivals' own
    if options.axis is None:
        refuse_ignored(
            given, scenario, scenario.load, hint="--duration SECONDS" if scenario.is_open else "--requests N"
        )
    refuse_ignored(in_file, base, load, hint="omit it")


def outlook(scenario: Scenario) -> Iterator[str]:
    """Yield a one-line description of each level: requests and, where known without a tokenizer, lengths.

    Raises:
        UserError: As `traffic.plans_of` does.
    """
    known = not any(kind.needs_file_lengths for kind in scenario.kinds)
    for plan in plans_of(scenario):
        count = len(plan.arrivals) if plan.concurrency is None else scenario.requests_of(plan.concurrency)
        begun = plan.begun if plan.concurrency is None else "requests measured"
        load = load_text(plan.concurrency, plan.rate_per_s) + (" users" if plan.concurrency is not None else "")
        text = f"{load}: {count:,} {begun}"
        if known:
            lengths = plan.length_stats(scenario, ConversationSampler(scenario))
            text += f", prompts: mean {lengths.isl:,.0f} tokens, max {lengths.longest_isl:,}"
            text += f", replies: mean {lengths.osl:,.0f}, max {lengths.longest_osl:,}"
        yield text


def _load(options: LoadOptions, base: Scenario) -> dict[str, Any]:
    """Return the overrides for users, rates and duration. One kind of load replaces the other."""
    users, rates, duration_s = options.concurrency, options.rate, options.duration
    if duration_s is not None and not duration_s > 0:
        raise UserError(f"--duration {duration_s:g}: expected a number above 0")
    found: dict[str, Any] = {}
    if users is not None:
        found = {"concurrency": users, "rate_per_s": None, "arrivals": None}
    elif rates is not None:
        found = {"rate_per_s": rates, "arrivals": None}
    if duration_s is None:
        return found
    if users is None and rates is None and base.arrivals is not None:
        return {**found, "arrivals": with_duration(base.arrivals, duration_s).model_dump()}
    return {**found, "duration_s": duration_s}
