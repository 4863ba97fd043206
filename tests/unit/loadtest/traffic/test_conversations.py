"""What is drawn of a scenario, and how conversations go: the same for everyone, in order, as large as stated."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.errors import MissingError
from loadtest.scenario.arrivals import Poisson
from loadtest.scenario.schema import Conversations, Lengths, Prefixes, Scenario, TrafficClass
from loadtest.scenario.traces import HASH_BLOCK_TOKENS, Arrival
from loadtest.traffic.closed_loop import ClosedLoop, closed_loop
from loadtest.traffic.conversations import ConversationSampler, ConversationState
from loadtest.traffic.levels import Turn, plans_of
from loadtest.traffic.open_loop import open_loop

BLOCK = 32
CHATTY = Scenario(
    seed=3,
    lengths=Lengths(isl="uniform(5, 50)", osl="uniform(2, 30)"),
    prefixes=Prefixes(count=3, tokens=100, share=0.5),
    conversation=Conversations(turns="uniform(1, 6)", think_s="exponential(2)"),
)


def _hashes(scenario: Scenario, number: int, place: int = 0) -> tuple[int, ...]:
    talk = ConversationSampler(scenario).begin(number)
    talk.skip_to(place)
    return talk.block_hashes(BLOCK)


@given(st.integers(0, 10**6), st.integers(0, 2**32))
def test_the_same_number_is_the_same_conversation(number: int, seed: int) -> None:
    """Whoever draws a conversation, in whatever order and at whatever level, gets the same lengths and pauses."""
    scenario = CHATTY.model_copy(update={"seed": seed})
    other = ConversationSampler(scenario)
    other.draw(number + 1)
    assert ConversationSampler(scenario).draw(number) == other.draw(number) == other.draw(number, level=4)


def test_another_seed_is_another_load() -> None:
    """Seeds give different requests."""
    mixes = [ConversationSampler(CHATTY.model_copy(update={"seed": seed})) for seed in (0, 1)]
    assert [mixes[0].draw(n).exchanges for n in range(50)] != [mixes[1].draw(n).exchanges for n in range(50)]


@settings(max_examples=20, deadline=None)
@given(weights=st.lists(st.floats(0.2, 5), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_a_mix_has_its_weights(weights: list[float], seed: int) -> None:
    """Each class comes as often as its weight says, against the others'."""
    classes = tuple(TrafficClass(name=f"c{index}", weight=weight) for index, weight in enumerate(weights))
    mix = ConversationSampler(Scenario(classes=classes, seed=seed))
    kinds = [mix.draw(number).kind for number in range(3000)]
    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        assert kinds.count(index) / 3000 == pytest.approx(share, abs=4.5 * (share * (1 - share) / 3000) ** 0.5)


def test_a_class_has_its_own_and_the_scenarios_the_rest() -> None:
    """What a class leaves out is as for the whole scenario."""
    scenario = Scenario(
        lengths=Lengths(isl=100, osl=10),
        classes=(TrafficClass(name="a"), TrafficClass(name="b", lengths=Lengths(isl=7, osl=3), replies="free")),
    )
    mix = ConversationSampler(scenario)
    seen = {mix.begin(number).kind.name: mix.draw(number).exchanges[0] for number in range(50)}
    assert (seen["a"].prompt_tokens, seen["a"].reply_tokens) == (100, 10)
    assert (seen["b"].prompt_tokens, seen["b"].reply_tokens) == (7, 3)
    assert [kind.is_exact for kind in scenario.kinds] == [True, False]


def test_prefixes_have_their_share_and_come_on_top() -> None:
    """Half of the prompts begin with one of three beginnings, each a third of those, all 100 tokens longer."""
    mix = ConversationSampler(CHATTY)
    drawn = [mix.draw(number) for number in range(3000)]
    shared = [each for each in drawn if each.prefix is not None]
    assert len(shared) / 3000 == pytest.approx(0.5, abs=0.04)
    for prefix in range(3):
        assert sum(each.prefix == prefix for each in shared) / len(shared) == pytest.approx(1 / 3, abs=0.05)
    for each in drawn:
        assert mix.begin(each.number).prompt_tokens == each.exchanges[0].prompt_tokens + each.prefix_tokens
        assert each.prefix_tokens == (0 if each.prefix is None else 100)


def test_a_prompt_repeats_what_was_said() -> None:
    """A turn's prompt is as long as all prompts and replies before it and what is new."""
    for number in range(50):
        talk = ConversationSampler(CHATTY).begin(number)
        said = talk.conversation.prefix_tokens
        for exchange in talk.conversation.exchanges:
            assert talk.prompt_tokens == said + exchange.prompt_tokens
            talk.go_on(exchange.reply_tokens - 1)  # a reply that was shorter than asked is repeated as it came
            said += exchange.prompt_tokens + exchange.reply_tokens - 1
        assert talk.is_over


def test_a_failed_turn_ends_its_conversation() -> None:
    """Nobody answers to a reply that did not come."""
    talk = next(
        talk
        for number in range(50)
        if len((talk := ConversationSampler(CHATTY).begin(number)).conversation.exchanges) > 2
    )
    talk.go_on(None)
    assert talk.is_over


def test_a_conversation_ends_before_it_is_too_long() -> None:
    """No turn but the first passes max_tokens with its reply."""
    talk = Conversations(turns=50, max_tokens=200)
    mix = ConversationSampler(CHATTY.model_copy(update={"conversation": talk}))
    for number in range(100):
        drawn = mix.draw(number)
        total = drawn.prefix_tokens + sum(each.prompt_tokens + each.reply_tokens for each in drawn.exchanges)
        assert total <= 200 or len(drawn.exchanges) == 1
        assert len(drawn.exchanges) < 50


def test_blocks_of_a_prefix_are_shared_and_others_are_not() -> None:
    """Two prompts share exactly the blocks that lie whole inside the beginning they share."""
    scenario = CHATTY.model_copy(update={"prefixes": Prefixes(count=1, tokens=100, share=1.0), "conversation": None})
    for number in range(0, 40, 2):
        one, other = _hashes(scenario, number), _hashes(scenario, number + 1)
        assert len(set(one)) == len(one)
        assert set(one) & set(other) == set(one[: 100 // BLOCK])


def test_a_conversations_blocks_are_found_again() -> None:
    """Of the server's replies, every block of prompt and reply is met again; of stand-ins, the prompt's alone."""
    talk = Conversations(turns=4)
    for history in ("replies", "stand_in"):
        kept = talk.model_copy(update={"history": history})
        scenario = CHATTY.model_copy(update={"conversation": kept, "lengths": Lengths(isl=100, osl=70)})
        for number in range(10):
            talk_now = ConversationSampler(scenario).begin(number)
            while True:
                prompt_blocks = talk_now.prompt_tokens // BLOCK
                before = talk_now.block_hashes(BLOCK)
                assert len(before) == (talk_now.prompt_tokens + 70) // BLOCK
                talk_now.go_on(70)
                if talk_now.is_over:
                    break
                after = talk_now.block_hashes(BLOCK)
                common = [a == b for a, b in zip(before, after, strict=False)]
                assert all(common[:prompt_blocks])
                assert all(common[prompt_blocks:]) if history == "replies" else not any(common[prompt_blocks:])


def test_a_traces_hashes_are_split_into_blocks() -> None:
    """Requests that begin with the same hash of 512 tokens begin with the same blocks."""
    mix = ConversationSampler(Scenario())
    one, other = (
        mix.begin_arrival(number, Arrival(0.0, 1024, 5, hashes)) for number, hashes in ((0, (7, 8)), (1, (7, 9)))
    )
    found, others = one.block_hashes(BLOCK), other.block_hashes(BLOCK)
    each = HASH_BLOCK_TOKENS // BLOCK
    assert found[:each] == others[:each]
    assert not set(found[each:]) & set(others[each:])


def test_a_files_rows_go_round_and_levels_differ() -> None:
    """Lengths are the file's own, row after row; another level begins elsewhere, so that it meets no cached prompt."""
    scenario = Scenario(prompts="ours.jsonl", concurrency=(1, 2))
    rows = [[(10 + row, 5 if row % 2 else 0)] for row in range(6)]
    mix = ConversationSampler(scenario, {"ours.jsonl": rows})
    assert [mix.draw(number).exchanges[0].prompt_tokens for number in range(8)] == [10, 11, 12, 13, 14, 15, 10, 11]
    assert [mix.draw(number).exchanges[0].reply_tokens for number in range(2)] == [64, 5]
    assert [mix.draw(number, level=1).row for number in range(4)] == [3, 4, 5, 0]
    with pytest.raises(MissingError, match="cannot be counted without a tokenizer"):
        ConversationSampler(scenario)


def _play(loop: ClosedLoop, users: int) -> list[tuple[Turn, int, float, float]]:
    """Let users converse: each request takes a second, each pause what it is; return turns, users, begins and ends."""
    free = dict.fromkeys(range(users), 0.0)
    played = []
    while not loop.is_over:
        user = min(free, key=lambda each: free[each])
        now_s = free[user]
        turn = loop.next_turn(user, now_s)
        loop.note_end(turn, now_s + 1.0, turn.output_tokens)
        played.append((turn, user, now_s, now_s + 1.0))
        free[user] = now_s + 1.0 + loop.wait_s(user)
    return played


def _of_conversation(played: list[tuple[Turn, int, float, float]]) -> dict[int, list[tuple[Turn, int, float, float]]]:
    found: dict[int, list[tuple[Turn, int, float, float]]] = {}
    for each in played:
        found.setdefault(each[0].conversation or 0, []).append(each)
    return found


@settings(max_examples=25, deadline=None)
@given(users=st.integers(1, 6), requests=st.integers(1, 40), seed=st.integers(0, 100))
def test_a_turn_waits_for_the_reply_before_it(users: int, requests: int, seed: int) -> None:
    """In a closed loop turns of a conversation are one user's, in order, each after its reply and its pause."""
    scenario = CHATTY.model_copy(update={"seed": seed, "requests": requests})
    for turns in _of_conversation(_play(closed_loop(scenario, users, first_id=0), users)).values():
        for (one, user, _, ended_s), (later, its_user, begun_s, _) in pairwise(turns):
            assert later.place == one.place + 1
            assert its_user == user
            talk = later.state
            assert talk is not None
            assert begun_s == pytest.approx(ended_s + talk.conversation.exchanges[later.place].think_s)


def test_staggered_users_begin_all_over_a_conversation() -> None:
    """Eight users' first turns are spread over the four of a conversation, with the history that belongs to them."""
    scenario = CHATTY.model_copy(
        update={"conversation": Conversations(turns=4), "lengths": Lengths(isl=10, osl=8), "prefixes": None}
    )
    loop = closed_loop(scenario, 8, first_id=0)
    turns = [loop.next_turn(user, 0.0) for user in range(8)]
    assert [turn.place for turn in turns] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [turn.output_tokens for turn in turns] == [4, 8] * 4
    assert [turn.state.prompt_tokens for turn in turns if turn.state] == [10, 10, 28, 28, 46, 46, 64, 64]


@settings(max_examples=25, deadline=None)
@given(workers=st.integers(1, 5), seed=st.integers(0, 100))
def test_shares_converse_as_the_whole_does(workers: int, seed: int) -> None:
    """Several generators begin each conversation once, and send the requests that one would send."""
    scenario = CHATTY.model_copy(update={"seed": seed})
    shares = [closed_loop(scenario, 10, first_id=0, worker=worker, workers=workers) for worker in range(workers)]
    turns = [share.next_turn(user, 0.0) for share in shares for user in share.users]
    whole = closed_loop(scenario, 10, first_id=0)
    alone = [whole.next_turn(user, 0.0) for user in range(10)]
    assert sorted(turn.conversation or 0 for turn in alone) == list(range(10))
    assert len({turn.conversation for turn in turns}) == 10
    assert len({turn.id for turn in turns}) == 10


def test_an_open_loops_later_turns_follow_their_replies() -> None:
    """Conversations begin by the clock; a later turn is due when its user has thought, and measured in time only."""
    scenario = CHATTY.model_copy(
        update={"arrivals": Poisson(rate_per_s=2, duration_s=20), "conversation": Conversations(turns=3, think_s=4)}
    )
    (plan,) = plans_of(scenario)
    opened = open_loop(scenario, plan, ConversationSampler(scenario), level=0, first_id=10)
    ids: list[int] = []
    for place, arrival in enumerate(plan.arrivals):
        turn, due_s = opened.turn(place), arrival.at_s
        while True:
            ids.append(turn.id)
            assert turn.phase == plan.phase_at(due_s, scenario.warmup_ratio)
            later = opened.follow(turn, due_s + 1.5, turn.output_tokens)
            if later is None:
                break
            assert later[0] == pytest.approx(due_s + 5.5)
            due_s, turn = later
    assert len(ids) == len(set(ids)) == 3 * len(plan.arrivals)
    assert opened.waited_for == 0
    assert plan.phase_at(plan.arrivals[-1].at_s + 0.1, 0.1) == "fill"


def test_a_failed_turn_is_followed_by_nothing() -> None:
    """An open loop's conversation ends with a request that failed, and is not waited for."""
    scenario = CHATTY.model_copy(update={"arrivals": Poisson(rate_per_s=2, duration_s=20)})
    (plan,) = plans_of(scenario)
    opened = open_loop(scenario, plan, ConversationSampler(scenario), level=0, first_id=0)
    last = len(plan.arrivals) - 1
    turn = opened.turn(last)
    assert opened.waited_for == 1
    assert opened.follow(turn, 30.0, None) is None
    assert opened.waited_for == 0


def test_talks_are_single_requests_where_nobody_converses() -> None:
    """Without a conversation every request stands alone, and its record names none."""
    loop = closed_loop(Scenario(), 1, first_id=0)
    turn = loop.next_turn(0, 0.0)
    assert isinstance(turn.state, ConversationState)
    assert turn.conversation is None
    loop.note_end(turn, 1.0, turn.output_tokens)
    assert loop.wait_s(0) == 0.0
