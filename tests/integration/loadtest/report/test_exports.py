"""Exports say the same as the summary, in the layout that other tools read."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pa_parquet
import pytest

from engines.files import write_json
from loadtest.metrics.loaded_run import load_runs
from loadtest.report.report import write_report
from loadtest.results.columns import columns_of
from tests.unit.loadtest.made import level, manifest, record


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a report of 40 requests of five tokens at time scale 2; the run lies beside it."""
    folder = tmp_path_factory.mktemp("exports")
    run = folder / "run"
    run.mkdir()
    write_json(run / "run.json", manifest(level(1, 0.0, 80.0), time_scale=2.0))
    records = [
        record(place, 2.0 * place, [2.0 * place + 0.5 + 0.25 * step for step in range(5)]) for place in range(40)
    ]
    (run / "requests.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in records))
    write_report([run], folder / "out", force=False, command="report-load")
    return folder / "out"


def test_requests_and_gaps_in_parquet(written: Path) -> None:
    """Every request and every gap is there, in engine seconds."""
    requests = pa_parquet.read_table(written / "exports" / "requests.parquet").to_pydict()
    assert len(requests["id"]) == 40
    assert requests["ttft_s"][0] == pytest.approx(0.25)
    assert set(requests["outcome"]) == {"ok"}
    assert requests["class"][0] is None
    gaps = pa_parquet.read_table(written / "exports" / "token_gaps.parquet").to_pydict()
    assert len(gaps["gap_s"]) == 160
    assert gaps["token"][:5] == [1, 2, 3, 4, 1]
    assert np.mean(gaps["gap_s"]) == pytest.approx(0.125, rel=1e-6)


def test_runs_with_and_without_errors_share_a_table(tmp_path: Path) -> None:
    """A column without any value in one run has the other run's type: its words, and nulls."""
    for name, error in (("a", None), ("b", "status 503: überlastet")):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "run.json", manifest(level(1, 0.0, 24.0)))
        records = [record(place, 2.0 * place, [2.0 * place + 0.5, 2.0 * place + 1]) for place in range(12)]
        if error is not None:
            records[3] = records[3].model_copy(update={"outcome": "error", "error": error})
        (tmp_path / name / "requests.jsonl").write_text("".join(each.model_dump_json() + "\n" for each in records))
    write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "out", force=False, command="report-load")
    requests = pa_parquet.read_table(tmp_path / "out" / "exports" / "requests.parquet")
    requests.validate(full=True)
    assert [word for word in requests["error"].to_pylist() if word] == ["status 503: überlastet"]
    assert requests["error"].null_count == 23
    assert requests["run"].to_pylist() == ["a"] * 12 + ["b"] * 12


def test_levels_in_csv(written: Path) -> None:
    """A level's row has the summary's figures under names with units."""
    summary = json.loads((written / "summary.json").read_text())["levels"][0]
    with (written / "exports" / "levels.csv").open() as file:
        [row] = csv.DictReader(file)
    assert float(row["itl_p50_s"]) == summary["itl_s"]["p50"]
    assert float(row["output_tokens_per_s"]) == summary["output_tokens_per_s"]
    assert row["kind"] == "emulated"
    assert "p99" in row["ttft_unsupported"]


def test_aiperf_layout(written: Path) -> None:
    """AIPerf's names and units: its inter_token_latency is a mean per request, its chunk latency every gap."""
    [path] = (written / "exports" / "aiperf").glob("*/profile_export_aiperf.json")
    document = json.loads(path.read_text())
    assert path.parent.name == "level_0_concurrency_1"
    assert document["schema_version"] == "1.1"
    ttft = document["time_to_first_token"]
    assert (ttft["unit"], ttft["count"]) == ("ms", 40)
    assert {"avg", "p1", "p50", "p99", "min", "max", "std", "sum"} <= set(ttft)
    assert ttft["avg"] == pytest.approx(250.0)
    assert document["inter_token_latency"]["count"] == 40
    assert document["inter_chunk_latency"]["count"] == 160
    assert set(document["request_throughput"]) == {"unit", "avg"}
    assert document["engine_to_capacity"]["kind"] == "emulated"


def test_columns_hold_what_the_records_do(written: Path) -> None:
    """Arrivals come back from columns as they were, and a selection keeps each request's own gaps."""
    [loaded] = load_runs([written.parent / "run"])
    chunk = next(loaded.columns.token_chunks())
    assert chunk.time_s[chunk.row == 3].tolist() == pytest.approx([6.5, 6.75, 7.0, 7.25, 7.5])
    mixed = columns_of([record(0, 0.0, [1.0, 3.0]), record(1, 0.0, []), record(2, 0.0, [5.0, 6.0, 9.0])])
    assert mixed.select(np.array([False, True, True])).gaps_s.tolist() == [1.0, 3.0]
    assert mixed.longest_gap_s.tolist() == [2.0, 0.0, 3.0]
    assert np.isnan(mixed.tpot_s[1])
