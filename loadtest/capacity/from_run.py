"""The measured capacity of a replica: the highest level of a run that meets every objective."""

from __future__ import annotations

from pathlib import Path

from engines.errors import UserError
from loadtest.capacity.candidates import Basis, Candidate
from loadtest.capacity.inputs import Demand
from loadtest.capacity.simulation import (
    Carried,
    LengthProfile,
    RateProbe,
    ReplicaCapacity,
    figures_of,
    requests_needed,
)
from loadtest.metrics import LevelSummary, Summary, summarize, verdicts_in
from loadtest.results import Kind, read_records, read_run, read_samples

ALIKE_RATIO = 0.15  # largest allowed relative difference between mean lengths of a run and of the demand

BASES: dict[Kind, Basis] = {"measured": "measured", "emulated": "emulated", "predicted": "predicted"}


def summary_of(folder: Path, demand: Demand) -> Summary:
    """Return a run's summary, evaluated against the demand's objectives."""
    return summarize(read_run(folder), read_records(folder), read_samples(folder), objectives=demand.objectives)


def measured_capacity(
    candidate: Candidate, demand: Demand, shape: LengthProfile
) -> tuple[Candidate, ReplicaCapacity | None]:
    """Return a run as a candidate with the kind of its files, and its capacity; None if it provides none.

    A run with other lengths, a run that is not valid, and a predicted run are refused with the reason.
    """
    run = candidate.run
    assert run is not None
    summary = summary_of(Path(run.path), demand)
    candidate = candidate.model_copy(update={"basis": BASES[summary.kind]})
    refused = _refusal(summary, shape)
    if refused is not None:
        return candidate.model_copy(update={"refused": refused}), None
    needed = requests_needed(demand, slots=1)
    tried = sorted((_tried(level, demand, run.replicas) for level in summary.levels), key=lambda each: each.rate_per_s)
    above = next((each for each in tried if not each.met), None)
    below = [each for each in tried if each.met and (above is None or each.rate_per_s < above.rate_per_s)]
    best = below[-1] if below else None
    carried = Carried(
        rate_per_s=None if best is None else best.rate_per_s,
        above_per_s=None if above is None else above.rate_per_s,
        limited_by=None if above is None or not above.missed else above.missed[0],
    )
    return candidate, ReplicaCapacity(
        promised=carried,
        middle=carried,
        optimistic=carried,
        requests_needed=needed,
        supported=best is not None and best.requests >= needed,
        tried=tuple(tried),
    )


def _refusal(summary: Summary, shape: LengthProfile) -> str | None:
    if summary.kind == "predicted":
        return "the run is a prediction; plan-capacity predicts engines itself"
    if summary.validity_issues:
        return f"the run is not valid: {summary.validity_issues[0].text}"
    for name, planned, found in (("isl", shape.mean_isl, "isl"), ("osl", shape.mean_osl, "osl")):
        for level in summary.levels:
            value = getattr(level, found)
            if abs(value / planned - 1) > ALIKE_RATIO:
                return (
                    f"measured at {name} {value}, but the demand's mean is {planned:.0f}: the result does not apply; "
                    "measure it with the scenario this plan writes"
                )
    return None


def _tried(level: LevelSummary, demand: Demand, replicas: int) -> RateProbe:
    if level.requests_per_s is None:
        raise UserError("a level of the run has no rate: it measured no request")
    verdicts = verdicts_in(demand.scopes, level)
    return RateProbe(
        rate_per_s=(level.rate_per_s or level.requests_per_s) / replicas,
        met=all(each.met for each in verdicts),
        missed=tuple(each.objective for each in verdicts if not each.met),
        worst_ratio=max((each.found / each.limit for each in verdicts if each.found and each.limit), default=0.0),
        **figures_of(level),
        in_flight=level.requests_per_s * (level.e2e_s.mean if level.e2e_s else 0.0),
        kv_ratio=0.0,
        kv_max=0.0,
    )
