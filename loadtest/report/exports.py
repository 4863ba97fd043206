"""Exports of a run's figures: CSV, Parquet, and AIPerf's JSON.

Durations are engine seconds, as in the summary. The AIPerf format is that of its `profile_export_aiperf.json`, schema
1.1: one file per level, since AIPerf's own covers one load; ms and its metric names. AIPerf's `inter_token_latency` is
a mean per request, our TPOT; its `inter_chunk_latency` is every gap, our ITL.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engines.errors import MissingError
from engines.units import MS_PER_S
from loadtest.metrics import (
    Counted,
    LevelSummary,
    LoadedRun,
    RunDetail,
    Spread,
    Summary,
    counted,
    latencies_of,
    request_latencies,
    settles,
)
from loadtest.results import OUTCOMES, PHASES, UNKNOWN

EXPORTS_NAME = "exports"
AIPERF_SCHEMA = "1.1"
_SPREADS = (
    "ttft_s",
    "ttft_scheduled_s",
    "ttst_s",
    "itl_s",
    "tpot_s",
    "e2e_s",
    "e2e_scheduled_s",
    "normalized_s",
    "queue_s",
)
_STATISTICS = ("count", "mean", "min", "p50", "p90", "p95", "p99", "p999", "max")
_AIPERF_PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)


class _Repeated(NamedTuple):
    """A column with the same word in every row."""

    word: str
    rows: int


def write_exports(folder: Path, runs: Sequence[LoadedRun], summary: Summary, details: Sequence[RunDetail]) -> None:
    """Write every export of some runs into a new folder.

    Raises:
        MissingError: pyarrow is not installed.
    """
    folder.mkdir()
    write_levels(folder / "levels.csv", summary)
    write_timeline(folder / "timeline.csv", details)
    _write_requests(folder, runs)
    for run in runs:
        of_run = [level for level in summary.levels if level.run == run.name]
        for place, level in enumerate(of_run):
            write_aiperf(folder / "aiperf" / _level_name(run, place, level, several=len(runs) > 1), run, place, level)


def write_levels(path: Path, summary: Summary) -> None:
    """Write one row per level: load, statistics, rates and batch sizes, with their confidence intervals."""
    rows = [_level_row(summary, level) for level in summary.levels]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _level_row(summary: Summary, level: LevelSummary) -> dict[str, Any]:
    plain = (
        "run concurrency rate_per_s isl osl complete requests errors window window_s output_tokens_per_s "
        "input_tokens_per_s requests_per_s goodput kv_blocks_used kv_ratio waiting bundled_tokens cached_ratio"
    )
    row: dict[str, Any] = {"kind": summary.kind, "label": summary.label, "valid": summary.valid}
    row |= {name: getattr(level, name) for name in plain.split()}
    for name, found in (("batch_size", level.batch_size), ("batch_size_client", level.batch_size_client)):
        row |= {f"{name}_{part}": getattr(found, part, None) for part in ("mean", "p50", "p95", "max")}
    for name, (low, high) in (level.rates_ci or {}).items():
        row |= {f"{name}_low": low, f"{name}_high": high}
    for name in _SPREADS:
        row |= _spread_row(name.removesuffix("_s"), getattr(level, name))
    return row


def _spread_row(name: str, found: Spread | None) -> dict[str, Any]:
    row: dict[str, Any] = {f"{name}_{part}_s": getattr(found, part, None) for part in _STATISTICS if part != "count"}
    row[f"{name}_count"] = None if found is None else found.count
    row[f"{name}_unsupported"] = "" if found is None else " ".join(found.unsupported)
    for part, (low, high) in ((found.ci if found else None) or {}).items():
        row |= {f"{name}_{part}_low_s": low, f"{name}_{part}_high_s": high}
    return row


def write_timeline(path: Path, details: Sequence[RunDetail]) -> None:
    """Write one row for each bin of each run's time; empty where the server reported nothing."""
    found = [(detail.name, detail.timeline) for detail in details if detail.timeline is not None]
    names = list(dict.fromkeys(name for _, timeline in found for name in timeline.series))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "t_s", *names])
        for run, timeline in found:
            for place, t_s in enumerate(timeline.t_s.tolist()):
                values = [timeline.series[name][place] if name in timeline.series else np.nan for name in names]
                writer.writerow([run, f"{t_s:.6f}", *("" if np.isnan(value) else f"{value:.6g}" for value in values)])


def _write_requests(folder: Path, runs: Sequence[LoadedRun]) -> None:
    try:
        import pyarrow as pa  # noqa: PLC0415 (an extra)
        import pyarrow.csv as pa_csv  # noqa: PLC0415
        import pyarrow.parquet as pa_parquet  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingError(
            f"{error.name} is not installed", hint="pip install 'engine-to-capacity[load]', or --no-exports"
        ) from error
    table = pa.concat_tables(
        [pa.table({name: _array(pa, values) for name, values in request_columns(run).items()}) for run in runs]
    )
    pa_csv.write_csv(table, folder / "requests.csv")
    pa_parquet.write_table(table, folder / "requests.parquet")
    schema = pa.schema([("run", pa.string()), ("id", pa.int64()), ("token", pa.int64()), ("gap_s", pa.float32())])
    with pa_parquet.ParquetWriter(folder / "token_gaps.parquet", schema) as writer:
        for run in runs:
            for columns in _gap_columns(run):
                writer.write_table(pa.table({name: _array(pa, values) for name, values in columns.items()}, schema))


def _array(pa: Any, values: Any) -> Any:
    """Return a column as Arrow's array, from its bytes: `pyarrow.array` would import pandas, for a quarter of a second.

    Args:
        values: Numbers, masked where null; or words, None where null; or a repeated word.
    """
    if isinstance(values, _Repeated):
        word = values.word.encode()
        offsets = np.arange(values.rows + 1, dtype=np.int32) * len(word)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(word * values.rows)]
        return pa.Array.from_buffers(pa.string(), values.rows, buffers)
    if isinstance(values, list):
        words = [b"" if word is None else word.encode() for word in values]
        offsets = np.cumsum([0, *map(len, words)], dtype=np.int32)
        null = np.array([word is None for word in values], dtype=bool)
        return pa.Array.from_buffers(
            pa.string(), len(words), [_valid(pa, null), *map(pa.py_buffer, (offsets, b"".join(words)))]
        )
    numbers = np.ascontiguousarray(np.ma.getdata(values))
    valid = _valid(pa, np.ma.getmaskarray(values))
    return pa.Array.from_buffers(pa.from_numpy_dtype(numbers.dtype), len(numbers), [valid, pa.py_buffer(numbers)])


def _valid(pa: Any, null: npt.NDArray[np.bool_]) -> Any:
    """Return Arrow's bitmap of the values that are not null; None where all are."""
    return pa.py_buffer(np.packbits(~null, bitorder="little")) if null.any() else None


def request_columns(run: LoadedRun) -> dict[str, Any]:
    """Return a run's requests as columns of equal length, engine seconds; nan or None where not reported."""
    found, scale = run.columns, run.manifest.time_scale
    sent, due = request_latencies(found, is_open=False), request_latencies(found, is_open=True)
    seconds = {
        "scheduled_s": found.scheduled_s,
        "sent_s": found.sent_s,
        "done_s": found.done_s,
        "ttft_s": sent.ttft_s,
        "ttft_scheduled_s": due.ttft_s,
        "ttst_s": sent.ttst_s,
        "tpot_s": sent.tpot_s,
        "longest_gap_s": sent.longest_gap_s,
        "e2e_s": sent.e2e_s,
        "queue_s": found.queue_s,
    }
    counts = ("prompt_tokens", "output_tokens", "asked_tokens", "cached_tokens", "bundled_tokens", "turn", "worker")
    return {
        "run": _Repeated(run.name, len(found)),
        "kind": _Repeated(run.manifest.kind, len(found)),
        "id": found.id,
        "level": found.level,
        "phase": _words(found.phase, PHASES),
        "outcome": _words(found.outcome, OUTCOMES),
        "class": _words(found.class_name, found.names),
        "conversation": _maybe(found.conversation),
        **{name: values / scale for name, values in seconds.items()},
        **{name: _maybe(getattr(found, name)) for name in counts},
        "error": _words(found.error, found.errors),
    }


def _words(places: npt.NDArray[np.int64], words: Sequence[str]) -> list[str | None]:
    return [None if place == UNKNOWN else words[place] for place in places.tolist()]


def _maybe(values: npt.NDArray[np.int64]) -> Any:
    return np.ma.masked_equal(values, UNKNOWN) if (values == UNKNOWN).any() else values  # Arrow treats masks as null


def _gap_columns(run: LoadedRun) -> Any:
    """Yield a run's gaps between tokens, about a million rows at a time."""
    scale = run.manifest.time_scale
    for chunk in run.columns.token_chunks():
        same = chunk.row[1:] == chunk.row[:-1]
        row = chunk.row[1:][same]
        first = np.searchsorted(row, row, side="left")
        yield {
            "run": _Repeated(run.name, len(row)),
            "id": run.columns.id[row],
            "token": np.arange(len(row)) - first + 1,
            "gap_s": (np.diff(chunk.time_s)[same] / scale).astype(np.float32),
        }


def _level_name(run: LoadedRun, place: int, level: LevelSummary, *, several: bool) -> str:
    load = f"concurrency_{level.concurrency}" if level.concurrency is not None else f"rate_{level.offered:g}"
    parts = [run.name.replace("/", "_")] if several else []
    return "_".join([*parts, f"level_{place}", load])


def write_aiperf(folder: Path, run: LoadedRun, place: int, summary: LevelSummary) -> None:
    """Write one level as AIPerf's `profile_export_aiperf.json`."""
    manifest = run.manifest
    level = manifest.levels[place]
    of_level = run.columns.select(run.columns.level == place)
    found = counted(level, of_level, time_scale=manifest.time_scale, settles=settles(manifest))
    folder.mkdir(parents=True)
    document = {
        "schema_version": AIPERF_SCHEMA,
        **_aiperf_metrics(found, summary),
        "was_cancelled": manifest.interrupted is not None or not level.complete,
        "error_summary": [
            {"error_details": {"type": outcome, "message": outcome}, "count": count}
            for outcome, count in summary.errors_by_outcome.items()
        ],
        "engine_to_capacity": {  # AIPerf's readers ignore unknown keys
            "kind": manifest.kind,
            "label": manifest.label,
            "run": run.name,
            "level": place,
            "load": level.load,
            "validity_issues": [issue.text for issue in manifest.validity_issues if issue.level in {None, place}],
        },
    }
    (folder / "profile_export_aiperf.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _aiperf_metrics(found: Counted, summary: LevelSummary) -> dict[str, Any]:
    latencies, good, scale = latencies_of(found), found.good, found.time_scale
    durations = {
        "time_to_first_token": latencies["ttft_s"][0],
        "time_to_second_token": latencies["ttst_s"][0],
        "inter_token_latency": latencies["tpot_s"][0],
        "inter_chunk_latency": latencies["itl_s"][0],
        "request_latency": latencies["e2e_s"][0],
    }
    per_user = 1.0 / np.maximum(latencies["tpot_s"][0] / scale, 1e-9)
    records = {name: _record("ms", values * (MS_PER_S / scale)) for name, values in durations.items()}
    records |= {
        "output_token_throughput_per_user": _record("tokens/sec/user", per_user),
        "output_sequence_length": _record("tokens", good.output_tokens.astype(np.float64)),
        "output_token_count": _record("tokens", good.output_tokens.astype(np.float64)),
        "input_sequence_length": _record("tokens", good.prompt_tokens.astype(np.float64)),
    }
    scalars = {
        "request_count": ("requests", float(len(good))),
        "error_request_count": ("requests", float(summary.errors)),
        "request_throughput": ("requests/sec", summary.requests_per_s),
        "output_token_throughput": ("tokens/sec", summary.output_tokens_per_s),
        "goodput": ("requests/sec", _goodput_rate(summary)),
        "benchmark_duration": ("sec", summary.window_s),
        "total_isl": ("tokens", float(good.prompt_tokens.sum())),
        "total_osl": ("tokens", float(good.output_tokens.sum())),
    }
    known = {name: values for name, values in records.items() if values is not None}
    return known | {name: {"unit": unit, "avg": value} for name, (unit, value) in scalars.items() if value is not None}


def _goodput_rate(summary: LevelSummary) -> float | None:
    if summary.goodput is None or summary.requests_per_s is None:
        return None
    return summary.goodput * summary.requests_per_s


def _record(unit: str, values: npt.NDArray[np.floating]) -> dict[str, Any] | None:
    """Return AIPerf's block of one quantity; None without a value, which its readers treat as not applicable."""
    if not len(values):
        return None
    percentiles = np.percentile(np.sort(values), _AIPERF_PERCENTILES).tolist()  # the sum keeps the order of the values
    return {
        "unit": unit,
        "avg": float(values.mean(dtype=np.float64)),
        **{f"p{share}": value for share, value in zip(_AIPERF_PERCENTILES, percentiles, strict=True)},
        "min": float(values.min()),
        "max": float(values.max()),
        "std": float(values.std(ddof=1, dtype=np.float64)) if len(values) > 1 else 0.0,
        "count": len(values),
        "sum": float(values.sum(dtype=np.float64)),
    }
