"""Transfer of the plan and its files to a worker."""

from __future__ import annotations

import hashlib
from pathlib import Path

from loadtest.generator.plan import GeneratorPlan
from loadtest.scenario import Scenario
from loadtest.traffic import PREPARED_SUFFIXES, LevelPlan


def schedule_digest(plans: list[LevelPlan]) -> str:
    """Return a digest of a schedule: machines that draw different schedules must not share a run."""
    return hashlib.sha256(repr([(plan.concurrency, plan.arrivals) for plan in plans]).encode()).hexdigest()


def files_of(plan: GeneratorPlan) -> dict[str, Path]:
    """Return the files that a worker needs, by name: prompt sources, a trace, lengths."""
    found = {path.name: path for path in sorted(Path(plan.prompts).iterdir()) if path.suffix in PREPARED_SUFFIXES}
    return found | {name: Path(path) for path, name in _names_of(plan.scenario).items()}


def _names_of(scenario: Scenario) -> dict[str, str]:
    """Return the names of a scenario's files at a worker, by their paths here."""
    paths = enumerate(scenario.files(prompts=False))
    return {str(path): f"input-{number}{path.suffix}" for number, path in paths}


def with_files(plan: GeneratorPlan, folder: Path) -> GeneratorPlan:
    """Return the plan with the paths of the files at this worker."""
    names = _names_of(plan.scenario)
    scenario = plan.scenario.moved(lambda path: str(folder / names[path]) if path in names else path)
    return plan.model_copy(update={"prompts": str(folder), "scenario": scenario})
