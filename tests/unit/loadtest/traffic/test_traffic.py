"""The closed loop's bookkeeping."""

from __future__ import annotations

import pytest

from loadtest.traffic.closed_loop import ClosedLoop
from loadtest.traffic.conversations import always
from loadtest.traffic.levels import Turn


def _run(loop: ClosedLoop, users: int) -> list[Turn]:
    """Let users take turns, each request ending before the next user's begins."""
    turns = []
    now_s = 0.0
    while not loop.is_over:
        for user in range(users):
            turn = loop.next_turn(user, now_s)
            turns.append(turn)
            now_s += 1.0
            loop.note_end(turn, now_s)
    return turns


def test_exactly_the_requests_asked_for_are_measured() -> None:
    """Neither more users than requests nor fewer change how many are measured."""
    for users, requests in ((1, 5), (4, 10), (16, 3)):
        turns = _run(ClosedLoop(users, always(10, 8), requests, 1, 0), users)
        assert sum(turn.phase == "measure" for turn in turns) == requests


def test_measuring_waits_for_every_user() -> None:
    """No request is measured before the last user has warmed up."""
    loop = ClosedLoop(3, always(10, 8), 4, 2, 0)
    for _ in range(2):
        assert [loop.next_turn(user, 0.0).phase for user in range(3)] == ["warmup"] * 3
    assert loop.next_turn(0, 1.0).phase == "warmup"
    assert loop.next_turn(1, 1.0).phase == "warmup"
    assert loop.next_turn(2, 2.0).phase == "measure"
    assert loop.measure_s == 2.0


def test_users_fill_until_the_last_measured_request_has_ended() -> None:
    """The level is over when the last measured request is, not when it was sent."""
    loop = ClosedLoop(2, always(10, 8), 1, 0, 10)
    measured = loop.next_turn(0, 0.0)
    assert measured.phase == "measure"  # nobody is to warm up
    assert loop.next_turn(1, 0.0).phase == "fill"
    assert loop.next_turn(1, 0.5).phase == "fill"
    assert not loop.is_over
    loop.note_end(measured, 1.0)
    assert loop.is_over
    assert loop.end_s == 1.0


def test_a_window_measures_more_than_was_asked_for() -> None:
    """What is sent within the window is measured beyond the count; the level ends with the last of it, or at once."""
    loop = ClosedLoop(1, always(10, 8), 1, 0, 0, window_s=2.0)
    for sent_s in (0.0, 1.0):
        turn = loop.next_turn(0, sent_s)
        assert turn.phase == "measure"
        loop.note_end(turn, sent_s + 0.9)
    assert not loop.is_over
    assert loop.next_turn(0, 2.0).phase == "fill"
    assert loop.is_over


def test_users_can_begin_together() -> None:
    """Where they are not to be staggered, the first replies are whole."""
    loop = ClosedLoop(4, always(10, 40), 4, 1, 0, staggered=False)
    assert [loop.next_turn(user, 0.0).output_tokens for user in range(4)] == [40] * 4


def test_first_replies_are_staggered() -> None:
    """Users begin spread over a reply's length, so that they do not march in step."""
    loop = ClosedLoop(4, always(10, 40), 4, 1, 0)
    assert [loop.next_turn(user, 0.0).output_tokens for user in range(4)] == [10, 20, 30, 40]
    assert loop.next_turn(0, 0.0).output_tokens == 40


def test_ids_run_on_from_level_to_level() -> None:
    """No two requests of a run share an id."""
    first = ClosedLoop(2, always(10, 8), 4, 1, 0)
    ids = [turn.id for turn in _run(first, 2)]
    second = ClosedLoop(2, always(10, 8), 4, 1, first.next_id)
    ids += [turn.id for turn in _run(second, 2)]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(("users", "requests", "workers"), [(7, 20, 3), (4, 10, 2), (2, 5, 4), (64, 100, 5), (3, 1, 2)])
def test_shares_of_a_level_make_the_whole(users: int, requests: int, workers: int) -> None:
    """Several generators have each user once, measure the requests asked for in all, and share no id."""
    whole = ClosedLoop(users, always(10, 8), requests, 1, 100)
    shares = [
        ClosedLoop(users, always(10, 8), requests, 1, 100, worker=worker, workers=workers) for worker in range(workers)
    ]
    assert sorted(user for share in shares for user in share.users) == list(whole.users)
    assert sum(share.requests for share in shares) == requests
    largest = max(share.requests / len(share.users) for share in shares if share.users)
    assert largest < requests / users + 1  # nobody is given a much longer level than the others
    ids = [share.next_turn(user, 0.0).id for _ in range(3) for share in shares for user in share.users]
    assert len(ids) == len(set(ids))
    assert min(ids) == 100


def test_a_share_measures_when_told() -> None:
    """A generator whose own users have warmed up waits for those of the others."""
    share = ClosedLoop(4, always(10, 40), 2, 1, 0, worker=1, workers=2)
    assert [share.next_turn(user, 0.0).output_tokens for user in share.users] == [20, 40]  # staggered over the level
    assert not share.is_warm
    assert [share.next_turn(user, 1.0).phase for user in share.users] == ["warmup"] * 2
    assert share.is_warm
    assert share.measure_s is None
    share.begin(2.0)
    turns = [share.next_turn(user, 2.0) for user in share.users]
    assert [turn.phase for turn in turns] == ["measure", "fill"]
    share.note_end(turns[0], 3.0)
    assert share.end_s == 3.0


def test_a_share_without_users_is_over_when_it_begins() -> None:
    """More generators than users: those left over have nothing to wait for, window or not."""
    share = ClosedLoop(1, always(10, 8), 4, 1, 0, window_s=9.0, worker=1, workers=2)
    assert share.is_warm
    share.begin(1.0)
    assert share.is_over
