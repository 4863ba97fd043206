"""What an emulated engine answers: the prompt's tokens under a request's rules."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_repo.models.reply import Reply, ReplyError, Rules, prompt_words

VOCABULARY = 50
PROMPT = [5, 6, 7, 8]


def _tokens(prompt: list[int], limit: int, rules: Rules) -> tuple[list[int | None], Reply]:
    reply = Reply(np.array(prompt, np.int32), limit, rules, vocabulary=VOCABULARY)
    steps = limit if reply.ends_after is None else reply.ends_after
    return [reply.token(step) for step in range(steps)], reply


def test_without_rules_the_prompt_comes_over_again() -> None:
    """The reply has the length asked for and costs no walk."""
    tokens, reply = _tokens(PROMPT, 6, Rules(end_id=99, stop_words=((1, 2),)))
    assert tokens == [5, 6, 7, 8, 5, 6]
    assert (reply.ends_after, reply.why) == (None, "length")


def test_the_end_token_costs_a_step_and_is_not_given_out() -> None:
    """Two tokens come out of three steps; the last makes the end token."""
    tokens, reply = _tokens(PROMPT, 6, Rules(end_id=7))
    assert tokens == [5, 6, None]
    assert (reply.ends_after, reply.why) == (3, "end")


def test_no_end_before_min_tokens() -> None:
    """Where the end token is not allowed yet, the next token of the prompt comes instead."""
    assert _tokens(PROMPT, 9, Rules(end_id=7, min_tokens=4))[0] == [5, 6, 8, 5, 6, None]
    assert _tokens(PROMPT, 6, Rules(end_id=7, min_tokens=6))[1].why == "length"


def test_a_stop_word_is_the_replys_last_part() -> None:
    """It ends where its last token came, also across the prompt's end."""
    tokens, reply = _tokens(PROMPT, 9, Rules(stop_words=((9,), (8, 5))))
    assert tokens == [5, 6, 7, 8, 5]
    assert (reply.ends_after, reply.why) == (5, "stop")


def test_a_bad_word_never_comes_about() -> None:
    """A token alone, and a sequence whose last token is left out."""
    assert _tokens(PROMPT, 5, Rules(bad_words=((6,),)))[0] == [5, 7, 8, 5, 7]
    assert _tokens(PROMPT, 5, Rules(bad_words=((6, 7),)))[0] == [5, 6, 8, 5, 6]


def test_where_the_whole_prompt_is_bad_another_token_comes() -> None:
    """A prompt whose every token is forbidden is answered with the first that is not."""
    assert _tokens([0, 1], 3, Rules(bad_words=((0,), (1,), (2,))))[0] == [3, 3, 3]
    with pytest.raises(ReplyError, match="leaves no token"):
        _tokens([0], 3, Rules(bad_words=tuple((token,) for token in range(VOCABULARY))))


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    limit=st.integers(1, 30),
    end_id=st.none() | st.integers(-1, 5),
    min_tokens=st.integers(0, 10),
    stop_words=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
    bad_words=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=3).map(tuple), max_size=2).map(tuple),
)
def test_every_rule_is_kept(
    prompt: list[int],
    limit: int,
    end_id: int | None,
    min_tokens: int,
    stop_words: tuple[tuple[int, ...], ...],
    bad_words: tuple[tuple[int, ...], ...],
) -> None:
    """Whatever the rules: no bad word, no early end, nothing behind a stop word, never past the limit."""
    tokens, reply = _tokens(prompt, limit, Rules(end_id, min_tokens, stop_words, bad_words))
    made = [token for token in tokens if token is not None]
    assert len(tokens) <= limit
    assert None not in tokens[:-1]
    assert tokens[-1] is not None or len(made) >= min_tokens
    assert end_id is None or end_id < 0 or end_id not in made
    for word in bad_words:
        assert not any(tuple(made[at : at + len(word)]) == word for at in range(len(made)))
    for word in stop_words:
        assert not any(tuple(made[at : at + len(word)]) == word for at in range(len(made) - len(word)))
    if reply.why == "length":
        assert len(made) == limit


def test_word_lists_are_read_as_tensorrt_llm_reads_them() -> None:
    """Tokens in a row, then where each word ends, then -1s."""
    assert prompt_words([]) == ()
    assert prompt_words([0, -1]) == ()
    assert prompt_words([7, 8, 9, 1, 3, -1]) == ((7,), (8, 9))
    assert prompt_words([7, 8, 2, -1]) == ((7, 8),)


@pytest.mark.parametrize(
    ("flat", "said"),
    [
        ([1, 2, 3], "must not have odd length: 1 2 3 "),
        ([1, 2, 3, -1], "out-of-bound offsets"),
        ([1, 2, 2, 1], "non-increasing offsets"),
        ([1, 2, 3, 1, -1, 2], "additional -1s"),
    ],
)
def test_a_list_that_is_none_is_refused_in_upstreams_words(flat: list[int], said: str) -> None:
    """Each damage to a list is refused as TensorRT-LLM's backend does."""
    with pytest.raises(ReplyError, match=said):
        prompt_words(flat)
