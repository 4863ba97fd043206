"""Which of several possible rows is recommended."""

from __future__ import annotations

from typing import Any

from loadtest.capacity.decision import Row, ranked, recommended
from loadtest.capacity.simulation import FleetVerdict, RateProbe


def _row(name: str, usd: float, worst_ratio: float | None = None, **changed: Any) -> Row:
    """Return a possible row; with a ratio, its smallest fleet was simulated and reached that much of a limit."""
    verdict = None
    if worst_ratio is not None:
        tried = RateProbe(rate_per_s=9.0, met=True, missed=(), worst_ratio=worst_ratio, requests=100, ttft_p50_s=0.1,
                          ttft_p95_s=0.2, ttft_p99_s=0.3, itl_mean_s=0.01, itl_p99_s=0.02,
                          e2e_p95_s=2.0, goodput=1.0, output_tokens_per_s=900.0, in_flight=9.0, kv_ratio=0.1,
                          kv_max=0.2)  # fmt: skip
        verdict = FleetVerdict(replicas=2, met=True, is_certain=True, windows=3, kept_windows=3, tried=tried)
    values: dict[str, Any] = {
        "name": name, "basis": "predicted", "gpu": "h100-sxm-80gb", "precision": "fp8", "tensor_parallel": 1,
        "max_batch_size": 64, "max_num_tokens": 2048, "kv_tokens": 1, "status": "possible", "replicas": 3,
        "usd_per_month": usd, "verdict": verdict,
    }  # fmt: skip
    return Row.model_validate(values | changed)


def _chosen(*rows: Row) -> str | None:
    found = recommended(rows)
    assert found == ranked(rows)[0]
    return None if found is None else found.name


def test_of_equal_costs_the_row_furthest_from_its_limits_is_recommended() -> None:
    """Not the first by name: its fleet has more room before an objective is missed."""
    assert _chosen(_row("a", 10.0, 0.9), _row("b", 10.0, 0.6), _row("c", 10.0)) == "b"


def test_of_equal_costs_a_fleet_that_meets_every_peak_is_preferred_to_one_with_more_room() -> None:
    """One of three peaks that misses an objective alone is a risk; its mean over all three hides it."""
    risky = _row("a", 10.0, 0.6)
    assert risky.verdict is not None
    risky = risky.model_copy(update={"verdict": risky.verdict.model_copy(update={"kept_windows": 2})})
    assert _chosen(risky, _row("b", 10.0, 0.9)) == "b"


def test_costs_that_differ_by_a_rounding_error_are_equal() -> None:
    """Six H100 and twelve A100 at half their price."""
    assert _chosen(_row("a", 6 * 3.2 * 730, 0.9), _row("b", 14016.0, 0.6)) == "b"


def test_cost_and_evidence_come_first() -> None:
    """Room before a limit decides between rows that are otherwise alike, and buys nothing else."""
    assert _chosen(_row("a", 9.0, 0.99), _row("b", 10.0, 0.1)) == "a"
    assert _chosen(_row("a", 10.0, 0.99, basis="calibrated"), _row("b", 10.0, 0.1)) == "a"
