"""The objectives that a plan states with its demand."""

from __future__ import annotations

from loadtest.capacity.output.terminal import objective_lines
from tests.unit.loadtest.capacity.made import demand


def test_limits_are_stated_as_understood() -> None:
    """With units, for all requests and for each class with its own; the limit on errors too, stated or not."""
    lengths = {"isl": 8, "osl": 4}
    found = demand(
        traffic={
            "process": "described",
            "rate_per_s": 1.0,
            "classes": [
                {"name": "chat", "lengths": lengths, "objectives": {"ttft_s": {"p95": 0.2}, "errors_ratio": 0.01}},
                {"name": "batch", "lengths": lengths},
            ],
        },
        objectives={"ttft_s": {"p95": 50}, "goodput": {"share": 0.95, "ttft_s": 1.5, "tpot_s": 0.05}},
    )
    assert objective_lines(found) == [
        ": TTFT p95 at most 50 s, 95 % of requests within TTFT 1.5 s and TPOT 50 ms, no failed request",
        " of chat: TTFT p95 at most 200 ms, at most 1 % failed requests",
    ]
