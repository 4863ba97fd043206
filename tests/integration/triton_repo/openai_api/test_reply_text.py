"""Stop strings and reasoning over text that comes in pieces: however it is cut, the result is the whole text's."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from triton_repo.models.text import Detokenizer, byte_alphabet
from triton_repo.openai_api.reasoning import CLOSE_TAG, OPEN_TAG, Piece, ReasoningSplitter, splitter_for
from triton_repo.openai_api.reply_text import ReplyText
from triton_repo.openai_api.stop_strings import StopStrings

TOKENIZER = Tokenizer(models.BPE({character: byte for byte, character in enumerate(byte_alphabet())}, []))
TOKENIZER.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
TOKENIZER.decoder = decoders.ByteLevel()

# Few characters, so that tags, their parts and stop strings come up often; and the hard ones of Unicode.
_LETTERS = st.text(alphabet="ab<>/think \n", max_size=12)
_HARD = st.sampled_from(
    ["👩‍🚀", "世界", "e\u0301", "🇩🇪", "ไทย", "\u200f", OPEN_TAG, CLOSE_TAG, "</think", "<thi", "</"]
)
_TEXT = st.lists(st.one_of(_LETTERS, _HARD), max_size=12).map("".join)
_STOPS = st.lists(st.one_of(st.text(alphabet="ab<>\n", min_size=1, max_size=4), _HARD), min_size=1, max_size=4)


def _cut(text: str, data: st.DataObject) -> list[str]:
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=20)) if text else []
    return [text[begin:end] for begin, end in pairwise([0, *sorted(places), len(text)])]


def _by_character(text: str, stops: list[str]) -> str:
    """Return what comes before the stop string that is whole first: the definition, said as slowly as can be."""
    for end in range(1, len(text) + 1):
        met = [stop for stop in stops if text[:end].endswith(stop)]
        if met:
            return text[: end - max(map(len, met))]
    return text


@given(_TEXT, _STOPS, st.data())
def test_stop_strings_do_not_depend_on_how_text_is_cut(text: str, stops: list[str], data: st.DataObject) -> None:
    """The text up to the first stop string, and nothing of the string itself."""
    stream = StopStrings(stops)
    given_out = "".join(stream.push(piece) for piece in _cut(text, data)) + stream.finish()
    assert given_out == _by_character(text, stops)
    assert (stream.met is not None) == any(stop in text for stop in stops)


@given(_TEXT, _STOPS)
def test_no_more_is_held_back_than_must_be(text: str, stops: list[str]) -> None:
    """What is held is the beginning of a stop string, and the longest such end of the text."""
    stream = StopStrings(stops)
    out = "".join(map(stream.push, text))
    if stream.met is None:
        held = text[len(out) :]
        assert not held or any(stop.startswith(held) for stop in stops)
        longer = [text[begin:] for begin in range(len(out))]
        assert not any(stop.startswith(end) for end in longer for stop in stops)


def _whole(text: str, *, begins_inside: bool) -> tuple[Piece, str]:
    """Return reasoning and answer of a whole text, and it again put together: the definition."""
    stripped = text.lstrip()
    opened = stripped.startswith(OPEN_TAG)
    if not opened and not begins_inside:
        return Piece("", text), text
    lead = text[: len(text) - len(stripped)] + OPEN_TAG if opened else ""
    reasoning, close, answer = text[len(lead) :].partition(CLOSE_TAG)
    return Piece(reasoning, answer), lead + reasoning + close + answer


@given(_TEXT, st.booleans(), st.data())
def test_reasoning_and_answer_are_the_whole(text: str, begins_inside: bool, data: st.DataObject) -> None:
    """With the tags put back, what came out is what went in; and it is the same however the text was cut."""
    splitter = ReasoningSplitter(begins_inside=begins_inside)
    pieces = [splitter.push(piece) for piece in _cut(text, data)] + [splitter.finish()]
    together = Piece("".join(piece.reasoning for piece in pieces), "".join(piece.answer for piece in pieces))
    expected, again = _whole(text, begins_inside=begins_inside)
    assert together == expected
    assert again == text


@given(_TEXT)
def test_no_part_of_a_tag_leaks_while_streaming(text: str) -> None:
    """Nothing is given out that may still be the beginning of the closing tag, and nothing else is held back."""
    splitter = ReasoningSplitter(begins_inside=True)
    taken = out = ""
    for character in "x" + text:
        taken, out = taken + character, out + splitter.push(character).reasoning
        if splitter.answers:
            break
        held = max(size for size in range(len(CLOSE_TAG)) if taken.endswith(CLOSE_TAG[:size]))
        assert out == taken[: len(taken) - held]


@given(_TEXT, st.lists(st.one_of(st.text(alphabet="ab<>\n", min_size=1, max_size=4), _HARD), max_size=3), st.data())
def test_a_reply_from_tokens_is_the_reply_as_a_whole(text: str, stops: list[str], data: st.DataObject) -> None:
    """Bytes, stop strings and reasoning together: tokens one by one, in clumps or all at once give the same."""
    detokenizer = Detokenizer(TOKENIZER)
    ids = TOKENIZER.encode(text).ids
    begins_inside = data.draw(st.booleans())
    expected, _ = _whole(_by_character(text, stops), begins_inside=begins_inside)
    places = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=20)))
    for cuts in ([0, len(ids)], list(range(len(ids) + 1)), [0, *places, len(ids)]):
        reply = ReplyText(detokenizer.stream(), stops, ReasoningSplitter(begins_inside=begins_inside))
        pieces = []
        for begin, end in pairwise(cuts):
            pieces.append(reply.push(ids[begin:end]))
            if reply.stopped:
                break
        pieces.append(reply.finish())
        assert "".join(piece.reasoning for piece in pieces) == expected.reasoning
        assert "".join(piece.answer for piece in pieces) == expected.answer


@pytest.mark.parametrize(
    ("prompt", "how", "reply", "reasoning", "answer"),
    [
        ("<｜Assistant｜><think>\n", "auto", "Hm.</think>Ja.", "Hm.", "Ja."),  # R1: the template opens it
        ("<｜Assistant｜>", "auto", "<think>Hm.</think>Ja.", "Hm.", "Ja."),  # R1-0528: the model does
        ("<|im_start|>assistant\n", "auto", "<think>\nHm.\n</think>\n\nJa.", "\nHm.\n", "\n\nJa."),  # Qwen3
        ("<think>\n\n</think>\n\n", "auto", "Ja.", "", "Ja."),  # Qwen3 with enable_thinking=false
        ("<think>\n\n</think>\n\n", "always", "Ja.", "", "Ja."),
        ("<｜Assistant｜>", "auto", "Hm.</think>Ja.", "", "Hm.</think>Ja."),  # a model that forgot its opening tag ...
        ("<｜Assistant｜>", "always", "Hm.</think>Ja.", "Hm.", "Ja."),  # ... and the setting for it
        ("<｜Assistant｜><think>\n", "auto", "<think>Hm.</think>Ja.", "Hm.", "Ja."),  # opened twice
        ("<｜Assistant｜><think>\n", "auto", "Hm. cut off </thi", "Hm. cut off </thi", ""),
        ("<｜Assistant｜>", "auto", "  <thin", "", "  <thin"),
    ],
)
def test_who_opens_the_reasoning_is_seen_in_the_prompt(
    prompt: str, how: str, reply: str, reasoning: str, answer: str
) -> None:
    """R1, R1-0528, Qwen3 thinking and not, and replies that break off."""
    splitter = splitter_for(prompt, how)  # type: ignore[arg-type]
    assert splitter is not None
    pieces = [splitter.push(character) for character in reply] + [splitter.finish()]
    assert "".join(piece.reasoning for piece in pieces) == reasoning
    assert "".join(piece.answer for piece in pieces) == answer


def test_splitting_can_be_turned_off() -> None:
    """`off` leaves the tags in the text."""
    assert splitter_for("<think>", "off") is None
