"""Latency against the batch size it was had at: by hand-made records and samples whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.metrics.batch_size import batch_curve, batch_of_gaps, gpus_of, samples_of
from loadtest.metrics.steady_state import Window
from loadtest.metrics.summarize import summarize
from loadtest.results.columns import columns_of
from loadtest.results.records import Sample
from tests.unit.loadtest.made import GENERATION, level, manifest, record

ITERATIONS = 'nv_trt_llm_general_metrics{model="m",general_type="iteration_counter"}'
WINDOW = Window(0.0, 100.0, "steady")


def test_each_gap_by_the_streams_in_its_middle() -> None:
    """One stream alone takes 10 ms a token; while a second runs beside it, both take 20."""
    alone = [0.01 * step for step in range(101)]
    together = [1.0 + 0.02 * step for step in range(1, 101)]
    first = record(0, 0.0, alone + together)
    second = record(1, 0.9, [1.005 + 0.02 * step for step in range(100)])
    batches, gaps = batch_of_gaps(WINDOW, columns_of([first, second]))
    assert gaps[batches == 1].mean() == pytest.approx(0.01, abs=0.0005)
    assert gaps[batches == 2].mean() == pytest.approx(0.02, abs=0.0005)
    assert len(gaps) == len(first.token_times_s) + len(second.token_times_s) - 2


def test_server_and_records_agree_where_they_should() -> None:
    """A server of 20 ms an iteration at a batch of 4, sampled at odd moments, is what the records say too."""
    requests = [record(place, 0.0, [0.02 * step for step in range(1, 1001)]) for place in range(4)]
    samples = [
        Sample(t_s=t, values={GENERATION: 4.0, ITERATIONS: float(int(t / 0.02))}) for t in np.arange(0.5, 19.5, 0.137)
    ]
    found = batch_curve(Window(0.0, 20.0, "steady"), columns_of(requests), samples_of(samples), time_scale=1.0)
    assert found is not None
    assert [point.batch for point in found.server] == [4.0]
    assert found.server[0].mean_s == pytest.approx(0.02, rel=0.02)
    assert found.disagreement_ratio == pytest.approx(0.0, abs=0.02)


def test_samples_within_one_iteration_do_not_make_it_short() -> None:
    """Sampling ten times an iteration gives the iteration's length, not the time between samples."""
    requests = [record(place, 0.0, [0.5 * step for step in range(1, 101)]) for place in range(2)]
    samples = [Sample(t_s=t, values={GENERATION: 2.0, ITERATIONS: float(int(t / 0.5))}) for t in np.arange(1, 49, 0.05)]
    found = batch_curve(Window(0.0, 50.0, "steady"), columns_of(requests), samples_of(samples), time_scale=1.0)
    assert found is not None
    assert found.server[0].mean_s == pytest.approx(0.5, rel=0.03)


@pytest.mark.parametrize(
    ("running", "waiting", "kv"),
    [
        (
            'vllm:num_requests_running{model_name="m"}',
            'vllm:num_requests_waiting{model_name="m"}',
            "vllm:gpu_cache_usage_perc",
        ),
        ("sglang:num_running_reqs", "sglang:num_queue_reqs", "sglang:token_usage"),
    ],
)
def test_other_servers_names_are_known(running: str, waiting: str, kv: str) -> None:
    """Batch size, queue and KV cache of vLLM and SGLang stand where TensorRT-LLM's do."""
    samples = [Sample(t_s=t, values={running: 3.0, waiting: 2.0, kv: 0.25}) for t in (1.0, 2.0)]
    [found] = summarize(manifest(level(1, 0.0, 3.0)), [record(0, 0.5, [1.0, 2.5])], samples).levels
    assert found.batch_size is not None
    assert (found.batch_size.mean, found.waiting, found.kv_ratio) == (3.0, 2.0, 0.25)


def test_gpus_and_pages_add_up_in_their_units() -> None:
    """Power of two GPUs on one page and one on another adds up; DCGM's MiB and percent become bytes and a share."""
    exporter = {'DCGM_FI_DEV_POWER_USAGE{gpu="0"}': 300.0, 'DCGM_FI_DEV_POWER_USAGE{gpu="1"}': 200.0,
                'DCGM_FI_DEV_FB_USED{gpu="0"}': 1024.0, 'DCGM_FI_DEV_GPU_UTIL{gpu="0"}': 90.0}  # fmt: skip
    samples = [
        Sample(t_s=1.0, values=exporter, page=0),
        Sample(t_s=1.5, ended_s=1.7, values={'nv_gpu_power_usage{gpu_uuid="x"}': 100.0}, page=1),
    ]
    found = gpus_of(samples_of(samples), Window(0.0, 2.0, "steady"))
    assert found is not None
    assert (found.power_w, found.memory_bytes) == (600.0, 2.0**30)
    assert found.busy_ratio == pytest.approx(0.9)
    assert samples_of(samples).t_s.tolist() == pytest.approx([1.0, 1.6])
