"""The step-time script: its logic on a CPU here, its figures on a GPU where there is one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.late import Late

sys.path.insert(0, str(Path(__file__).parent))
torch, measure_steps = Late("torch", "quantize"), Late("measure_steps", "quantize")
TINY = {
    "layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "attention_heads": 4,
    "kv_heads": 2,
    "head_size": 16,
    "vocab_size": 101,
}


def test_decoding_from_a_cache_equals_reading_the_whole_prompt() -> None:
    """The decode path computes the arithmetic it claims: its output is the prompt path's, for the last token."""
    torch.manual_seed(0)
    queries, keys, values = torch.randn(7, 4, 16), torch.randn(7, 2, 16), torch.randn(7, 2, 16)
    whole = measure_steps._attend_prompt(queries, keys, values)[-1]
    cached = measure_steps._attend_cache(queries[-1:], keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
    torch.testing.assert_close(cached.reshape(4, 16), whole)


def test_one_row_per_shape_with_a_positive_time() -> None:
    """Every shape asked for gives one row that names what ran."""
    steps = [measure_steps.Shape("decode", 3, 5, 0), measure_steps.Shape("prefill", 1, 0, 9)]
    rows = list(measure_steps.measure(measure_steps.Geometry(**TINY), steps, precision="bf16", device="cpu", repeats=3))
    assert [(row.phase, row.batch, row.context_tokens, row.prompt_tokens) for row in rows] == [
        ("decode", 3, 5, 0),
        ("prefill", 1, 0, 9),
    ]
    assert all(0 < row.step_s_p10 <= row.step_s_median <= row.step_s_p90 for row in rows)


def test_shapes_never_outgrow_the_cache() -> None:
    """No decode shape asks for more cached tokens than fit."""
    assert all(shape.batch * shape.context_tokens <= 10_000 for shape in measure_steps.shapes(largest_kv_tokens=10_000))


@pytest.mark.gpu
def test_decode_is_not_faster_than_reading_the_weights() -> None:
    """On a real GPU no decode step beats the time to read the weights at the card's stated bandwidth."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU on this machine")
    (row,) = measure_steps.measure(
        measure_steps.Geometry(),
        [measure_steps.Shape("decode", 1, 128, 0)],
        precision="bf16",
        device="cuda",
        repeats=20,
    )
    weights_bytes = 2 * (8_190_735_360 - 151_936 * 4096)  # the embedding is looked up, not read whole
    properties = torch.cuda.get_device_properties(0)
    bandwidth_bytes_per_s = 2 * properties.memory_clock_rate * 1000 * properties.memory_bus_width / 8
    assert row.step_s_median > weights_bytes / bandwidth_bytes_per_s
