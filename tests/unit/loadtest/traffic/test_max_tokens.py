"""A request's `max_tokens` is apart from the length of its reply: sent, reserved, and not what the reply has."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.files import MadeBy
from loadtest.scenario import Trace, read_trace
from loadtest.scenario.schema import Scenario
from loadtest.simulate.predict import predict
from loadtest.traffic import ConversationSampler
from loadtest.traffic.levels import turn_of
from tests.unit.loadtest.capacity.made import engine


def _scenario(**lengths: object) -> Scenario:
    values = {"isl": 100, "osl": 50, **lengths}
    return Scenario.model_validate({"lengths": values, "prompts": "random", "rate_per_s": [60.0], "duration_s": 20.0})


def test_a_turn_asks_for_max_tokens_and_expects_its_reply() -> None:
    """Without `max_tokens` exactly the reply is asked for; with it, at most so many, and the reply ends by itself."""
    plain = turn_of(ConversationSampler(_scenario()).begin(0), 0, "measure")
    largest = turn_of(ConversationSampler(_scenario(max_tokens=900)).begin(0), 0, "measure")
    assert (plain.output_tokens, plain.asked_tokens, plain.exact) == (50, 50, True)
    assert (largest.output_tokens, largest.asked_tokens, largest.exact) == (50, 900, False)


def test_a_trace_row_states_its_own(tmp_path: Path) -> None:
    """A column `max_tokens` wins over the trace's own value, which stands for rows without one."""
    (tmp_path / "t.csv").write_text("at_s,isl,osl,max_tokens\n0,10,5,64\n1,10,5,\n", encoding="utf-8")
    found = read_trace(Trace(path="t.csv", max_tokens=32), folder=tmp_path).arrivals
    assert [each.max_tokens for each in found] == [64, 32]


def test_no_evict_waits_for_what_is_reserved() -> None:
    """Blocks for 8 requests of 100 + 900 tokens: with `max_tokens` 900 replies of 50 tokens wait, without it none."""
    manifest = engine(**{"limits.max_batch_size": 64, "limits.max_num_tokens": 2048, "limits.max_seq_len": 1024})
    cache = manifest.kv_cache.model_copy(update={"blocks": 8 * 32})
    manifest = manifest.model_copy(update={"kv_cache": cache})
    waits = {}
    for largest in (None, 900):
        scenario = _scenario(**({} if largest is None else {"max_tokens": largest}))
        found = predict(scenario, manifest, made_by=MadeBy(command="test", version="0"), made_from=[])
        assert {record.output_tokens for record in found.records if record.outcome == "ok"} == {50}
        waits[largest] = max(
            record.token_times_s[0] - record.sent_s for record in found.records if record.token_times_s
        )
    assert waits[900] > 3 * (waits[None] or 0.0)
    assert waits[None] == pytest.approx(0.05, abs=0.05)
