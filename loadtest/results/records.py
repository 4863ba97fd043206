"""The files of a run: one record per request, one line per metrics sample, and run.json."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from engines.errors import MissingError, UserError
from engines.files import Document, SchemaT, Strict, not_of_kind, parse_json, read_json, text_file, validate
from engines.outputs import is_being_written
from engines.units import short_number
from loadtest.results.model_versions import ModelVersions
from loadtest.scenario import Scenario

RUN_NAME = "run.json"
REQUESTS_NAME = "requests.jsonl"
SAMPLES_NAME = "samples.jsonl"
PROMPTS_NAME = "prompts.jsonl"
RUN_FILES = (RUN_NAME, REQUESTS_NAME, SAMPLES_NAME, PROMPTS_NAME)  # all files of a run folder

# Tolerance between the clocks: arrivals are timestamped by the kernel, other times by the process.
CLOCKS_APART_S = 0.001
LATEST_S = 1e9  # 32 years: no run lasts longer, and squares of its times stay finite

Kind = Literal["measured", "emulated", "predicted"]
Phase = Literal["warmup", "measure", "fill"]
Outcome = Literal["ok", "error", "timeout", "cut", "empty", "rejected", "cancelled", "lost"]
# Ended by the run, not by the server: in flight when the run was interrupted, or in a worker that was lost.
INCOMPLETE: frozenset[Outcome] = frozenset({"cancelled", "lost"})


Count = Annotated[int, Field(ge=0, lt=1 << 63)]  # columns are 64-bit, with -1 for unknown values


class RequestRecord(Strict):
    """One request; seconds since the start of the run, on one monotonic clock, unscaled.

    Attributes:
        level: Index into the run's levels.
        phase: `warmup` before the level's measurement; `fill` once all measured requests are in flight: sent to
            maintain the load until the last of those has ended.
        scheduled_s: When it was due; in a closed loop, when its user was free.
        token_times_s: When each output token arrived.
        outcome: `cut`: the stream ended before the last token; `empty`: it succeeded without a token; `rejected`: the
            server's queue was full; `timeout`: it did not end in time, or not before the level's time limit;
            `cancelled`: in flight when the run was interrupted, or an unmeasured one in flight when the level ended;
            `lost`: in flight in a worker that was lost.
        asked_tokens: Requested reply length; None if it was free, or in records of earlier versions.
        bundled_tokens: Tokens that arrived in one response together with the one before them.
        queue_s: Time in the server's queue, if the server reports it.
        cached_tokens: Prompt tokens that the server reports as found in its KV cache; at most `prompt_tokens`.
        class_name: Class of a mix; None if there is only one.
        conversation: Number of the conversation that the request belongs to; None for a single request.
        turn: Place in its conversation, from 0.
        worker: Worker that sent it.
        finish_reason: Why the reply ended, if the server reports it.
    """

    id: Count
    level: Count
    phase: Phase
    scheduled_s: float
    sent_s: float
    token_times_s: tuple[float, ...]
    done_s: float
    prompt_tokens: Count
    output_tokens: Count
    outcome: Outcome
    error: str | None = None
    asked_tokens: Count | None = None
    bundled_tokens: Count = 0
    queue_s: float | None = None
    cached_tokens: Count | None = None
    class_name: str | None = None
    conversation: Count | None = None
    turn: Count = 0
    worker: Count = 0
    finish_reason: str | None = None

    @property
    def is_incomplete(self) -> bool:
        """Whether it was measured and neither succeeded nor failed: the run ended it."""
        return self.phase == "measure" and self.outcome in INCOMPLETE


def response_times_s(token_times_s: Sequence[float], *, bundled: bool) -> Sequence[float]:
    """Return when the responses of a reply arrived: where some had several tokens, those of one time are one.

    >>> response_times_s((1.0, 1.2, 1.2, 1.3), bundled=True)
    (1.0, 1.2, 1.3)
    """
    return tuple(time_s for time_s, _ in groupby(token_times_s)) if bundled else token_times_s


def load_text(concurrency: int | None, rate_per_s: float | None) -> str:
    """Return a load in short form: users of a closed loop, or a rate with three digits.

    >>> load_text(8, None), load_text(None, 0.5), load_text(None, 24.4367)
    ('8', '0.5/s', '24.4/s')
    """
    return str(concurrency) if concurrency is not None else f"{short_number(rate_per_s or 0)}/s"


class Level(Strict):
    """One level of the sweep: when it ran, and its load; seconds as in the records.

    Attributes:
        measure_s: When measurement started: every user had warmed up.
        end_s: When the last measured request ended.
        concurrency: Users of a closed loop; None in an open one.
        rate_per_s: Requests or conversations per second of an open loop; None in a closed one.
        begun: Which of the two.
        failed_rows: Rows of a trace skipped because they have no prompt or no reply.
        complete: Whether all requested requests were measured.
        sufficed: Whether it ended early because its results were conclusive; requests in flight then were not measured.
        generator_late_p99_s: 99th percentile of the lateness of the generator's timers; the latest worker's.
        away_s: How long the server accepted no connections.
        read_late_p99_s: 99th percentile of the delay between arrival in the kernel and reading.
        clock: Source of the arrival times: the `kernel`'s timestamps, the `reader`'s clock at the time of reading, or a
            `mixed` set.
    """

    concurrency: int | None
    isl: int
    osl: int
    begin_s: float
    measure_s: float
    end_s: float
    complete: bool
    generator_late_p99_s: float = 0.0
    read_late_p99_s: float = 0.0
    clock: Literal["kernel", "reader", "mixed"] = "reader"
    rate_per_s: float | None = None
    begun: Literal["requests", "conversations"] = "requests"
    failed_rows: int = 0
    away_s: float = 0.0
    sufficed: bool = False

    @property
    def load(self) -> str:
        """The offered load, in words."""
        if self.concurrency is not None:
            return f"concurrency {self.concurrency}"
        return f"{self.rate_per_s or 0:g} {self.begun}/s"


class Sample(Strict):
    """Server metrics at one moment: series text, as in `nv_...{label="value"}`, to value.

    Attributes:
        t_s: When the page was requested.
        ended_s: When it had been read; None in records of earlier versions.
        page: Index of the metrics page.
    """

    t_s: float
    values: dict[str, float]
    ended_s: float | None = None
    page: Count = 0


class ServerFacts(Strict):
    """Facts reported by the server.

    Attributes:
        llm_api: Whether it serves TensorRT-LLM's LLM API model, which takes text.
        perf_metrics: Whether the model can return its own timings with a reply (`return_perf_metrics`).
        kv_block_tokens: Tokens per KV cache block; None if not reported.
        counts_are_exact: Whether each message of its protocol says how many tokens it has; if not, they are spread over
            the messages by characters.
    """

    url: str
    protocol: str
    model: str
    triton_version: str
    emulated: bool
    time_scale: float
    engine: str | None = None
    llm_api: bool = False
    perf_metrics: bool = False
    kv_block_tokens: int | None = None
    counts_are_exact: bool = True

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_runs(cls, values: Any) -> Any:
        """Add what runs of 0.4.0 and earlier do not state: their protocols except OpenAI's counted each message."""
        if not isinstance(values, dict) or "counts_are_exact" in values:
            return values
        return values | {"counts_are_exact": not str(values.get("protocol")).startswith("openai-")}


class WorkerClock(Strict):
    """Offset of a worker's monotonic clock from the run's clock before a level; seconds.

    Attributes:
        offset_s: How far it was ahead, by the shortest round trip.
        uncertainty_s: Half that round trip: the maximum error of the offset.
        drift_s: How much further it was ahead at the end of the level.
    """

    worker: int
    host: str
    level: int
    offset_s: float
    uncertainty_s: float
    drift_s: float = 0.0


class ValidityIssue(Strict):
    """A reason not to rely on a run's figures: the observation, and the limit that it exceeded."""

    code: str
    text: str
    level: int | None = None


class RunManifest(Document):
    """`run.json`.

    Attributes:
        time_scale: Wall seconds per engine second, by which every duration in the files is divided.
        interrupted: Why the run ended before its last level; None if it was complete.
        validity_issues: Empty if the run is valid.
        workers: Load generator processes that shared the levels.
        clocks: Each worker's clock offset; empty for a single process.
        unfinished: The run was in progress when this was written; `read_run` completes a killed run.
    """

    kind: Kind
    time_scale: float
    server: ServerFacts
    scenario: Scenario
    levels: list[Level]
    interrupted: str | None = None
    validity_issues: tuple[ValidityIssue, ...] = Field(
        default=(), validation_alias=AliasChoices("validity_issues", "doubts")
    )
    workers: int = 1
    clocks: tuple[WorkerClock, ...] = ()
    unfinished: bool = False

    @property
    def label(self) -> str:
        """Label of every figure of this run."""
        return f"{self.kind}, time scale x{self.time_scale:g}" if self.kind == "emulated" else self.kind


def run_path(folder: Path) -> Path:
    """Return the path of a run folder's `run.json`.

    Raises:
        MissingError: There is no such folder.
        UserError: It is a file, or a folder that has none.
    """
    path = folder / RUN_NAME
    if not path.is_file():
        inside = min((*folder.glob(f"*/{RUN_NAME}"), *folder.glob(f"*/*/{RUN_NAME}")), default=None)
        hint = "give the output folder of run-load or predict-load --out"
        hint = f"it contains runs: {inside.parent}, ..." if inside else hint
        raise not_of_kind("a run folder", folder, RUN_NAME, hint=hint)
    return path


def read_run(folder: Path) -> RunManifest:
    """Read a run folder's `run.json`; the last level of a killed run is completed from its records.

    Raises:
        MissingError, UserError: As `files.read_json` does; or the run is in progress, or was cut short before any
            request ended.
    """
    run = read_json(run_path(folder), RunManifest)
    if run.unfinished and is_being_written(folder):
        raise UserError(
            f"{folder}: the run is still in progress",
            hint="wait for its end, or stop its run-load with Ctrl-C: what it has recorded is kept",
        )
    return _recovered(folder, run) if run.unfinished else run


def _recovered(folder: Path, run: RunManifest) -> RunManifest:
    """Return a run that was cut short, marked as interrupted, with its last level completed from its records."""
    last = len(run.levels) - 1
    records = read_records(folder) if (folder / REQUESTS_NAME).is_file() else iter(())
    measure_s, end_s, count = math.inf, 0.0, 0
    for record in records:
        count += 1
        if record.level == last and record.phase == "measure":
            measure_s, end_s = min(measure_s, record.sent_s), max(end_s, record.done_s)
    if not count or last < 0:
        raise UserError(f"{folder}: the run was interrupted before any request ended", hint="run it again")
    levels = list(run.levels)
    if not levels[last].complete and measure_s < math.inf:
        levels[last] = levels[last].model_copy(update={"measure_s": measure_s, "end_s": end_s})
    why = "cut short: run-load was killed"
    return run.model_copy(update={"levels": levels, "interrupted": run.interrupted or why})


def read_records(folder: Path, *, check: bool = True) -> Iterator[RequestRecord]:
    """Yield a run's records in the order in which they ended.

    Args:
        check: Whether to refuse impossible records; a run completes its own folder without this check.

    Raises:
        MissingError: The file does not exist.
        UserError: A line is damaged, a time is not finite, impossibly large or out of order, an id is repeated, or more
            tokens were cached than a prompt has. An incomplete last line of an interrupted run is skipped.
    """
    seen: set[int] = set()
    path = folder / REQUESTS_NAME
    name = str(path)
    for number, line in enumerate(_lines(path), start=1):
        record = _record_of(line, name, number)
        wrong = f"id {record.id} is repeated" if record.id in seen else _contradiction(record)
        if wrong is not None and check:
            raise UserError(f"{name}: line {number}: {wrong}", hint="the file may have been edited or damaged")
        seen.add(record.id)
        yield record


def _record_of(line: str, name: str, number: int) -> RequestRecord:
    """Return a line's record; a faulty line is parsed again, slowly, by code that names the error."""
    try:
        return RequestRecord.model_validate_json(line)
    except ValueError:
        return _validated(line, RequestRecord, name, number)


def _validated(line: str, schema: type[SchemaT], name: str, number: int) -> SchemaT:
    where = f"{name}: line {number}"
    return validate(parse_json(line, where=where), schema, where=where)


def _contradiction(record: RequestRecord) -> str | None:
    """Return why a record is impossible; None if it is possible."""
    if record.cached_tokens is not None and record.cached_tokens > record.prompt_tokens:
        return (
            f"request {record.id} has {record.cached_tokens:,} cached tokens of {record.prompt_tokens:,} prompt tokens"
        )
    times = record.token_times_s
    if not math.isfinite(record.scheduled_s + record.sent_s + record.done_s + (record.queue_s or 0.0) + sum(times)):
        return f"request {record.id} has a time that is not finite"
    extremes_s = (record.scheduled_s, record.sent_s, record.done_s, record.queue_s or 0.0, *times[:1], *times[-1:])
    if max(map(abs, extremes_s)) > LATEST_S:
        return f"request {record.id} has a time of more than {LATEST_S:,.0f} s"
    first_s, last_s = (times[0], times[-1]) if times else (record.done_s, record.done_s)
    begun_s = max(record.scheduled_s, record.sent_s)
    is_ordered = begun_s <= first_s + CLOCKS_APART_S and last_s <= record.done_s + CLOCKS_APART_S
    if not is_ordered or tuple(sorted(times)) != times:
        return f"the times of request {record.id} are out of order"
    return None


def read_samples(folder: Path) -> Iterator[Sample]:
    """Yield a run's samples in order, the versions of a model merged; none if the server had no metrics.

    Raises as `read_records` does.
    """
    path = folder / SAMPLES_NAME
    if path.is_file():
        versions = ModelVersions()
        for number, line in enumerate(_lines(path), start=1):
            sample = _validated(line, Sample, str(path), number)
            yield sample.model_copy(update={"values": versions.merged(sample.page, sample.values)})


def _lines(path: Path) -> Iterator[str]:
    """Yield a file's whole lines."""
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="check that this is a run folder")
    with text_file(path) as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield line
