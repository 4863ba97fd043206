"""What a plan says of the source of its step times."""

from __future__ import annotations

from loadtest.capacity.decision import Row
from loadtest.capacity.output.terminal import step_time_lines


def _row(gpu: str, step_times: str, rate_per_s: float | None = 9.0) -> Row:
    return Row(
        name=f"{gpu} fp8", basis="predicted", gpu=gpu, precision="fp8", tensor_parallel=1, max_batch_size=64,
        max_num_tokens=2048, kv_tokens=1, status="possible", step_times=step_times, rate_per_s=rate_per_s,
    )  # fmt: skip


def test_each_source_is_named_once_with_its_gpus() -> None:
    """A row that was not searched has no figures, and a measured run no step times."""
    rows = [_row("h100", "silicon (a)"), _row("h100", "silicon (a)"), _row("l4", "roofline", None), _row("a100", "")]
    assert step_time_lines(rows) == ["step times: silicon (a)"]
    rows += [_row("l40s", "roofline"), _row("l4", "roofline")]
    assert step_time_lines(rows) == ["step times on h100: silicon (a)", "step times on l40s, l4: roofline"]
