"""Verifies a plan against a measured run of one replica: offered load, objectives, prediction errors."""

from __future__ import annotations

from pathlib import Path

from engines.errors import UserError
from engines.files import Document, MadeBy, Strict, read_json, source_of
from engines.units import three_digits
from loadtest.capacity.from_run import ALIKE_RATIO
from loadtest.capacity.inputs import Described
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.simulation import RateProbe
from loadtest.metrics import LevelSummary, Summary, summarize, verdicts_in
from loadtest.results import REQUESTS_NAME, RUN_NAME, Ints, Kind, columns_of, read_records, read_run, read_samples

LOAD_RATIO = 0.95  # minimum offered load of a conclusive run, relative to the planned load


class Figure(Strict):
    """One quantity, planned and found, in seconds.

    Attributes:
        middle: At the middle of the prediction; `promised` at its unfavourable end.
        is_within: Whether the value found is at least as good as promised.
    """

    name: str
    middle: float | None
    promised: float | None
    found: float | None

    @property
    def is_within(self) -> bool:
        """Whether the value found is at least as good as promised."""
        return self.promised is None or (self.found is not None and self.found <= self.promised)


class Verification(Document):
    """`verification.json`: the result of a plan's verification.

    Attributes:
        kind: Kind of the run. A plan verified on an emulated engine is verified against this project's own step times,
            not against a GPU.
        planned_per_s: Requests per second of one replica with the spares lost; `found_per_s` as offered by the run.
        missed: Objectives that the run missed.
        validity_issues: Why the run is not valid, or not one of the plan's traffic; such a run proves nothing.
        held: Whether the load was offered, the run is valid, and every objective was met.
    """

    kind: Kind
    label: str
    recommended: str
    planned_per_s: float
    found_per_s: float
    requests: int
    missed: tuple[str, ...]
    figures: tuple[Figure, ...]
    validity_issues: tuple[str, ...]
    held: bool


def verify(plan_path: Path, run: Path, *, made_by: MadeBy) -> Verification:
    """Compare a plan with a run of its scenario on one replica.

    Raises:
        UserError: The plan recommends nothing, the run is a prediction, or it did not offer the planned load.
    """
    plan = read_json(plan_path, CapacityPlan)
    if plan.recommended is None or plan.operating_per_s is None:
        raise UserError(f"{plan_path}: the plan recommends nothing, so there is nothing to verify")
    manifest = read_run(run)
    if manifest.kind == "predicted":
        raise UserError(
            f"{run}: the run is predicted, and a prediction cannot verify a plan",
            hint="run-load with the plan's verify.yaml",
        )
    records = columns_of(read_records(run))
    summary = summarize(manifest, records, read_samples(run), objectives=plan.demand.objectives)
    level = _level(summary, plan.operating_per_s, run)
    replies = records.output_tokens[records.measured & records.good & (records.level == summary.levels.index(level))]
    missed = tuple(each.objective for each in verdicts_in(plan.demand.scopes, level) if not each.met)
    validity_issues = (*(issue.text for issue in summary.validity_issues), *_other_replies(plan, replies))
    return Verification(
        made_by=made_by,
        made_from=[source_of(path) for path in (plan_path, run / RUN_NAME, run / REQUESTS_NAME)],
        kind=summary.kind,
        label=summary.label,
        recommended=plan.recommended,
        planned_per_s=plan.operating_per_s,
        found_per_s=offered_per_s(level),
        requests=level.requests,
        missed=missed,
        figures=_figures(plan, level),
        validity_issues=validity_issues,
        held=not missed and not validity_issues,
    )


def offered_per_s(level: LevelSummary) -> float:
    """Return a level's requests per second: offered in an open loop, completed in a closed loop."""
    return level.rate_per_s if level.rate_per_s is not None else level.requests_per_s or 0.0


def _level(summary: Summary, planned_per_s: float, run: Path) -> LevelSummary:
    """Return the lowest level that offered at least the planned load."""
    enough = [level for level in summary.levels if offered_per_s(level) >= LOAD_RATIO * planned_per_s]
    if not enough:
        largest = max(offered_per_s(level) for level in summary.levels)
        raise UserError(
            f"{run}: at most {three_digits(largest)} requests/s were offered, but the plan needs "
            f"{three_digits(planned_per_s)} per replica",
            hint="run-load with the plan's verify.yaml",
        )
    return min(enough, key=offered_per_s)


def _other_replies(plan: CapacityPlan, replies: Ints) -> list[str]:
    """Return an issue if replies were shorter or longer than a described traffic's; a trace's window may differ.

    Args:
        replies: Tokens of each. A rate of tokens by one of requests is less while a queue grows.
    """
    if not isinstance(plan.demand.traffic, Described) or not len(replies):
        return []
    planned, found = plan.traffic.mean_osl, float(replies.mean())
    if abs(found / planned - 1) <= ALIKE_RATIO:
        return []
    return [
        f"replies had {found:.0f} tokens on average, the plan's have {planned:.0f}; run-load with the plan's "
        "verify.yaml asks for their lengths"
    ]


def _figures(plan: CapacityPlan, level: LevelSummary) -> tuple[Figure, ...]:
    middle, promised = plan.operating_middle, plan.operating
    ttft, itl, e2e = level.felt_ttft_s, level.itl_s, level.felt_e2e_s
    found = {
        "ttft_p50_s": None if ttft is None else ttft.p50,
        "ttft_p95_s": None if ttft is None else ttft.p95,
        "ttft_p99_s": None if ttft is None else ttft.p99,
        "itl_mean_s": None if itl is None else itl.mean,
        "itl_p99_s": None if itl is None else itl.p99,
        "e2e_p95_s": None if e2e is None else e2e.p95,
    }
    return tuple(
        Figure(name=name, middle=_of(middle, name), promised=_of(promised, name), found=value)
        for name, value in found.items()
    )


def _of(tried: RateProbe | None, name: str) -> float | None:
    value = None if tried is None else getattr(tried, name)
    return None if value is None else float(value)
