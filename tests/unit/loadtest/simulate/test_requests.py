"""A simulated run's columns and its requests.jsonl say the same."""

from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from loadtest.metrics import summarize
from loadtest.results import Columns, RequestRecord, columns_of
from loadtest.scenario import Scenario
from loadtest.simulate import predict
from loadtest.simulate.requests import record_lines

HEAD = MadeBy(command="test", version="0")


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan the default engine."""
    asked = resolve_recipe(None, {})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(concurrency=(2, 9), requests=40, warmup_requests=1),
        Scenario(rate_per_s=(30.0,), duration_s=8.0, lengths={"isl": "lognormal(mean=300, cv=1)", "osl": 40}),
    ],
    ids=["closed", "open"],
)
def test_columns_are_those_of_the_written_records(manifest: EngineManifest, scenario: Scenario) -> None:
    """The written records, read again and put into columns, are what the prediction was summed up from."""
    found = predict(scenario, manifest, made_by=HEAD, made_from=[])
    lines = list(record_lines(found.columns))
    records = [RequestRecord.model_validate_json(line) for line in lines]
    assert [json.loads(line) for line in lines] == [json.loads(record.model_dump_json()) for record in records]
    read = columns_of(records)
    for field in fields(Columns):
        if field.name not in {"own_gaps_s", "spans"}:
            np.testing.assert_array_equal(getattr(found.columns, field.name), getattr(read, field.name), field.name)
    np.testing.assert_array_equal(found.columns.gaps_s, read.gaps_s)
    np.testing.assert_array_equal(found.columns.longest_gap_s, read.longest_gap_s)
    by_spans = summarize(found.run, found.columns, found.samples).model_dump()
    one_by_one = summarize(found.run, read, found.samples).model_dump()
    _require_same(by_spans, one_by_one)


def _require_same(one: object, other: object, path: str = "") -> None:
    if isinstance(one, dict) and isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in one:
            _require_same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        assert len(one) == len(other), path
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            _require_same(left, right, f"{path}[{place}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-8), path
    else:
        assert one == other, path
