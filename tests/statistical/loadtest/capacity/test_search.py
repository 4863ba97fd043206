"""The cheapest candidate: what is given up on the way, and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date

from loadtest.capacity.parallel import FoundT, TaskT, Workers
from loadtest.capacity.plan import make_capacity
from loadtest.capacity.search import cheapest_sized, search
from loadtest.capacity.simulation.max_rate import Carried
from tests.unit.loadtest.capacity.made import HEAD, HERE, demand, means


def test_what_was_given_up_against_a_fleet_that_failed_is_searched_again() -> None:
    """A row given up at a rate that it no longer needs to reach gets its own rate, and can be recommended."""
    searched, options = search(demand(), HERE, HEAD, means(), today=date(2026, 11, 28))
    ((candidate, found),) = [pair for pair in searched.found if pair[1] is not None]
    assert found is not None
    assert found.rate_per_s is not None
    given_up = found.model_copy(
        update={"promised": Carried(rate_per_s=None, above_per_s=1000 * found.rate_per_s), "given_up": True}
    )
    searched.found, searched.rows = [(candidate, given_up)], []
    searched.add([])
    assert [row.status for row in searched.rows] == ["not cheaper"]
    best = cheapest_sized(searched, options)
    assert best is not None
    assert best.rate_per_s == found.rate_per_s
    assert len(searched.found) == 1


def test_one_process_gives_up_what_cannot_be_cheaper_than_the_first() -> None:
    """In one process the second candidate knows the first one's cost: its highest load is not searched."""
    asked = demand(
        traffic={"process": "described", "rate_by_hour_per_s": [4.0], "lengths": {"isl": 256, "osl": 32}},
        candidates={"max_batch_size": [32, 1], "max_num_tokens": [2048]},
    )
    searched, _ = search(asked, HERE, HEAD, means(), today=date(2026, 11, 28))
    assert [row.status for row in searched.rows] == ["possible", "not cheaper"]
    (lost,) = [found for each, found in searched.found if found is not None and found.given_up]
    assert [each.rate_per_s for each in lost.tried] == [lost.promised.above_per_s]


class _ManyHere(Workers):
    """Workers that are asked for several tasks at once, and do them in this process."""

    def run(
        self, function: Callable[[TaskT], FoundT], tasks: Sequence[tuple[int, TaskT]]
    ) -> Iterator[tuple[int, FoundT]]:
        """Do each task."""
        return ((place, function(task)) for place, task in tasks)


def test_the_number_of_workers_changes_no_row() -> None:
    """What is searched beside the cheapest is then given up by it, as if it had waited; one better is kept."""
    asked = demand(
        traffic={"process": "described", "rate_by_hour_per_s": [300.0], "lengths": {"isl": 256, "osl": 32}},
        limits={"gpus": ["h100-sxm-80gb", "a100-sxm-80gb"], "precisions": ["fp8", "int8_sq"]},
        candidates={"max_batch_size": [8, 32], "max_num_tokens": [2048]},
    )
    alone, _ = search(asked, HERE, HEAD, means(), today=date(2026, 11, 28))
    assert {"possible", "not cheaper"} <= {row.status for row in alone.rows}
    for count in (2, 3, 16):
        workers = _ManyHere(count)
        found, _ = search(asked, HERE, HEAD, means()._replace(workers=workers), today=date(2026, 11, 28))
        assert workers.done > sum(1 for _, result in alone.found if result is not None)  # some were searched twice
        assert found.found == alone.found
        assert found.rows == alone.rows


def test_every_row_of_the_lowest_cost_is_simulated_before_one_is_recommended() -> None:
    """Of three alike, two are simulated at once; the third may be further from its limits."""
    wanted = demand(candidates={"max_batch_size": [32, 48, 64], "max_num_tokens": [2048]})
    searched, options = search(wanted, HERE, HEAD, means(), today=date(2026, 11, 28))
    best = cheapest_sized(searched, options)
    assert best is not None
    alike = [row for row in searched.rows if row.usd_per_month == best.usd_per_month]
    assert len(alike) == 3
    assert (best.missed_windows, best.strain) == min((row.missed_windows, row.strain) for row in alike)
    assert all(row.verdict is not None for row in alike)


def test_drafts_meet_a_time_per_token_that_plain_decoding_misses() -> None:
    """Both are searched; the plan recommends the drafts, and says where they pay."""
    eagle = {
        "mode": "eagle3",
        "draft_model": "Tengyunw/qwen3_8b_eagle3",
        "max_draft_len": 2,
        "acceptance": [0.62, 0.38],
    }
    wanted = demand(
        model="qwen3-8b",
        traffic={"process": "described", "rate_per_s": 4.0, "lengths": {"isl": 233, "osl": 64}},
        max_tokens=64,
        objectives={"tpot_s": {"p90": 0.006}},
        candidates={
            "engine_profile": "sglang",
            "max_batch_size": [32],
            "max_num_tokens": [2048],
            "speculative": ["none", eagle],
        },
    )
    plan = make_capacity(wanted, HERE, HEAD, means(), today=date(2026, 11, 28), is_brief=True)
    plain, drafts = sorted(plan.rows, key=lambda row: len(row.name))
    assert plain.status == "objectives missed"
    assert "tpot_s p90" in (plain.reason or "")
    assert "eagle3 2" in drafts.name
    assert plan.recommended == drafts.name
    (payoff,) = plan.speculation
    assert payoff.payoff.speedups[0][1] > 1
