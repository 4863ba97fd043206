"""A release's gate: what a file of objectives promises against a run's figures, case by case, for people and for CI."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from typing import Annotated, NamedTuple, Self

from pydantic import Field, model_validator

from loadtest.objectives import Objectives, Verdict
from loadtest.page_tables import found, limit
from loadtest.records import Doubt
from loadtest.summary import LevelSummary, Spread, Summary
from loadtest.verdicts import class_alone, verdicts_of

TRUST = "trust"


class Gate(Objectives):
    """A file of objectives for `--gate`: those of a scenario, and where they hold."""

    classes: dict[str, Objectives] = Field(
        default_factory=dict, description="Objectives of one class of a mix alone, by its name."
    )
    up_to: Annotated[
        float | None,
        Field(gt=0, description="The highest load that has to keep them: users, or requests a second. None: all do."),
    ] = None
    doubts_allowed: Annotated[
        tuple[str, ...], Field(description="Codes of doubts that are no reason to refuse a run's figures.")
    ] = ()

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        """Take a file whose limits are of classes alone, too."""
        if not (_states_limits(self) or self.classes):
            raise ValueError("no limit is stated: give ttft_s, itl_s, tpot_s, e2e_s, goodput or classes")
        return self


class Case(NamedTuple):
    """One thing that was promised, at one load.

    Attributes:
        where: Run, load and class in words; `trust` for whether the figures can be believed at all.
        what: As in `ttft_s p95`.
        told: Limit and figure in words.
        sure: Whether the run is long enough to tell: the figure's confidence interval is on one side of the limit.
    """

    where: str
    what: str
    told: str
    met: bool
    sure: bool


def cases_of(gate: Gate, summary: Summary) -> list[Case]:
    """Return every case of a gate, in the order of the levels; a run in doubt misses one of its own.

    Args:
        summary: Computed with the gate as objectives, so that goodput is the gate's.
    """
    cases = [_trust(gate, summary)]
    judged = [level for level in summary.levels if gate.up_to is None or level.offered <= gate.up_to]
    for level in judged:
        cases += _level_cases(gate, level, several=len(summary.runs) > 1)
    if not judged:
        cases.append(Case("levels", "judged", f"no level at load {gate.up_to:g} or below", met=False, sure=True))
    missing = set(gate.classes) - {each.name for level in judged for each in level.classes}
    cases += [Case(f"class {name}", "requests", "none was sent", met=False, sure=True) for name in sorted(missing)]
    return cases


def in_words(case: Case) -> str:
    """Return a case as one line."""
    doubt = "" if case.sure else "; the run is too short to be sure"
    return f"{'met   ' if case.met else 'MISSED'} {case.where}: {case.what} {case.told}{doubt}"


def junit(cases: Sequence[Case], summary: Summary, *, name: str) -> str:
    """Return cases as JUnit XML, the form that CI systems show: one suite, a class a load."""
    missed = sum(not case.met for case in cases)
    suite = ET.Element("testsuite", name=name, tests=str(len(cases)), failures=str(missed), errors="0", skipped="0")
    facts = ET.SubElement(suite, "properties")
    for key, value in (("kind", summary.kind), ("label", summary.label), ("command", summary.made_by.command)):
        ET.SubElement(facts, "property", name=key, value=value)
    for case in cases:
        element = ET.SubElement(suite, "testcase", classname=case.where, name=case.what, time="0")
        if not case.met:
            failure = ET.SubElement(element, "failure", message=case.told, type="missed")
            failure.text = f"{in_words(case)} ({summary.label})"
        elif not case.sure:
            ET.SubElement(element, "system-out").text = in_words(case)
    root = ET.Element("testsuites", tests=str(len(cases)), failures=str(missed))
    root.append(suite)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _trust(gate: Gate, summary: Summary) -> Case:
    refused: list[Doubt] = [doubt for doubt in summary.doubts if doubt.code not in gate.doubts_allowed]
    told = "; ".join(f"{doubt.code}: {doubt.text}" for doubt in refused) or "no doubt about the figures"
    return Case(TRUST, "figures", told, met=not refused, sure=True)


def _level_cases(gate: Gate, level: LevelSummary, *, several: bool) -> Iterator[Case]:
    where = f"{level.run}, load {level.load}" if several else f"load {level.load}"
    if _states_limits(gate):
        yield from _cases(where, gate, level)
    for each in level.classes:
        if each.name in gate.classes:
            yield from _cases(f"{where}, class {each.name}", gate.classes[each.name], class_alone(level, each))


def _states_limits(gate: Objectives) -> bool:
    return bool(gate.ttft_s or gate.itl_s or gate.tpot_s or gate.e2e_s or gate.goodput)


def _cases(where: str, objectives: Objectives, level: LevelSummary) -> Iterator[Case]:
    for verdict in verdicts_of(objectives, level):
        told = f"{found(verdict.objective, verdict.found)}, {limit(verdict.objective, verdict.limit)}"
        yield Case(where, verdict.objective, told, verdict.met, _is_sure(verdict, level))


def _is_sure(verdict: Verdict, level: LevelSummary) -> bool:
    """Whether a verdict would hold over all of the figure's confidence interval."""
    quantity, _, statistic = verdict.objective.partition(" ")
    if quantity == "goodput":
        ends = level.goodput_ci
        return ends is None or not ends[0] < verdict.limit <= ends[1]
    spread: Spread | None = {"ttft_s": level.felt_ttft_s, "e2e_s": level.felt_e2e_s}.get(
        quantity, getattr(level, quantity, None)
    )
    if not statistic or spread is None or statistic == "max":
        return True
    if statistic in spread.unsupported:
        return False
    low, high = (spread.ci or {}).get(statistic, (verdict.limit, verdict.limit))
    return not low < verdict.limit < high
