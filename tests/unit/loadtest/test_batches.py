"""Batch sizes from records whose timetable is known, and from what a server says."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.batches import batch_curve, batch_of_gaps, gpus_of, samples_of
from loadtest.columns import Columns, columns_of
from loadtest.records import RequestRecord, Sample
from loadtest.windows import Window

WINDOW = Window(0.0, 1000.0, "whole")


def stream(number: int, first_s: float, *, tokens: int, gap_s: float) -> RequestRecord:
    """Return a request of evenly spaced tokens."""
    times = tuple(first_s + gap_s * step for step in range(tokens))
    return RequestRecord(
        id=number, level=0, phase="measure", scheduled_s=first_s, sent_s=first_s, token_times_s=times,
        done_s=times[-1], prompt_tokens=8, output_tokens=tokens, outcome="ok",
    )  # fmt: skip


def timetable() -> Columns:
    """Return an engine that takes 10 ms a token alone, 20 ms with two sequences and 40 ms with three."""
    alone = [stream(0, 0.0, tokens=41, gap_s=0.01)]
    pair = [stream(1 + each, 10.0, tokens=41, gap_s=0.02) for each in range(2)]
    three = [stream(3 + each, 20.0, tokens=41, gap_s=0.04) for each in range(3)]
    return columns_of([*alone, *pair, *three])


def test_reconstruction_of_a_known_timetable() -> None:
    """Each gap is placed at the number of streams that were active in its middle, and only there."""
    curve = batch_curve(WINDOW, timetable(), samples_of([]), time_scale=2.0)
    assert curve is not None
    assert [point.batch for point in curve.reconstructed] == [1, 2, 3]
    assert [point.count for point in curve.reconstructed] == [40, 80, 120]
    assert [point.mean_s for point in curve.reconstructed] == pytest.approx([0.005, 0.01, 0.02])
    assert (curve.server, curve.disagreement_ratio) == ([], None)


def test_gaps_outside_the_window_do_not_count() -> None:
    """A window over the pair alone holds the pair's gaps."""
    batches, gaps = batch_of_gaps(Window(9.0, 12.0, "steady"), timetable())
    assert set(batches.tolist()) == {2.0}
    assert gaps == pytest.approx(np.full(80, 0.02))


def test_server_and_records_disagree_by_what_they_differ() -> None:
    """A server that counts iterations of 16 ms where tokens come every 20 ms is a quarter apart, and it is said."""
    counter = 'nv_trt_llm_general_metrics{general_type="iteration_counter"}'
    decoding = 'nv_trt_llm_inflight_batcher_metrics{inflight_batcher_specific_metric="generation_requests"}'
    samples = [Sample(t_s=10.0 + 0.16 * k, values={counter: 10.0 * k, decoding: 2.0}) for k in range(5)]
    curve = batch_curve(Window(9.5, 11.0, "whole"), timetable(), samples_of(samples), time_scale=1.0)
    assert curve is not None
    [point] = curve.server
    assert (point.batch, point.count, point.mean_s) == pytest.approx((2.0, 40.0, 0.016))
    assert curve.disagreement_ratio == pytest.approx(0.25)


def test_gpus_of_two_pages_add_up() -> None:
    """Power and memory of all GPUs are added, how busy they are is averaged; DCGM's units become watts and bytes."""
    page = {f'DCGM_FI_DEV_POWER_USAGE{{gpu="{gpu}"}}': 300.0 for gpu in (0, 1)}
    page |= {'DCGM_FI_DEV_FB_USED{gpu="0"}': 1024.0, 'DCGM_FI_DEV_GPU_UTIL{gpu="0"}': 80.0}
    other = {'nv_gpu_power_usage{gpu_uuid="x"}': 100.0, 'nv_gpu_utilization{gpu_uuid="x"}': 0.4}
    found = gpus_of(samples_of([Sample(t_s=1.0, values=page), Sample(t_s=1.0, page=1, values=other)]), WINDOW)
    assert found is not None
    assert (found.power_w, found.memory_bytes) == (700.0, 2.0**30)
    assert found.busy_ratio == pytest.approx(0.6)


def test_columns_keep_every_token() -> None:
    """Arrivals come back from gaps as they were, requests without tokens among them."""
    empty = RequestRecord(
        id=9, level=0, phase="measure", scheduled_s=1, sent_s=1, token_times_s=(), done_s=2, prompt_tokens=8,
        output_tokens=0, outcome="error", error="it broke", class_name="chat",
    )  # fmt: skip
    records = [stream(0, 0.5, tokens=3, gap_s=0.25), empty, stream(1, 7.0, tokens=1, gap_s=1.0)]
    columns = columns_of(records)
    chunks = list(columns.token_chunks())
    assert np.concatenate([chunk.row for chunk in chunks]).tolist() == [0, 0, 0, 2]
    assert np.concatenate([chunk.time_s for chunk in chunks]) == pytest.approx([0.5, 0.75, 1.0, 7.0])
    assert columns.errors == ("it broke",)
    kept = columns.select(columns.good)
    assert kept.id.tolist() == [0, 1]
    assert kept.gaps_s.tolist() == [0.25, 0.25]
    assert kept.longest_gap_s.tolist() == [0.25, 0.0]
