"""Step times from measured products: what was measured comes out again, and nothing is lost between."""

from __future__ import annotations

import pytest

from engines.spec import Factors, GpuSpec, PlacedModel, ProductSpeed, gpu_named, model_named
from engines.steptime import Calibrated, Roofline, StepShape
from engines.steptime.products import Products

# vLLM 0.32's oneDNN on one core of an EPYC, float32: milliseconds for SmolLM2's first four layers and its head.
MEASURED_MS = {1: 12.85, 2: 14.43, 4: 10.13, 8: 13.30, 16: 17.76, 256: 198.98}
LINEAR_BYTES, HEAD_BYTES = 4 * 14_155_776, 4 * 49_152 * 576
SPEEDS = tuple(
    ProductSpeed(rows=rows, weight_bytes_per_s=(LINEAR_BYTES + HEAD_BYTES) / (ms / 1e3))
    for rows, ms in MEASURED_MS.items()
)


def _cpu() -> GpuSpec:
    return gpu_named("a100-sxm-80gb").model_copy(
        update={
            "name": "core",
            "device": "cpu",
            "peaks": "measured",
            "bandwidth_bytes_per_s": 2e10,
            "dense_flops": {"fp32": 1e11},
            "products": {"fp32": SPEEDS},
        }
    )


def test_a_measured_number_of_rows_takes_what_was_measured() -> None:
    """Eight sequences that decode take the eight rows' time, in layers and head."""
    products = Products(SPEEDS, linear_bytes=LINEAR_BYTES, head_bytes=HEAD_BYTES)
    for rows, ms in MEASURED_MS.items():
        assert products.seconds(rows, rows) == pytest.approx(ms / 1e3)
    assert products.min_s == pytest.approx(10.13e-3)


def test_between_and_beyond_the_measured_rows() -> None:
    """Twelve rows lie between eight and sixteen; 512 take twice as long as 256; none take no time."""
    products = Products(SPEEDS, linear_bytes=LINEAR_BYTES, head_bytes=0.0)
    eight, twelve, sixteen = (products.seconds(rows, 0) for rows in (8, 12, 16))
    assert twelve == pytest.approx((eight + sixteen) / 2)
    assert products.seconds(512, 0) == pytest.approx(2 * products.seconds(256, 0))
    assert products.seconds(0, 0) == 0.0


def test_a_step_of_the_cut_is_as_the_kernels_were() -> None:
    """SmolLM2's first four layers: weights and products of a step add up to what was measured."""
    cut = model_named("smollm2-135m").model_copy(update={"layers": 4})
    cpu = _cpu()
    for rows, ms in MEASURED_MS.items():
        cost = Roofline(PlacedModel(cut, cpu, "fp32", "32bit")).cost(StepShape(decode_sequences=rows))
        assert cost.weights_s + cost.gemm_s == pytest.approx(ms / 1e3, rel=1e-3)
        assert cost.gemm_s >= -1e-12


def test_factors_scale_measured_products() -> None:
    """A calibration's factors on weights and products apply to measured ones, and the decode line goes with them."""
    cut = model_named("smollm2-135m").model_copy(update={"layers": 4})
    source = Roofline(PlacedModel(cut, _cpu(), "fp32", "32bit"))
    slower = Calibrated(source, Factors(weights_ratio=2.0, gemm_ratio=2.0))
    shape = StepShape(decode_sequences=2)
    parts, doubled = source.cost(shape), slower.cost(shape)
    assert doubled.weights_s + doubled.gemm_s == pytest.approx(2 * (parts.weights_s + parts.gemm_s))
    line = slower.decode_line(2, 100)
    assert line.base_s + 100 * line.per_context_token_s == pytest.approx(
        slower.seconds(shape._replace(decode_context_tokens=100))
    )


def test_without_measured_products_a_gpu_is_as_ever() -> None:
    """No known GPU has any."""
    assert gpu_named("h100-sxm-80gb").products == {}
