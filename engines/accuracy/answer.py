"""A reasoning model's answer: its reply without the reasoning, cut at the task's stop strings."""

from __future__ import annotations

from collections.abc import Sequence

OPEN_TAG, CLOSE_TAG = "<think>", "</think>"


def begins_inside_reasoning(prompt: str) -> bool:
    r"""Return whether a reply to this prompt starts inside the reasoning: the chat template has opened it.

    >>> begins_inside_reasoning("<|Assistant|><think>\n"), begins_inside_reasoning("Question: 1 + 1?\nAnswer:")
    (True, False)
    """
    return prompt.rstrip().endswith(OPEN_TAG)


def answer_of(reply: str, *, begins_inside: bool, stops: Sequence[str] = ()) -> str:
    r"""Return the answer in a reply; empty if the reply ended within its reasoning.

    A reply without tags that does not begin inside the reasoning is an answer. Stop strings apply to the answer alone:
    a reasoning that quotes one goes on.

    >>> answer_of("<think>6 or 7? Q: which?</think>\n\n7\nQ: next", begins_inside=False, stops=["Q:"])
    '7\n'
    >>> answer_of("it is 6, no,", begins_inside=True), answer_of("<think>it is", begins_inside=False)
    ('', '')
    >>> answer_of(" 7", begins_inside=False)
    ' 7'
    """
    _, closed, answer = reply.rpartition(CLOSE_TAG)
    if closed:
        answer = answer.lstrip()
    elif begins_inside or OPEN_TAG in reply:
        return ""
    ends = [place for stop in stops if stop and (place := answer.find(stop)) >= 0]
    return answer[: min(ends, default=None)]
