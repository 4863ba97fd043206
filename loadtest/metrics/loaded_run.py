"""Loaded run folders: records as columns, samples as arrays; the input of every report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from engines.errors import UserError
from engines.files import Source, source_of
from loadtest.metrics.batch_size import Samples, samples_of
from loadtest.metrics.summarize import summarize
from loadtest.metrics.summary import Summary
from loadtest.metrics.timeline import RunDetail, detail_of
from loadtest.results import (
    REQUESTS_NAME,
    RUN_NAME,
    SAMPLES_NAME,
    Columns,
    RunManifest,
    Sample,
    columns_of,
    read_records,
    read_run,
    read_samples,
    run_path,
)
from loadtest.scenario import Objectives


class LoadedRun(NamedTuple):
    """One run folder.

    Attributes:
        name: Its name among the runs given.
    """

    folder: Path
    name: str
    manifest: RunManifest
    columns: Columns
    samples: list[Sample]

    @property
    def sampled(self) -> Samples:
        """The samples as arrays."""
        return samples_of(self.samples)

    def summary(self, objectives: Objectives | None = None, *, confidence: bool = True) -> Summary:
        """Return the run's summary, with the run's name at each level."""
        found = summarize(self.manifest, self.columns, self.samples, objectives=objectives, confidence=confidence)
        return found.model_copy(
            update={
                "runs": [run.model_copy(update={"name": self.name}) for run in found.runs],
                "levels": [level.model_copy(update={"run": self.name}) for level in found.levels],
            }
        )

    def detail(self) -> RunDetail:
        """Return the run's distributions and timeline."""
        return detail_of(self.name, self.manifest, self.columns, self.sampled)

    def sources(self) -> list[Source]:
        """Return the run's files with their hashes."""
        files = [self.folder / name for name in (RUN_NAME, REQUESTS_NAME, SAMPLES_NAME)]
        return [source_of(path) for path in files if path.is_file()]


def load_runs(folders: Sequence[Path]) -> list[LoadedRun]:
    """Read run folders.

    Raises:
        UserError: A folder is not a run or is given twice, or a line does not match the schema.
    """
    _refuse_unusable(folders)
    return [_load(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]


def summary_of_runs(folders: Sequence[Path], records: Sequence[Columns | None]) -> Summary:
    """Return the summary of runs of one kind without confidence intervals, as displayed at a run's end.

    Raises as `load_runs` does.

    Args:
        records: Of each run; None: they are read.
    """
    _refuse_unusable(folders)
    named_folders = zip(folders, _names(folders), records, strict=True)
    runs = [_load(folder, name, columns) for folder, name, columns in named_folders]
    first, *others = parts = [run.summary(confidence=False) for run in runs]
    named = [
        issue.model_copy(update={"text": f"{run.name}: {issue.text}"}) if others else issue
        for run, part in zip(runs, parts, strict=True)
        for issue in part.validity_issues
    ]
    return first.model_copy(
        update={
            "valid": not named,
            "validity_issues": named,
            "runs": [facts for part in parts for facts in part.runs],
            "levels": [level for part in parts for level in part.levels],
        }
    )


def refuse_mixed_kinds(runs: Sequence[LoadedRun], *, hint: str) -> None:
    """Refuse runs of several kinds.

    Raises:
        UserError: There are several; states each run's kind.
    """
    if len({run.manifest.kind for run in runs}) > 1:
        found = ", ".join(f"{run.folder} is {run.manifest.kind}" for run in runs)
        raise UserError(f"runs of different kinds cannot share a report: {found}", hint=hint)


def _refuse_unusable(folders: Sequence[Path]) -> None:
    if not folders:
        raise UserError("no run folder was given", hint="report-load RUN_DIR...")
    for folder in folders:
        run_path(folder)
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise UserError("the same run was given twice", hint="give different run folders")


def _load(folder: Path, name: str, columns: Columns | None = None) -> LoadedRun:
    manifest = read_run(folder)
    try:
        records = columns_of(read_records(folder)) if columns is None else columns
        return LoadedRun(folder, name, manifest, records, list(read_samples(folder)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{folder}: a line of {error.title}: {key}: {first['msg']}") from error


def _names(folders: Sequence[Path]) -> list[str]:
    """Name runs by their folders; by their paths if two folders have the same name."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]
