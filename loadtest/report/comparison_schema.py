"""The schema of `comparison.json`: two runs side by side, and their differences."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from engines.files import Document, Strict
from loadtest.results import Kind

Outcome = Literal["better", "worse", "same", "unclear", "unknown"]


class Change(Strict):
    """One figure of one level, baseline against candidate; durations in engine seconds."""

    figure: Annotated[str, Field(description="For example `itl_s p99` or `output_tokens_per_s`.")]
    better: Annotated[Literal["lower", "higher"], Field(description="Which direction is better.")]
    baseline: Annotated[float | None, Field(description="The baseline's value.")]
    candidate: Annotated[float | None, Field(description="The candidate's value.")]
    change_ratio: Annotated[float | None, Field(description="Relative change: candidate / baseline - 1.")]
    low: Annotated[float | None, Field(description="Lower end of its 95 % confidence interval.")]
    high: Annotated[float | None, Field(description="Upper end.")]
    outcome: Annotated[
        Outcome,
        Field(
            description="`better`, `worse`: the interval excludes no change. `same`: it lies within 2 % of no change. "
            "`unclear`: it includes no change and more. `unknown`: the sample is too small for an interval."
        ),
    ]
    words: Annotated[str, Field(description="The change in words.")]


class LevelChanges(Strict):
    """One level that both runs have."""

    load: Annotated[str, Field(description="The load in words.")]
    isl: Annotated[int, Field(description="Requested prompt length, in tokens.")]
    osl: Annotated[int, Field(description="Requested reply length, in tokens.")]
    requests: Annotated[tuple[int, int], Field(description="Measured requests of baseline and candidate.")]
    errors: Annotated[tuple[int, int], Field(description="Failed requests of each.")]
    changes: Annotated[list[Change], Field(description="Each figure.")]


class Side(Strict):
    """One of the two runs."""

    name: Annotated[str, Field(description="The run's folder.")]
    kind: Annotated[Kind, Field(description="measured, emulated or predicted.")]
    label: Annotated[str, Field(description="Label of its figures.")]
    engine: Annotated[str, Field(description="Engine or model.")]
    valid: Annotated[bool, Field(description="Whether all its validity checks passed.")]
    validity_issues: Annotated[tuple[str, ...], Field(description="Its validity issues.")] = ()


class Difference(Strict):
    """Something else that differs between the runs."""

    key: Annotated[str, Field(description="For example `scenario.requests`.")]
    baseline: Annotated[str, Field(description="The baseline's.")]
    candidate: Annotated[str, Field(description="The candidate's.")]


class Comparison(Document):
    """`comparison.json`."""

    baseline: Annotated[Side, Field(description="The baseline run.")]
    candidate: Annotated[Side, Field(description="The candidate run.")]
    levels: Annotated[list[LevelChanges], Field(description="Levels that both runs have.")]
    unmatched: Annotated[tuple[str, ...], Field(description="Levels that only one run has.")] = ()
    differences: Annotated[tuple[Difference, ...], Field(description="Other differences.")] = ()
    verdict: Annotated[str, Field(description="Summary in one sentence.")]

    @property
    def across_kinds(self) -> bool:
        """Whether the two are of different kinds."""
        return self.baseline.kind != self.candidate.kind
