"""Versions of a model on one metrics page, while an engine is replaced and after."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from loadtest.metrics.batch_size import samples_of
from loadtest.metrics.energy import energy_of
from loadtest.metrics.steady_state import Window
from loadtest.results.model_versions import ModelVersions
from loadtest.results.records import SAMPLES_NAME, read_samples

STEPS = 'nv_trt_llm_general_metrics{{general_type="iteration_counter",model="m",version="{}"}}'
RATIO = 'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="fraction",model="m",version="{}"}}'
USED = 'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="used",model="m",version="{}"}}'
LATE = 'emulator_lateness_seconds{{model="m",statistic="p99",version="{}"}}'
JOULES = 'emulator_gpu_energy_joules_total{{model="m",version="{}"}}'


def _page(**versions: tuple[float, float, float]) -> dict[str, float]:
    """Return a page: by version ("v1"), its steps, its share of the KV cache in use, and its blocks in use."""
    return {
        series.format(name[1:]): value
        for name, values in versions.items()
        for series, value in zip((STEPS, RATIO, USED), values, strict=True)
    }


def _followed(*pages: Mapping[str, float]) -> list[list[float]]:
    """Return, of each page, the model's steps, share and blocks."""
    versions = ModelVersions()
    return [list(versions.merged(0, page).values()) for page in pages]


def test_gauges_are_those_of_the_versions_whose_counters_grow() -> None:
    """Alone, draining beside the new one, replaced, and idle; steps of both are added throughout."""
    assert _followed(
        _page(v9=(50, 0.8, 80)),
        _page(v9=(60, 0.4, 40), v10=(0, 0.0, 0)),  # loaded, and not yet asked
        _page(v9=(65, 0.2, 20), v10=(5, 0.6, 60)),
        _page(v9=(65, 0.2, 20), v10=(9, 0.7, 70)),
        _page(v9=(65, 0.2, 20), v10=(9, 0.0, 0)),
    ) == [[50, 0.8, 80], [60, 0.4, 40], [70, pytest.approx(0.4), 80], [74, 0.7, 70], [74, 0.0, 0]]


def test_a_version_that_failed_to_replace_another_does_not_count() -> None:
    """It is the later one, and stands still while the old engine keeps serving."""
    pages = [_page(v1=(10.0 * at, 0.5, 50), v2=(3, 0.0, 0)) for at in (1, 2, 3)]
    assert _followed(*pages)[1:] == [[23, 0.5, 50], [33, 0.5, 50]]


def test_before_any_counter_has_grown_the_latest_version_runs() -> None:
    """A run that starts after a roll, on an idle server; one version of a page is not another page's."""
    versions = ModelVersions()
    both = _page(v1=(10, 0.5, 50), v2=(3, 0.1, 10))
    assert list(versions.merged(0, both).values()) == [13, 0.1, 10]
    assert list(versions.merged(1, _page(v1=(10, 0.5, 50))).values()) == [10, 0.5, 50]


@pytest.mark.parametrize(
    ("series", "merged"),
    [
        ('emulator_waiting_requests{ model = "m" , version="1" }', 'emulator_waiting_requests{ model = "m" }'),
        ('emulator_steps_total{version="1",model="m"}', 'emulator_steps_total{model="m"}'),
        (LATE.format(1), 'emulator_lateness_seconds{model="m",statistic="p99"}'),
        (r'up{a=",version=\"1\"",model="m",version="2"}', r'up{a=",version=\"1\"",model="m"}'),
        ('vllm:num_requests_running{model_name="m",version="1"}',) * 2,
        ('nv_gpu_power_usage{gpu_uuid="x"}',) * 2,
        ('nv_inference_count{model="m",version="new"}',) * 2,
        ("not a series{", "not a series{"),
    ],
)
def test_only_a_model_s_version_is_left_out_of_a_name(series: str, merged: str) -> None:
    """Other series, and labels that look alike, stay as they are."""
    assert ModelVersions().merged(0, {series: 1.0}) == {merged: 1.0}


def test_energy_and_kv_cache_of_a_rolled_engine_are_read_across_the_roll(tmp_path: Path) -> None:
    """600 W of the old engine until 30 s, then of the new one, whose counter begins at 0: 600 W on average."""
    lines = []
    for t_s in range(81):
        values = {JOULES.format(1): 600.0 * min(t_s, 30), RATIO.format(1): 0.9}
        if t_s >= 30:
            values |= {JOULES.format(2): 600.0 * (t_s - 30), RATIO.format(2): 0.3}
        lines.append(json.dumps({"t_s": t_s, "values": values, "ended_s": t_s, "page": 0}))
    (tmp_path / SAMPLES_NAME).write_text("\n".join(lines) + "\n")
    samples = samples_of(list(read_samples(tmp_path)))
    energy, _ = energy_of(samples.meters, Window(10.0, 70.0, "steady"), kind="emulated", time_scale=1.0, rates={})
    assert energy is not None
    assert energy.power_w == pytest.approx(600.0)
    assert samples.mean("kv_ratio", Window(32.0, 70.0, "steady")) == pytest.approx(0.3)
