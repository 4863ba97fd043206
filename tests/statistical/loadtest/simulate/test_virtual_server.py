"""The virtual server: its host, its open loop, its end; and the wall clock beside it."""

from __future__ import annotations

import math
import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.emulator.engine import Batcher
from engines.emulator.request import BatcherSettings, Request, TokenEvent
from engines.spec.deployment import Host
from engines.steptime.shape import DecodeLine, StepCost, StepShape
from loadtest.simulate.virtual_server import Arrivals, Ended, Sent, Users, VirtualServer
from loadtest.traffic.closed_loop import ClosedLoop
from loadtest.traffic.conversations import always
from loadtest.traffic.levels import Turn
from triton_repo.models.engine_clock import EngineClock

LIMITS = BatcherSettings(
    max_batch_size=8, max_num_tokens=512, max_seq_len=256, tokens_per_block=16, kv_blocks=128, chunked_context=True
)


class Flat:
    """Ten milliseconds a step, whatever is in it."""

    STEP_S = 0.01

    def cost(self, shape: StepShape) -> StepCost:  # noqa: ARG002 (flat)
        """Return the step as host time."""
        return StepCost(host_s=self.STEP_S)

    def seconds(self, shape: StepShape) -> float:
        """Return the step's length."""
        return sum(self.cost(shape))

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:  # noqa: ARG002 (flat)
        """Return a level line."""
        return DecodeLine(self.STEP_S, 0.0, math.inf)


def _users(concurrency: int, requests: int, *, window_s: float = 0.0, osl: int = 5) -> Users:
    loop = ClosedLoop(concurrency, always(10, osl), requests, 1, 0, window_s=window_s, staggered=False)
    return Users(loop)


def _served(traffic: Users | Arrivals, host: Host | None = None) -> tuple[VirtualServer, list[Ended]]:
    server = VirtualServer(Batcher(LIMITS, Flat()), traffic, host or Host())
    return server, list(server.run())


def test_the_host_lets_requests_through_one_by_one() -> None:
    """Of requests sent at once, each enters the engine a host time after the one before."""
    sent = [Sent(Turn(number, "measure", 1), 0.0, 10) for number in range(4)]
    server, ended = _served(Arrivals(sent), Host(request_s=0.05))
    assert [server.first_and_last_s(each)[0] for each in ended] == pytest.approx([0.06, 0.11, 0.16, 0.21])


def test_the_streaming_ceiling_holds_tokens_back() -> None:
    """Where a step makes more tokens than may leave in its time, they leave at the ceiling's rate."""
    server, ended = _served(_users(8, 64), Host(stream_token_s=0.005))
    times_s = sorted(each for request in ended for each in server.token_times_s(request))
    busy_s = times_s[-1] - times_s[0]
    assert (len(times_s) - 1) / busy_s <= 1 / 0.005 * 1.05
    assert (len(times_s) - 1) / busy_s == pytest.approx(1 / 0.005, rel=0.15)


def test_an_open_loop_is_never_slowed() -> None:
    """Requests are sent at their own times, however far the server is behind."""
    sent = [Sent(Turn(number, "measure", 20), number * 0.001, 100) for number in range(100)]
    _, ended = _served(Arrivals(sent))
    assert [each.sent.sent_s for each in sorted(ended, key=lambda each: each.sent.turn.id)] == [s.sent_s for s in sent]
    assert all(each.outcome == "ok" for each in ended)


def test_a_refused_request_has_an_outcome() -> None:
    """A prompt longer than the engine takes is rejected with its cause, and the level still ends."""
    sent = [Sent(Turn(0, "measure", 5), 0.0, 10_000), Sent(Turn(1, "measure", 5), 0.0, 10)]
    _, ended = _served(Arrivals(sent))
    outcomes = {each.sent.turn.id: (each.outcome, each.cause) for each in ended}
    assert outcomes[1] == ("ok", None)
    assert outcomes[0][0] == "rejected"
    assert "exceeds maximum input length" in (outcomes[0][1] or "")


@settings(max_examples=60, deadline=None)
@given(
    concurrency=st.integers(1, 12),
    requests=st.integers(1, 30),
    window_s=st.sampled_from([0.0, 0.049, 0.05, 0.0505, 0.3]),
    osl=st.integers(1, 9),
)
def test_every_level_ends_and_measures_enough(concurrency: int, requests: int, window_s: float, osl: int) -> None:
    """Whatever its window, a level ends with at least the requests asked for, and with no token before its request."""
    server, ended = _served(_users(concurrency, requests, window_s=window_s, osl=osl))
    measured = [each for each in ended if each.sent.turn.phase == "measure"]
    assert len(measured) >= requests
    assert all(each.outcome == "ok" for each in measured)
    for each in measured:
        times_s = server.token_times_s(each)
        assert len(times_s) == osl
        assert times_s[0] > each.sent.sent_s
        assert all(later > earlier for earlier, later in pairwise(times_s))


@pytest.mark.quiet
def test_wall_clock_and_virtual_clock_agree() -> None:
    """The same requests give the same tokens in the same steps, on either clock, up to the wall's lateness."""
    # Half a step from any other: a request that the wall holds up joins the step that it joins on the virtual clock.
    plan = [(0.0, 20, 8), (0.005, 30, 6), (0.035, 25, 5), (0.065, 40, 3)]
    sent = [Sent(Turn(number, "measure", osl), t_s, isl) for number, (t_s, isl, osl) in enumerate(plan)]
    server, ended = _served(Arrivals(sent))
    virtual = {each.sent.turn.id: server.token_times_s(each) for each in ended}

    scale = 10.0
    arrived: dict[int, list[float]] = {number: [] for number in range(len(plan))}
    done = threading.Semaphore(0)
    began = time.monotonic()

    def deliver(events: list[TokenEvent]) -> None:
        now_s = (time.monotonic() - began) / scale
        for event in events:
            arrived[int(event.request_id)].append(now_s)
            if event.is_final:
                done.release()

    clock = EngineClock(Batcher(LIMITS, Flat()), scale, deliver)
    clock.start()
    try:
        for number, (t_s, isl, osl) in enumerate(plan):
            time.sleep(max(0.0, began + t_s * scale - time.monotonic()))
            clock.submit(Request(number, isl, osl))
        assert all(done.acquire(timeout=10) for _ in plan)
    finally:
        clock.stop()
    for number, times_s in virtual.items():
        assert len(arrived[number]) == len(times_s)
        assert np.allclose(arrived[number], times_s, atol=Flat.STEP_S / 2)
