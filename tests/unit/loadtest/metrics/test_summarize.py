"""Figures from records: exact, in engine seconds, and nothing hidden."""

from __future__ import annotations

import pytest

from loadtest.metrics.slo_results import knee_of
from loadtest.metrics.summarize import parse_series, spread, summarize
from loadtest.results.records import Sample, ValidityIssue
from loadtest.scenario.schema import Scenario
from loadtest.scenario.slo import Goodput, Objectives
from tests.unit.loadtest.made import GENERATION, level, manifest, record

USED = 'nv_trt_llm_kv_cache_block_metrics{model="m",kv_cache_block_type="used"}'
WAITING = 'emulator_waiting_requests{ model = "m" , version="1" }'
TRTLLM_WAITING = 'nv_trt_llm_request_metrics{model="m",request_type="waiting"}'


def test_percentiles_by_hand() -> None:
    """Percentiles interpolate linearly between order statistics: of 10, 20, 30, 40 the 90th is at rank 2.7."""
    found = spread([40.0, 10.0, 30.0, 20.0])
    assert found is not None
    assert (found.mean, found.p50, found.max, found.count) == (25.0, 25.0, 40.0, 4)
    assert found.p90 == pytest.approx(30.0 + 0.7 * 10.0)
    assert found.p95 == pytest.approx(30.0 + 0.85 * 10.0)
    assert found.p99 == pytest.approx(30.0 + 0.97 * 10.0)


def test_one_request_by_hand() -> None:
    """Each quantity of one request is what its definition says."""
    [found] = summarize(manifest(level(1, 0.0, 2.0)), [record(0, 0.5, [0.8, 0.9, 1.1, 1.5])], []).levels
    assert found.ttft_s is not None
    assert found.itl_s is not None
    assert found.tpot_s is not None
    assert found.e2e_s is not None
    assert found.ttft_s.mean == pytest.approx(0.3)
    assert found.itl_s.p50 == pytest.approx(0.2)
    assert found.itl_s.max == pytest.approx(0.4)
    assert found.tpot_s.mean == pytest.approx(0.7 / 3)
    assert found.e2e_s.mean == pytest.approx(1.0)
    assert found.window == "steady"
    assert found.window_s == pytest.approx(1.0)
    assert found.output_tokens_per_s == pytest.approx(4.0)
    assert found.requests_per_s == pytest.approx(1.0)


def test_time_scale_divides_durations_and_multiplies_rates() -> None:
    """A run at time scale 4 gives the figures of the same run four times faster."""
    slow = [record(i, 4.0 * i, [4.0 * i + 1, 4.0 * i + 2, 4.0 * i + 4]) for i in range(5)]
    fast = [record(i, 1.0 * i, [i + 0.25, i + 0.5, i + 1.0]) for i in range(5)]
    [scaled] = summarize(manifest(level(1, 0.0, 20.0), time_scale=4.0), slow, []).levels
    [plain] = summarize(manifest(level(1, 0.0, 5.0)), fast, []).levels
    assert scaled == plain
    assert plain.output_tokens_per_s == pytest.approx(3.0)


def test_a_knee_at_the_highest_load_may_lie_beyond_it() -> None:
    """Only a load that was tried above the knee shows that latency grows faster from there on."""
    objectives = Objectives(ttft_s={"p50": 0.5})
    users = range(1, 4)
    records = [record(10 * at, 10.0 * at, [10.0 * at + 0.3 * at**2, 10.0 * at + 5], level=at - 1) for at in users]
    levels = summarize(manifest(*(level(at, 10.0 * at, 10.0 * at + 9) for at in users)), records, []).levels
    found, first = knee_of(levels, objectives), knee_of(levels[:1], objectives)
    assert found is not None
    assert first is not None
    assert (found.level, found.why) == (0, "the highest load that met every objective")
    assert first.why == "the highest load that met every objective; no higher load was tried"


def test_stalls_are_not_hidden() -> None:
    """Two gaps in a hundred of 110 ms show in p99 of the pooled gaps, though every request's mean is near 12 ms."""
    times = [1.0]
    for gap in range(100):
        times.append(times[-1] + (0.110 if gap % 50 == 49 else 0.010))
    requests = [record(i, 0.0, times) for i in range(8)]
    [found] = summarize(manifest(level(8, 0.0, times[-1])), requests, []).levels
    assert found.itl_s is not None
    assert found.tpot_s is not None
    assert found.itl_s.count == 800
    assert found.itl_s.p95 == pytest.approx(0.010)
    assert found.itl_s.p99 == pytest.approx(0.110)
    assert found.tpot_s.p99 == pytest.approx(0.012)


def test_warmup_does_not_count() -> None:
    """A request sent in the warm-up is in no figure."""
    requests = [record(0, 0.0, [9.0, 9.5], warmup=True), record(1, 10.0, [11.0, 12.0])]
    [found] = summarize(manifest(level(1, 10.0, 12.0)), requests, []).levels
    assert found.requests == 1
    assert found.ttft_s is not None
    assert found.ttft_s.max == pytest.approx(1.0)
    assert found.output_tokens_per_s == pytest.approx(1.0)


def test_requests_that_an_interrupt_cut_short_are_no_failures() -> None:
    """They are counted apart: in no latency, no goodput, no share of errors; a real failure stays one."""
    requests = [
        record(0, 0.0, [1.0, 2.0]),
        record(1, 0.0, [1.0], outcome="error"),
        record(2, 1.5, [2.5], outcome="cancelled"),
        record(3, 1.5, [], outcome="lost"),
        record(4, 0.0, [0.5], outcome="cancelled", warmup=True),
    ]
    objectives = Objectives(goodput=Goodput(ttft_s=1.5, share=0.5))
    run = manifest(level(2, 0.0, 2.5, complete=False), interrupted="interrupted by the user")
    found = summarize(run, requests, [], objectives=objectives)
    [of_level] = found.levels
    assert (of_level.requests, of_level.errors, of_level.incomplete) == (2, 1, 2)
    assert of_level.errors_by_outcome == {"error": 1}
    assert of_level.goodput == 0.5
    assert found.incomplete_note is not None
    assert found.incomplete_note.startswith("2 requests were in flight when the run was cut short")


def test_ramp_down_is_left_out() -> None:
    """Once a user has run out of requests, the tokens that still arrive do not dilute the rate.

    Two users, a token a second each, from 0 to 10; then one alone until 30. The load asked for gave 2 tokens/s.
    """
    requests = [record(0, 0.0, range(1, 11)), record(1, 0.0, range(1, 31))]
    [found] = summarize(manifest(level(2, 0.0, 30.0)), requests, []).levels
    assert (found.window, found.window_s) == ("steady", 10.0)
    assert found.output_tokens_per_s == pytest.approx(2.0)
    assert found.requests_per_s == pytest.approx((1 + 1 / 3) / 10.0)


def test_level_that_never_had_all_its_users_is_taken_whole() -> None:
    """Without an instant of the concurrency asked for, rates are of the whole measurement, and the summary says so."""
    [found] = summarize(manifest(level(3, 0.0, 20.0)), [record(0, 0.0, range(1, 11))], []).levels
    assert (found.window, found.window_s) == ("whole", 20.0)
    assert found.output_tokens_per_s == pytest.approx(0.5)


def test_moments_between_a_users_requests_do_not_end_the_window() -> None:
    """A user who is between two requests has not run out of them."""
    requests = [record(0, 0.0, [1.0, 2.0]), record(1, 2.1, [3.0, 4.0]), record(2, 4.1, [5.0, 6.0])]
    [found] = summarize(manifest(level(1, 0.0, 6.0)), requests, []).levels
    assert found.window_s == pytest.approx(6.0)
    assert found.output_tokens_per_s == pytest.approx(1.0)


def test_batch_size_of_server_and_client_agree() -> None:
    """Where samples show what the records say, both batch sizes are the same.

    Two users decode for 9 s of every 10, in step: 2 for nine tenths of the time, 0 for one.
    """
    requests = [
        record(2 * turn + user, 10.0 * turn, [10.0 * turn + 1 + step for step in range(10)])
        for turn in range(10)
        for user in range(2)
    ]
    samples = [
        Sample(t_s=0.25 + 0.5 * i, values={GENERATION: 0.0 if i % 20 < 2 else 2.0, USED: 7.0, WAITING: 1.0, "up": 1.0})
        for i in range(200)
    ]
    [found] = summarize(manifest(level(2, 0.0, 100.0)), requests, samples).levels
    assert found.batch_size is not None
    assert found.batch_size_client is not None
    assert found.batch_size_client.mean == pytest.approx(1.8)
    assert found.batch_size.mean == pytest.approx(found.batch_size_client.mean)
    assert (found.batch_size.p50, found.batch_size.p95) == (2.0, 2.0)
    assert (found.batch_size_client.p50, found.batch_size_client.p95) == (2.0, 2.0)
    assert (found.kv_blocks_used, found.waiting) == (7.0, 1.0)


def test_trtllms_waiting_is_not_read_as_a_queue() -> None:
    """It leaves out the executor's queue: a run that has nothing else says that the queue is not known."""
    samples = [Sample(t_s=t, values={TRTLLM_WAITING: 0.0, GENERATION: 2.0}) for t in (1.0, 2.0)]
    [found] = summarize(manifest(level(1, 0.0, 10.0)), [record(0, 0.0, [1.0, 2.0])], samples).levels
    assert found.waiting is None


def test_client_batch_is_weighted_by_time() -> None:
    """One request for 9 s and three for 1 s make a mean of 1.2 and a median of 1."""
    requests = [record(0, 0.0, [0.0, 10.0]), record(1, 9.0, [9.0, 10.0]), record(2, 9.0, [9.0, 10.0])]
    [found] = summarize(manifest(level(1, 0.0, 10.0)), requests, []).levels
    assert found.batch_size_client is not None
    assert found.batch_size_client.mean == pytest.approx(1.2)
    assert (found.batch_size_client.p50, found.batch_size_client.p95, found.batch_size_client.max) == (1.0, 3.0, 3.0)


def test_no_samples_no_server_batch() -> None:
    """Without server metrics its batch size is unknown, not zero; so it is where samples lie outside the window."""
    requests = [record(0, 0.0, [1.0, 2.0])]
    outside = [Sample(t_s=50.0, values={GENERATION: 9.0})]
    for samples in ([], outside):
        [found] = summarize(manifest(level(1, 0.0, 2.0)), requests, samples).levels
        assert found.batch_size is None
        assert found.kv_blocks_used is None


def test_no_successful_request() -> None:
    """A level where all failed has no latencies, and its errors by outcome."""
    requests = [record(0, 0.0, [], outcome="timeout"), record(1, 0.0, [0.5], outcome="cut")]
    [found] = summarize(manifest(level(2, 0.0, 5.0)), requests, []).levels
    assert (found.ttft_s, found.itl_s, found.tpot_s, found.e2e_s) == (None, None, None, None)
    assert (found.requests, found.errors) == (2, 2)
    assert found.errors_by_outcome == {"cut": 1, "timeout": 1}
    assert found.requests_per_s == 0.0


def test_success_without_a_token_is_an_error() -> None:
    """A reply that ended well but held no token has no latency and is not passed over."""
    requests = [record(0, 0.0, []), record(1, 0.0, [1.0, 2.0])]
    [found] = summarize(manifest(level(1, 0.0, 2.0)), requests, []).levels
    assert (found.errors, found.errors_by_outcome) == (1, {"empty": 1})


def test_failed_requests_are_in_no_latency() -> None:
    """Latencies are of successful requests; the failed are counted."""
    requests = [record(0, 0.0, [1.0, 2.0]), record(1, 0.0, [5.0, 9.0], outcome="error")]
    [found] = summarize(manifest(level(2, 0.0, 9.0)), requests, []).levels
    assert found.ttft_s is not None
    assert found.ttft_s.count == 1
    assert found.errors == 1


def test_single_token_replies() -> None:
    """Replies of one token have a time to first token and no gaps."""
    [found] = summarize(manifest(level(1, 0.0, 2.0)), [record(0, 0.0, [1.0])], []).levels
    assert found.ttft_s is not None
    assert found.itl_s is None
    assert found.tpot_s is None


def test_interrupted_run() -> None:
    """An interrupted run keeps what it has, says which level was cut, and is not valid."""
    run = manifest(level(1, 0.0, 2.0), level(2, 2.0, 2.0, complete=False), interrupted="Ctrl-C")
    found = summarize(run, [record(0, 0.0, [1.0, 2.0])], [])
    assert not found.valid
    assert [issue.code for issue in found.validity_issues] == ["interrupted"]
    assert [one.complete for one in found.levels] == [True, False]
    assert found.levels[1].requests == 0
    assert found.levels[1].output_tokens_per_s is None


def test_validity_issues_are_carried() -> None:
    """A run's own validity issues make its summary invalid."""
    issue = ValidityIssue(code="client-late", text="late", level=0)
    run = manifest(level(1, 0.0, 2.0)).model_copy(update={"validity_issues": [issue]})
    found = summarize(run, [], [])
    assert (found.valid, found.validity_issues[0]) == (False, issue)


def test_missing_records_make_a_validity_issue() -> None:
    """A level that is said to be complete and has fewer records than were asked for is not to be believed."""
    run = manifest(level(2, 0.0, 2.0)).model_copy(update={"scenario": Scenario(requests=2)})
    found = summarize(run, [record(0, 0.0, [1.0, 2.0])], [])
    assert [(issue.code, issue.level) for issue in found.validity_issues] == [("records-missing", 0)]
    assert summarize(manifest(level(1, 0.0, 2.0)), [record(0, 0.0, [1.0, 2.0])], []).valid


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("up", ("up", {})),
        ('a:b{x="1",y="2"}', ("a:b", {"x": "1", "y": "2"})),
        ('m{ x = "a,b}" , y="" }', ("m", {"x": "a,b}", "y": ""})),
        ('m{x="say \\"hi\\""}', ("m", {"x": 'say "hi"'})),
        ("not a series!", None),
    ],
)
def test_parse_series(text: str, expected: object) -> None:
    """Labels may come in any order, with spaces, commas, braces and escaped quotes."""
    assert parse_series(text) == expected
