"""How a source of step times is named to a reader."""

from __future__ import annotations

import pytest

from engines.manifest import StepTimeChoice
from engines.spec import Kernels
from engines.steptime import step_time_words
from engines.steptime.kernel_tables import version_of


@pytest.mark.parametrize(("kernels", "gpu", "system"), [("trtllm", "a100-sxm-80gb", "a100_sxm"),
                                                        ("vllm", "h100-sxm-80gb", "h100_sxm")])  # fmt: skip
def test_measured_kernels_are_named_with_their_framework_and_version(kernels: Kernels, gpu: str, system: str) -> None:
    """The version that is looked up: of one framework it differs between GPUs."""
    said = step_time_words(StepTimeChoice(source="silicon", kernels=kernels), gpu)
    assert said == f"silicon ({kernels} {version_of(kernels, system, None)} kernels)"
    assert version_of("trtllm", "a100_sxm", None) != version_of("trtllm", "h100_sxm", None)
