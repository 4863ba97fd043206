"""Pass or fail: a run against objectives, or a candidate against its baseline; JUnit XML."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from engines.errors import UserError
from engines.files import write_text
from loadtest.metrics import LevelSummary, Spread, Summary, class_alone, verdicts_of
from loadtest.report.comparison_schema import Comparison
from loadtest.report.page_tables import limit_text, value_text
from loadtest.scenario import Objectives, Verdict


class Gate(Objectives):
    """Objectives of all requests, of classes or of both, and the levels that they apply to.

    Attributes:
        loads: Users, or requests per second, of the levels that must meet the objectives; None: every level.
        classes: Objectives of one class of a mix, by its name.
    """

    loads: Annotated[tuple[float, ...], Field(min_length=1)] | None = None
    classes: dict[str, Objectives] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if not (self.has_limit or self.classes):
            raise ValueError("no limit is stated: give ttft_s, itl_s, tpot_s, e2e_s, goodput or classes")
        return self

    @model_validator(mode="after")
    def _classes_without_goodput(self) -> Self:
        for name, promised in self.classes.items():
            if promised.goodput is not None:  # a class's goodput is counted by the scenario's limits, not by these
                raise ValueError(f"classes.{name}.goodput: goodput covers all requests here; state it at the top level")
        return self

    @property
    def objectives(self) -> Objectives | None:
        """Those of all requests; None if only classes have some."""
        return Objectives.model_validate(self.model_dump(exclude={"loads", "classes"})) if self.has_limit else None


class Case(NamedTuple):
    """One check: its result and its message.

    Attributes:
        group: The level, or the run as a whole.
        says: The value found and the required value.
    """

    group: str
    name: str
    met: bool
    says: str


def require_loads(summary: Summary, gate: Gate) -> None:
    """Refuse a gate that names a load of no level.

    Raises:
        UserError: It does.
    """
    unknown = [load for load in gate.loads or () if all(level.offered != load for level in summary.levels)]
    if unknown:
        known = ", ".join(dict.fromkeys(level.load for level in summary.levels))
        raise UserError(f"no level has load {unknown[0]:g}", hint=f"the run's loads: {known}")


def cases_of(summary: Summary, gate: Gate) -> list[Case]:
    """Return the verdicts of the gate's levels, and whether the run is valid.

    Raises:
        UserError: `require_loads` refuses the gate.
    """
    require_loads(summary, gate)
    loads = [level.offered for level in summary.levels] if gate.loads is None else gate.loads
    validity_issues = "; ".join(issue.text for issue in summary.validity_issues)
    cases = [Case("run", "valid", summary.valid, validity_issues or "all validity checks passed")]
    for level in summary.levels:
        if level.offered in loads:
            cases += [_case(level, verdict) for verdict in verdicts_of(gate, level)]
            for name, promised in gate.classes.items():
                cases += _class_cases(level, name, promised)
    return cases


def _class_cases(level: LevelSummary, name: str, promised: Objectives) -> list[Case]:
    """Return one class's verdicts; a class without requests meets none."""
    found_class = next((each for each in level.classes if each.name == name), None)
    if found_class is None:
        known = ", ".join(each.name for each in level.classes) or "none"
        return [
            Case(f"load {level.load}, class {name}", "requests", False, f"no request of this class; classes: {known}")
        ]
    alone = class_alone(level, found_class)
    cases = [_case(alone, verdict) for verdict in verdicts_of(promised, alone)]
    return [case._replace(group=f"{case.group}, class {name}") for case in cases]


def _case(level: LevelSummary, verdict: Verdict) -> Case:
    run = f"{level.run}, " if level.run else ""
    says = f"{value_text(verdict.objective, verdict.found)}, objective: {limit_text(verdict.objective, verdict.limit)}"
    return Case(f"{run}load {level.load}", verdict.objective, verdict.met, says + _margin(level, verdict))


def _margin(level: LevelSummary, verdict: Verdict) -> str:
    """Return a note if the sample does not decide the verdict."""
    quantity, _, statistic = verdict.objective.partition(" ")
    spread = {"ttft_s": level.felt_ttft_s, "e2e_s": level.felt_e2e_s}.get(quantity) or getattr(level, quantity, None)
    if not isinstance(spread, Spread) or not statistic:
        return ""
    if statistic in spread.unsupported:
        return f"; a sample of {spread.count:,} is too small to decide"
    low, high = (spread.ci or {}).get(statistic, (verdict.limit, verdict.limit))
    return "; the limit is inside the confidence interval" if low < verdict.limit < high else ""


def regressions_of(comparison: Comparison, *, allowed_ratio: float) -> list[Case]:
    """Return, for each figure that two runs have in common, whether it regressed by more than is allowed.

    A figure misses if it is worse beyond its confidence interval, and by more than `allowed_ratio`.
    """
    cases = [
        Case(side, "valid", run.valid, "; ".join(run.validity_issues) or "all validity checks passed")
        for side, run in (("baseline", comparison.baseline), ("candidate", comparison.candidate))
    ]
    for level in comparison.levels:
        for change in level.changes:
            grown = change.outcome == "worse" and abs(change.change_ratio or 0.0) > allowed_ratio
            cases.append(Case(f"load {level.load}", change.figure, not grown, change.words))
    return cases


def write_junit(path: Path, name: str, cases: Sequence[Case]) -> None:
    """Write verdicts as JUnit XML: a suite per level, a test per objective."""
    root = ET.Element("testsuites", name=name, tests=str(len(cases)), failures=str(_missed(cases)))
    for group in dict.fromkeys(case.group for case in cases):
        own = [case for case in cases if case.group == group]
        suite = ET.SubElement(root, "testsuite", name=group, tests=str(len(own)), failures=str(_missed(own)))
        for case in own:
            test = ET.SubElement(suite, "testcase", classname=f"{name}.{group}", name=case.name, time="0")
            if case.met:
                ET.SubElement(test, "system-out").text = case.says
            else:
                ET.SubElement(test, "failure", message=case.says, type="missed").text = case.says
    ET.indent(root)
    write_text(path, '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n")


def _missed(cases: Sequence[Case]) -> int:
    return sum(not case.met for case in cases)
