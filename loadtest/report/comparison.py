"""Two runs side by side: each figure's change with its confidence interval, and a verdict in words.

The interval covers the change itself: both runs are resampled independently, and the change is computed in each
replicate. It shows whether these two runs differ, not whether two further runs would: if runs of one scenario differ
among themselves (report-load of several), a smaller change is noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from engines.errors import UserError
from engines.files import made_by, write_json, write_text
from engines.outputs import refuse_existing, whole_folder
from loadtest.metrics import (
    Counted,
    LevelSummary,
    LoadedRun,
    Summary,
    bootstrap,
    counted,
    felt,
    latencies_of,
    load_runs,
    rate_replicates,
    resampler_of,
    settles,
)
from loadtest.report.comparison_page import comparison_page
from loadtest.report.comparison_schema import Change, Comparison, Difference, LevelChanges, Outcome, Side
from loadtest.report.theme import themed
from loadtest.results import Floats, Level

COMPARISON_NAME = "comparison.json"
COMPARISON_PAGE = "comparison.html"
SAME_RATIO = 0.02
FIGURES = (
    "ttft_s p50",
    "ttft_s p95",
    "ttft_s p99",
    "itl_s mean",
    "itl_s p50",
    "itl_s p99",
    "tpot_s p50",
    "e2e_s p50",
    "e2e_s p99",
    "output_tokens_per_s",
    "requests_per_s",
)
RATES = ("output_tokens_per_s", "requests_per_s")
_OTHER_SEED = 1
_Key: TypeAlias = Callable[[LevelSummary], tuple[Any, ...]]


def write_comparison(
    baseline: Path, candidate: Path, out: Path, *, force: bool, command: str, across_kinds: bool
) -> Comparison:
    """Write `comparison.json`, `comparison.html` and the chart of two runs; return the comparison.

    Raises:
        UserError: As `compare` does; or `out` may not be written.
    """
    from loadtest.report import charts  # noqa: PLC0415 (Matplotlib; to compare needs no chart)

    runs = (baseline, candidate)
    refuse_existing(out, force=force, inputs=runs)
    found = compare(baseline, candidate, command=command, across_kinds=across_kinds)
    with whole_folder(out, made_by=found.made_by, force=force, inputs=runs) as folder:
        write_json(folder / COMPARISON_NAME, found)
        (folder / "charts").mkdir()
        drawing = charts.changes(found)
        (folder / "charts" / "changes.svg").write_text(drawing.svg, encoding="utf-8")
        (folder / "charts" / "changes.png").write_bytes(drawing.png)
        write_text(folder / COMPARISON_PAGE, comparison_page(found, themed(drawing.svg)))
    return found


def compare(baseline: Path, candidate: Path, *, command: str, across_kinds: bool) -> Comparison:
    """Return the changes from one run to another.

    Args:
        across_kinds: Whether the two may be of different kinds.

    Raises:
        UserError: A folder is not a run, the kinds differ without `across_kinds`, or there is no common level.
    """
    base, new = load_runs([baseline, candidate])
    if base.manifest.kind != new.manifest.kind and not across_kinds:
        raise UserError(
            f"{baseline} is {base.manifest.kind}, {candidate} is {new.manifest.kind}: runs of different kinds",
            hint="compare them with --across-kinds, which labels each column with its kind",
        )
    summaries = [run.summary(confidence=False) for run in (base, new)]
    pairs, unmatched = _pairs(summaries[0], summaries[1], _key_of(base, new))
    if not pairs:
        raise UserError(
            f"{baseline} and {candidate} have no level in common: {'; '.join(unmatched)}",
            hint="levels match if load, prompt length and reply length are equal",
        )
    levels = [_level((base, new), (summaries[0], summaries[1]), pair) for pair in pairs]
    return Comparison(
        made_by=made_by(command),
        made_from=[*base.sources(), *new.sources()],
        baseline=_side(base, summaries[0]),
        candidate=_side(new, summaries[1]),
        levels=levels,
        unmatched=tuple(unmatched),
        differences=tuple(_differences(base, new)),
        verdict=_verdict(levels),
    )


def _pairs(base: Summary, new: Summary, key: _Key) -> tuple[list[tuple[int, int]], list[str]]:
    """Return the indices of levels that both have, and texts about the levels that only one has."""
    places = {key(level): place for place, level in enumerate(new.levels)}
    pairs = [(place, places[key(level)]) for place, level in enumerate(base.levels) if key(level) in places]
    shared = {key(base.levels[place]) for place, _ in pairs}
    alone: dict[str, list[str]] = {}
    for side, summary in (("baseline", base), ("candidate", new)):
        for level in summary.levels:
            if key(level) not in shared:
                alone.setdefault(f"{side}, prompts {level.isl}, replies {level.osl}", []).append(level.load)
    return pairs, [f"{of}: load {', '.join(loads)}" for of, loads in alone.items()]


def _key_of(base: LoadedRun, new: LoadedRun) -> _Key:
    """Return the function that identifies a level: its load, and its lengths unless both runs draw them alike."""
    traffic = [(run.manifest.scenario.lengths, run.manifest.scenario.classes) for run in (base, new)]
    if traffic[0] == traffic[1]:
        return lambda level: (level.concurrency, level.rate_per_s)
    return lambda level: (level.concurrency, level.rate_per_s, level.isl, level.osl)


def _level(
    runs: tuple[LoadedRun, LoadedRun], summaries: tuple[Summary, Summary], places: tuple[int, int]
) -> LevelChanges:
    base, new = (summary.levels[place] for summary, place in zip(summaries, places, strict=True))
    drawn = [
        _replicates(_counted(run, place), seed=bootstrap.SEED + _OTHER_SEED * side)
        for side, (run, place) in enumerate(zip(runs, places, strict=True))
    ]
    return LevelChanges(
        load=base.load,
        isl=base.isl,
        osl=base.osl,
        requests=(base.requests, new.requests),
        errors=(base.errors, new.errors),
        changes=[_change(name, (base, new), (drawn[0].get(name), drawn[1].get(name))) for name in FIGURES],
    )


def _counted(run: LoadedRun, place: int) -> Counted:
    level: Level = run.manifest.levels[place]
    of_level = run.columns.select(run.columns.level == place)
    return counted(level, of_level, time_scale=run.manifest.time_scale, settles=settles(run.manifest))


def _replicates(found: Counted, *, seed: int) -> dict[str, Floats]:
    """Return the replicates of each figure by name; in engine seconds, or per engine second."""
    drawn: dict[str, Floats] = dict(rate_replicates(found, seed=seed))
    resampler = resampler_of(found, seed=seed)
    if resampler is None:
        return drawn
    latencies = latencies_of(found)
    for quantity in dict.fromkeys(name.partition(" ")[0] for name in FIGURES if name not in RATES):
        values, counts = felt(latencies, quantity)
        if len(values):
            replicates = resampler.replicates(values, counts)
            drawn |= {f"{quantity} {name}": each / found.time_scale for name, each in replicates.items()}
    return drawn


def _change(name: str, levels: tuple[LevelSummary, LevelSummary], drawn: tuple[Floats | None, Floats | None]) -> Change:
    values = [level.figure(name) for level in levels]
    ratio = values[1] / values[0] - 1 if values[0] and values[1] is not None else None
    low, high = None, None
    if ratio is not None and drawn[0] is not None and drawn[1] is not None and _is_supported(name, levels):
        low, high = bootstrap.middle(drawn[1] / np.maximum(drawn[0], 1e-12) - 1)
        low, high = min(low, ratio), max(high, ratio)
    better = "higher" if name in RATES else "lower"
    outcome = _outcome(better, ratio, low, high)
    words = _words(outcome, ratio, low, high)
    if name in RATES and all(_keeps_up(level) for level in levels):
        outcome, words = "unknown", "the offered load, not the capacity: both runs kept up with an open loop"
    return Change(
        figure=name,
        better="higher" if name in RATES else "lower",
        baseline=values[0],
        candidate=values[1],
        change_ratio=ratio,
        low=low,
        high=high,
        outcome=outcome,
        words=words,
    )


def _keeps_up(level: LevelSummary) -> bool:
    """Whether an open loop kept up: its rates are then those of its arrivals."""
    return level.concurrency is None and not (level.steady is not None and level.steady.growing)


def _is_supported(name: str, levels: Sequence[LevelSummary]) -> bool:
    """Whether both samples are large enough for the percentile."""
    quantity, _, statistic = name.partition(" ")
    for level in levels:
        found = {"ttft_s": level.felt_ttft_s, "e2e_s": level.felt_e2e_s}.get(quantity) or getattr(level, quantity)
        if statistic and found is not None and statistic in found.unsupported:
            return False
    return True


def _outcome(better: str, ratio: float | None, low: float | None, high: float | None) -> Outcome:
    if ratio is None or low is None or high is None:
        return "unknown"
    if -SAME_RATIO <= low <= high <= SAME_RATIO:
        return "same"
    if low <= 0 <= high:
        return "unclear"
    return "better" if (ratio > 0) == (better == "higher") else "worse"


def _words(outcome: Outcome, ratio: float | None, low: float | None, high: float | None) -> str:
    """Return a change in words; what rounds to zero has no minus sign.

    >>> _words("same", -1e-9, -1e-6, 0.0)
    'the same within 2% (+0.0% to +0.0%)'
    """
    if ratio is None:
        return "not measured in both"
    if low is None or high is None:
        return f"{ratio:+z.1%}; too few requests"
    ends = f"{low:+z.1%} to {high:+z.1%}"
    return {
        "same": f"the same within {SAME_RATIO:.0%} ({ends})",
        "unclear": f"no difference detected; it may be {ends}",
        "better": f"better: {ratio:+z.1%} ({ends})",
        "worse": f"worse: {ratio:+z.1%} ({ends})",
        "unknown": f"{ratio:+z.1%}",
    }[outcome]


def _verdict(levels: Sequence[LevelChanges]) -> str:
    found = [change.outcome for level in levels for change in level.changes]
    known = [outcome for outcome in found if outcome != "unknown"]
    counts = {outcome: known.count(outcome) for outcome in ("better", "worse", "same", "unclear")}
    chance = (1 - bootstrap.CONFIDENCE) * len(known)
    return (
        f"{counts['worse']} worse, {counts['better']} better, {counts['same']} the same, {counts['unclear']} "
        f"unclear, {len(found) - len(known)} without enough requests; of {len(known)} at {bootstrap.CONFIDENCE:.0%} "
        f"confidence about {chance:.0f} would differ by chance alone"
    )


def _side(run: LoadedRun, summary: Summary) -> Side:
    server = run.manifest.server
    return Side(
        name=run.name,
        kind=run.manifest.kind,
        label=run.manifest.label,
        engine=server.engine or server.model,
        valid=summary.valid,
        validity_issues=tuple(issue.text for issue in summary.validity_issues),
    )


def _differences(base: LoadedRun, new: LoadedRun) -> list[Difference]:
    """Return other differences: server, scenario, time scale."""
    sides = [_flat({"server": run.manifest.server.model_dump(), "scenario": run.manifest.scenario.model_dump(),
                    "time_scale": run.manifest.time_scale}) for run in (base, new)]  # fmt: skip
    keys = dict.fromkeys([*sides[0], *sides[1]])
    return [
        Difference(key=key, baseline=sides[0].get(key, "-"), candidate=sides[1].get(key, "-"))
        for key in keys
        if sides[0].get(key) != sides[1].get(key)
    ]


def _flat(values: dict[str, Any], above: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{above}{key}.")
        else:
            flat[f"{above}{key}"] = str(value)
    return flat
