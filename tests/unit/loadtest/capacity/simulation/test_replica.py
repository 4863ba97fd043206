"""What the ends of a prediction's interval do to an iteration."""

from __future__ import annotations

import pytest

from engines.spec import Factors
from engines.steptime import StepShape, step_time_of, uniform
from loadtest.capacity.simulation.replica import Slowdown, batcher_of, slowed_parts
from tests.unit.loadtest.capacity.made import engine


@pytest.mark.parametrize("source", ["roofline", "silicon"])
@pytest.mark.parametrize("shape", [StepShape(1, 500), StepShape(64, 64_000), StepShape(8, 4_000, 1, 256, 32_896)])
def test_the_spread_of_hosts_slows_the_host_alone(source: str, shape: StepShape) -> None:
    """Kernels and the gaps between them are the GPU's, by whichever source: they take the spread of step times."""
    manifest = engine(**{"engine_profile": "vllm-v1", "step_time": source})
    choice = manifest.step_time
    assert choice.factors is not None
    alone = choice.factors.model_copy(update={"iteration_s": 0.0, "sequence_s": 0.0, "prompt_s": 0.0})
    on_gpu_s = step_time_of(choice.model_copy(update={"factors": alone, "host": None}), manifest.placed).seconds(shape)
    host_s = added_s(choice.factors, shape)
    assert choice.host is not None
    assert choice.host.iteration_s == choice.host.sequence_s == choice.host.prompt_s == 0.0
    slow = batcher_of(manifest, slowed_parts(Slowdown(step=1.2, host=3.7), uniform(1.0))).step_time
    assert slow.seconds(shape) == pytest.approx(1.2 * on_gpu_s + 3.7 * host_s)


def added_s(factors: Factors, shape: StepShape) -> float:
    """Return what the profile says that the host adds to an iteration."""
    sequences = shape.decode_sequences + shape.prefill_sequences
    return factors.iteration_s + sequences * factors.sequence_s + shape.prefill_sequences * factors.prompt_s
