"""Whether a sample tells enough: intervals that cover, misses that are sure, backlogs that are seen."""

from __future__ import annotations

import numpy as np
import pytest

from loadtest.knee.sequential_test import (
    MIN_REQUESTS,
    SloDecision,
    ended_before_the_first_under_way,
    is_backlog_growing,
    wilson,
)
from loadtest.knee.sequential_test import weigh as weigh_all
from loadtest.results.records import RequestRecord
from loadtest.scenario.slo import Goodput, Objectives, ObjectiveScope

LIMIT = Objectives(ttft_s={"p95": 0.1})


def request(
    place: int, ttft_s: float, *, gap_s: float = 0.01, outcome: str = "ok", sent_s: float | None = None
) -> RequestRecord:
    """Return a request of three tokens; one is sent each second."""
    at_s = float(place) if sent_s is None else sent_s
    times = tuple(at_s + ttft_s + gap_s * token for token in range(3))
    return RequestRecord(
        id=place, level=0, phase="measure", scheduled_s=at_s, sent_s=at_s, token_times_s=times, done_s=times[-1],
        prompt_tokens=1, output_tokens=3, outcome=outcome,  # type: ignore[arg-type]
    )  # fmt: skip


def weigh(objectives: Objectives, records: list[RequestRecord], *, time_scale: float = 1.0) -> SloDecision:
    """Weigh one promise to all requests."""
    return weigh_all([ObjectiveScope(objectives)], records, is_open=True, time_scale=time_scale)


def drawn(share: float, count: int, rng: np.random.Generator) -> list[RequestRecord]:
    """Return requests of which a share, on average, keeps the limit."""
    return [request(place, 0.05 if rng.random() < share else 0.2) for place in range(count)]


def test_few_requests_tell_nothing() -> None:
    """However good they look, too few requests are no verdict."""
    assert weigh(LIMIT, [request(place, 0.01) for place in range(MIN_REQUESTS - 1)]).met is None


def test_so_many_perfect_requests_prove_p95() -> None:
    """127 of 127 within the limit put the true share above 95 % with 99 % confidence; 126 do not."""
    assert wilson(1.0, 127)[0] >= 0.95 > wilson(1.0, 126)[0]
    assert weigh(LIMIT, [request(place, 0.01) for place in range(127)]).met is True
    assert weigh(LIMIT, [request(place, 0.01) for place in range(126)]).met is None


@pytest.mark.parametrize(("share", "wrong"), [(0.90, True), (0.985, False)])
def test_verdicts_are_seldom_wrong(share: float, wrong: bool) -> None:
    """90 % within a p95 limit is hardly ever called met, 98.5 % hardly ever missed."""
    rng = np.random.default_rng(7)
    verdicts = [weigh(LIMIT, drawn(share, 300, rng)).met for _ in range(200)]
    assert sum(verdict is wrong for verdict in verdicts) <= 4


def test_requests_that_share_their_fate_count_less() -> None:
    """Ten long stretches of bad luck are not a thousand independent requests: the verdict stays open."""
    rng = np.random.default_rng(3)
    together = [request(place, 0.2 if (place // 100) == 4 else 0.05) for place in range(1000)]
    spread = [request(place, 0.2 if rng.random() < 0.1 else 0.05) for place in range(1000)]
    assert weigh(LIMIT, spread).met is False
    assert weigh(LIMIT, together).met is None


def test_goodput_counts_failed_requests() -> None:
    """A failed request keeps no limit, and an error is a miss where none is allowed."""
    wanted = Objectives(goodput=Goodput(share=0.9, ttft_s=1.0), errors_ratio=0.5)
    half = [request(place, 0.05, outcome="ok" if place % 2 else "error") for place in range(400)]
    assert weigh(wanted, half).missed == ("goodput",)
    strict = Objectives(ttft_s={"p50": 1.0})
    assert weigh(strict, [*(request(n, 0.05) for n in range(200)), request(200, 0.05, outcome="error")]).missed == (
        "errors_ratio",
    )


def test_time_scale_divides_what_was_seen() -> None:
    """At a time scale of 4, 0.2 wall seconds are 0.05 engine seconds: within a limit of 0.1."""
    slow = [request(place, 0.2) for place in range(200)]
    assert weigh(LIMIT, slow, time_scale=4.0).met is True
    assert weigh(LIMIT, slow, time_scale=1.0).met is False


def test_means_and_maxima_have_their_own_rule() -> None:
    """A maximum above its limit is a miss at once; a mean is compared by its own interval."""
    gaps = [request(place, 0.01, gap_s=0.02 + 0.001 * (place % 5)) for place in range(200)]
    assert weigh(Objectives(itl_s={"max": 0.025}), gaps).met is True
    assert weigh(Objectives(itl_s={"max": 0.023}), gaps).missed == ("itl_s max",)
    assert weigh(Objectives(itl_s={"mean": 0.0225}), gaps).met is True
    assert weigh(Objectives(itl_s={"mean": 0.0215}), gaps).missed == ("itl_s mean",)


def test_a_growing_backlog_is_seen() -> None:
    """Requests that come twice as fast as they end are no steady load, though each met its limit so far."""
    steady = [request(place, 0.5, sent_s=place * 1.0) for place in range(200)]
    assert not is_backlog_growing(steady)
    overloaded = [request(place, place * 1.0, sent_s=place * 1.0) for place in range(200)]
    assert is_backlog_growing(overloaded)
    assert weigh(Objectives(ttft_s={"p99": 1e6}), overloaded).met is None


def test_a_class_is_judged_by_its_own_requests() -> None:
    """A promise to one class is missed by that class alone, and says so; the other's requests do not help it."""
    mixed = [request(place, 0.05 if place % 2 else 0.2) for place in range(400)]
    named = [each.model_copy(update={"class_name": "fast" if each.id % 2 else "slow"}) for each in mixed]
    found = weigh_all([ObjectiveScope(LIMIT, "fast"), ObjectiveScope(LIMIT, "slow")], named, is_open=True)
    assert (found.met, found.missed) == (False, ("slow: ttft_s p95",))
    assert weigh_all([ObjectiveScope(LIMIT, "fast")], named, is_open=True).met is True
    assert weigh_all([ObjectiveScope(LIMIT, "absent")], named, is_open=True).open == ("absent: too few requests",)


def test_the_fast_ones_do_not_speak_for_all() -> None:
    """While a slow request is under way, only what was sent before it counts."""
    ended = [request(place, 0.05) for place in range(100) if place != 40]
    assert [each.id for each in ended_before_the_first_under_way(ended)] == list(range(40))
    assert len(ended_before_the_first_under_way([])) == 0
