"""Prompts: as long as they are said to be, by a tokenizer's own count, and alike only where they should be."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from engines.errors import MissingError, UserError
from loadtest.scenario.schema import Conversations, Lengths, Prefixes, Scenario
from loadtest.scenario.traces import HASH_BLOCK_TOKENS, Arrival, Trace
from loadtest.traffic.conversations import ConversationSampler, ConversationState
from loadtest.traffic.levels import LevelPlan, plans_of
from loadtest.traffic.lookahead import MAX_TOKENS, Lookahead
from loadtest.traffic.prepare import count_rows, prepare
from loadtest.traffic.prompts import Prompt, PromptMaker
from loadtest.traffic.token_text import Message, chat_text, encoded, file_text, read_messages, read_tokenizer

TALK = [
    {"from": "human", "value": "What is the capital of France, and how far is it from here?"},
    {"from": "gpt", "value": "Paris is the capital. It is some 300 km from here, by the old road."},
    {"from": "human", "value": "And of Japan? Übung macht den Meister, 你好 🙂 -- they say."},
    {"from": "gpt", "value": "Tokyo."},
]
ROWS = [
    {"id": "a", "conversations": TALK},
    {
        "id": "b",
        "conversations": [{"from": "human", "value": "Write a short poem about the sea, please, in four lines"}],
    },
]


@pytest.fixture
def ours(tmp_path: Path) -> str:
    """Write a prompt file in ShareGPT's shape."""
    path = tmp_path / "ours.json"
    path.write_text(json.dumps(ROWS))
    return str(path)


def _maker(
    scenario: Scenario, tokenizer: Path, folder: Path, *, as_text: bool
) -> tuple[PromptMaker, ConversationSampler]:
    folder.mkdir()
    prepare(scenario, plans_of(scenario), tokenizer, folder, as_text=as_text)
    maker = PromptMaker(scenario, folder)
    return maker, ConversationSampler(scenario, maker.rows)


def _converse(maker: PromptMaker, talk: ConversationState, *, as_text: bool) -> list[Prompt]:
    """Play a conversation to its end; each reply repeats the beginning of its prompt."""
    prompts = []
    while not talk.is_over:
        prompt = maker.prompt(talk)
        prompts.append(prompt)
        tokens = talk.exchange.reply_tokens
        maker.keep(talk, tokens, [" yes"] * tokens if as_text else prompt.ids[:1] * tokens)
        talk.go_on(tokens)
    return prompts


SCENARIOS = {
    "chat": Scenario(lengths=Lengths(isl="uniform(1, 400)", osl=8)),
    "random": Scenario(prompts="random", lengths=Lengths(isl="uniform(1, 400)", osl=8)),
    "prefixes": Scenario(
        lengths=Lengths(isl="uniform(1, 90)", osl=8), prefixes=Prefixes(count=2, tokens=70, share=0.7)
    ),
    "conversations": Scenario(
        lengths=Lengths(isl="uniform(5, 60)", osl="uniform(1, 20)"),
        conversation=Conversations(turns=4, history="stand_in"),
    ),
    "round the chats": Scenario(lengths=Lengths(isl=60_000, osl=8), concurrency=(1,), requests=1),
}


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_prompts_have_the_tokens_asked_for(name: str, as_text: bool, bytes_path: Path, tmp_path: Path) -> None:
    """Each prompt is exactly as long as drawn; as text, by the tokenizer's own count of the whole text."""
    scenario = SCENARIOS[name]
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=as_text)
    tokenizer = read_tokenizer(bytes_path)
    for number in range(6 if name == "round the chats" else 60):
        talk = mix.begin(number, level=1 if scenario.levels > 1 else 0)
        while not talk.is_over:
            prompt = maker.prompt(talk)
            assert prompt.tokens == talk.prompt_tokens
            assert len(tokenizer.encode(prompt.text).ids if as_text else prompt.ids) == talk.prompt_tokens
            maker.keep(talk, talk.exchange.reply_tokens, None)
            talk.go_on(talk.exchange.reply_tokens)


def test_a_reply_cut_within_characters_is_repeated_whole(bytes_path: Path, tmp_path: Path) -> None:
    """Halves of a surrogate pair in two messages are one character; no tokenizer takes one without the other."""
    scenario = Scenario(lengths=Lengths(isl=8, osl=3), conversation=Conversations(turns=2))
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=True)
    talk = mix.begin(0)
    maker.prompt(talk)
    maker.keep(talk, 3, ["\ud83d", "\ude42", " \ud83d"])
    talk.go_on(3)
    assert "\U0001f642 \ufffd" in maker.prompt(talk).text


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
def test_a_files_prompts_are_sent_as_they_are(as_text: bool, ours: str, bytes_path: Path, tmp_path: Path) -> None:
    """Without a stated length a prompt is the file's own, whole, and so is its reply's length."""
    maker, mix = _maker(Scenario(prompts=ours), bytes_path, tmp_path / "prompts", as_text=as_text)
    tokenizer = read_tokenizer(bytes_path)
    prompt, other = (maker.prompt(mix.begin(number)) for number in range(2))
    text = prompt.text if as_text else tokenizer.decode(prompt.ids)
    assert text == TALK[0]["value"]
    assert prompt.tokens == len(tokenizer.encode(TALK[0]["value"]).ids)
    assert mix.draw(0).exchanges[0].reply_tokens == len(tokenizer.encode(TALK[1]["value"]).ids)
    assert mix.draw(1).exchanges[0].reply_tokens == 64  # the file has none
    assert other.tokens == len(tokenizer.encode(ROWS[1]["conversations"][0]["value"]).ids)  # type: ignore[index]
    assert count_rows(Scenario(prompts=ours), plans_of(Scenario()), bytes_path) == {ours: mix_rows(maker, ours)}


def mix_rows(maker: PromptMaker, source: str) -> object:
    """Return what the maker knows of a file."""
    return maker.rows[source]


@pytest.mark.parametrize("isl", [3, 9, 40, 300])
@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
def test_a_files_prompts_are_cut_or_filled_up(
    isl: int, as_text: bool, ours: str, bytes_path: Path, tmp_path: Path
) -> None:
    """Where a length is stated every prompt has it, and begins as the file's does."""
    scenario = Scenario(prompts=ours, lengths=Lengths(isl=isl, osl=5))
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=as_text)
    tokenizer = read_tokenizer(bytes_path)
    for number in range(2):
        prompt = maker.prompt(mix.begin(number))
        ids = tokenizer.encode(prompt.text).ids if as_text else prompt.ids
        assert len(ids) == prompt.tokens == isl
    text = maker.prompt(mix.begin(0)).text if as_text else tokenizer.decode(maker.prompt(mix.begin(0)).ids)
    assert text[:4] == TALK[0]["value"][:4]


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
def test_a_turn_repeats_the_server_s_own_words(as_text: bool, bytes_path: Path, tmp_path: Path) -> None:
    """Each prompt begins with the whole prompt before it and the reply that came; as messages, by who said them."""
    scenario = Scenario(
        lengths=Lengths(isl="uniform(5, 60)", osl=6), conversation=Conversations(turns=4), prefixes=Prefixes(tokens=20)
    )
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=as_text)
    for number in range(10):
        for before, after in pairwise(_converse(maker, mix.begin(number), as_text=as_text)):
            if as_text:
                assert after.text.startswith(before.text + " yes" * 6)
                assert [role for role, _ in after.messages][:3] == ["system", "user", "assistant"]
                assert after.messages[: len(before.messages)] == before.messages
            else:
                assert after.ids[: before.tokens + 6] == before.ids + before.ids[:1] * 6


def test_a_reply_that_is_to_be_repeated_must_be_given(bytes_path: Path, tmp_path: Path) -> None:
    """A conversation cannot go on with words that nobody kept."""
    scenario = Scenario(conversation=Conversations(turns=2))
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=False)
    talk = mix.begin(0)
    maker.prompt(talk)
    assert maker.wants_reply(talk)
    with pytest.raises(ValueError, match="not given"):
        maker.keep(talk, 64, None)
    talk.go_on(64)
    with pytest.raises(ValueError, match="was not kept"):
        maker.prompt(talk)


def test_the_last_reply_is_not_kept(bytes_path: Path, tmp_path: Path) -> None:
    """Nothing is kept of a reply that no prompt repeats."""
    scenario = Scenario(conversation=Conversations(turns=1))
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=False)
    talk = mix.begin(0)
    assert not maker.wants_reply(talk)


def test_prefixes_are_the_same_tokens(bytes_path: Path, tmp_path: Path) -> None:
    """Prompts that share a beginning share its tokens and nothing after; other levels have others."""
    scenario = Scenario(lengths=Lengths(isl=40, osl=4), prefixes=Prefixes(count=2, tokens=64), concurrency=(1, 2))
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=False)
    heads: dict[int, set[tuple[int, ...]]] = {0: set(), 1: set()}
    tails = set()
    for number in range(40):
        ids = maker.prompt(mix.begin(number)).ids
        heads[mix.draw(number).prefix or 0].add(tuple(ids[:64]))
        tails.add(tuple(ids[64:]))
    assert [len(found) for found in heads.values()] == [1, 1]
    assert heads[0] != heads[1]
    assert len(tails) == 40
    assert tuple(maker.prompt(mix.begin(0, level=1)).ids[:64]) not in heads[0] | heads[1]


@pytest.mark.parametrize("source", ["chat", "random"])
def test_no_two_prompts_begin_alike(source: str, bytes_path: Path, tmp_path: Path) -> None:
    """Over all levels of a run, no first KV block of one prompt is another's."""
    scenario = Scenario(prompts=source, lengths=Lengths(isl=40, osl=4), concurrency=(1, 2, 4), requests=1000)
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=False)
    begins = {tuple(maker.prompt(mix.begin(number, level)).ids[:32]) for level in range(3) for number in range(1000)}
    assert len(begins) == 3000


def test_a_traces_hashes_are_the_same_words(bytes_path: Path, tmp_path: Path) -> None:
    """Requests whose hashes begin alike begin with the same 512 tokens for each, and differ from there."""
    for as_text in (False, True):
        maker, mix = _maker(Scenario(prompts="random"), bytes_path, tmp_path / f"prompts{as_text}", as_text=as_text)
        arrivals = (Arrival(0.0, 1100, 4, (7, -8, 9)), Arrival(0.1, 1030, 4, (7, -8, 3)), Arrival(0.2, 20, 4, (5,)))
        prompts = [maker.prompt(mix.begin_arrival(number, arrival)) for number, arrival in enumerate(arrivals)]
        assert [prompt.tokens for prompt in prompts] == [1100, 1030, 20]
        shared = 2 * HASH_BLOCK_TOKENS
        one, other = (read_tokenizer(bytes_path).encode(p.text).ids if as_text else p.ids for p in prompts[:2])
        assert one[:shared] == other[:shared]
        assert one[shared:1030] != other[shared:]


def test_counts_that_do_not_add_up_are_counted_again(pieces_path: Path, tmp_path: Path) -> None:
    """With a tokenizer whose parts do not add up, every text is counted whole before it is sent."""
    scenario = Scenario(lengths=Lengths(isl="uniform(5, 200)", osl=4), prefixes=Prefixes(tokens=30))
    folder = tmp_path / "prompts"
    folder.mkdir()
    found = prepare(scenario, plans_of(scenario), pieces_path, folder, as_text=True)
    assert found.tokenizer == "tokenizer.json"  # beside the rest, so that it travels to workers elsewhere
    maker, mix = PromptMaker(scenario, folder), ConversationSampler(scenario)
    tokenizer = read_tokenizer(pieces_path)
    for number in range(20):
        prompt = maker.prompt(mix.begin(number))
        assert prompt.tokens == len(tokenizer.encode(prompt.text).ids)


def test_random_text_needs_words(tmp_path: Path) -> None:
    """A tokenizer of letters has no words of one token: random text cannot be counted, and is refused."""
    path = tmp_path / "tokenizer.json"
    Tokenizer(models.BPE({letter: index for index, letter in enumerate("abc ")}, [])).save(str(path))
    (tmp_path / "prompts").mkdir()
    with pytest.raises(UserError, match="0 single-token words"):
        prepare(Scenario(prompts="random"), [LevelPlan(1)], path, tmp_path / "prompts", as_text=True)


@pytest.mark.parametrize("source", ["random", "chat"])
def test_the_hint_for_a_tokenizer_without_words_leads_on(source: str, ours: str, tmp_path: Path) -> None:
    """Neither random text nor chats can be cut by a word-level tokenizer; the hint names what works, and it does."""
    path = tmp_path / "tokenizer.json"
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(("the", "sea", "?"))}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.save(str(path))
    (tmp_path / "prompts").mkdir()
    with pytest.raises(UserError) as caught:
        prepare(Scenario(prompts=source), [LevelPlan(1)], path, tmp_path / "prompts", as_text=True)
    assert caught.value.hint is not None
    assert "--prompts FILE" in caught.value.hint
    assert "tensorrt_llm" in caught.value.hint
    prepare(Scenario(prompts=ours), [LevelPlan(1)], path, tmp_path / "prompts", as_text=True)
    prepare(Scenario(prompts="random"), [LevelPlan(1)], path, tmp_path / "prompts", as_text=False)


def test_no_tokenizer_is_one_clear_error(tmp_path: Path) -> None:
    """A tokenizer that is not there is named, with the flag that gives one."""
    with pytest.raises(MissingError, match=r"none\.json: no such file"):
        prepare(Scenario(), [LevelPlan(1)], tmp_path / "none.json", tmp_path, as_text=False)


def test_parts_are_cut_where_the_tokenizer_cuts(bytes_path: Path) -> None:
    """Between any two places to cut, a text's tokens are those it has in the whole."""
    tokenizer = read_tokenizer(bytes_path)
    text = chat_text(tokenizer, tokens=5_000)
    for begin, end in zip(text.cuts[:300:7].tolist(), text.cuts[5:305:7].tolist(), strict=True):
        assert tokenizer.encode(text.part(begin, end)).ids == text.ids[begin:end].tolist()


def test_no_more_text_is_tokenized_than_needed(bytes_path: Path) -> None:
    """Of chats of tens of millions of tokens, somewhat more than asked for are read."""
    text = chat_text(read_tokenizer(bytes_path), tokens=20_000)
    assert 20_000 <= len(text.ids) < 60_000


def test_an_empty_message_ends_a_row(bytes_path: Path, tmp_path: Path) -> None:
    """What has no tokens cannot be sent: the row ends before it, and a row of nothing is none."""
    path = tmp_path / "x.jsonl"
    path.write_text(
        '{"prompt": ""}\n{"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": ""}]}\n'
    )
    text = file_text(read_tokenizer(bytes_path), path, max_rows=10)
    assert [[span.role for span in row] for row in text.rows] == [["user"]]
    assert len(encoded(read_tokenizer(bytes_path), "").ids) == 0


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ('{"prompt": "Hi"}', [("user", "Hi")]),
        ('{"text": "Hi"}', [("user", "Hi")]),
        (
            '{"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]}',
            [("user", "Be brief.\n\nHi")],
        ),
        (
            '{"conversations": [{"from": "gpt", "value": "Welcome"}, {"from": "human", "value": "Hi"}, '
            '{"from": "gpt", "value": "Hello"}, {"from": "tool", "value": "{}"}, {"from": "human", "value": "More"}]}',
            [("user", "Hi"), ("assistant", "Hello")],
        ),
        ('{"messages": [{"role": "user", "content": [{"type": "image"}]}]}', []),
    ],
)
def test_rows_are_read_in_the_shapes_people_have(line: str, messages: list[tuple[str, str]], tmp_path: Path) -> None:
    """Prompts, texts and chats are read up to what cannot be said in words; instructions go before the first prompt."""
    path = tmp_path / "x.jsonl"
    path.write_text("\n" + line + "\n")
    found = list(read_messages(path))
    assert found == ([[Message(role, text) for role, text in messages]] if messages else [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ('{"prompt": "a"}\n{"question": "b"}\n', "line 2 has no prompt"),
        ('{"prompt": "a"}\nnonsense\n', "line 2: not valid JSON"),
        ("[1]\n", "line 1 has no prompt"),
        ('{"messages": ["a"]}\n', "line 1 has no prompt"),
    ],
)
def test_a_row_nobody_can_read_is_named(text: str, wrong: str, tmp_path: Path) -> None:
    """A damaged line is refused with its number and the shapes that are known."""
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=wrong):
        list(read_messages(path))


def test_missing_and_empty_prompt_files_are_refused(bytes_path: Path, tmp_path: Path) -> None:
    """A file that is not there, and one without a prompt, are named."""
    with pytest.raises(MissingError, match="no such file"):
        list(read_messages(tmp_path / "none.jsonl"))
    (tmp_path / "empty.json").write_text("[]")
    with pytest.raises(UserError, match="contains no prompt"):
        file_text(read_tokenizer(bytes_path), tmp_path / "empty.json", max_rows=5)


def test_what_ends_a_free_reply_is_found_beside_the_tokenizer(bytes_path: Path, tmp_path: Path) -> None:
    """A model that takes tokens is told the end token; where nobody names it, a free reply is refused."""
    made = Tokenizer.from_file(str(bytes_path))
    made.add_special_tokens(["<|end|>"])
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    free = Scenario(replies="free")
    (tmp_path / "prompts").mkdir()
    with pytest.raises(MissingError, match="free replies would never end"):
        prepare(free, plans_of(free), path, tmp_path / "prompts", as_text=False)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|end|>"}}')
    found = prepare(free, plans_of(free), path, tmp_path / "prompts", as_text=False)
    assert found.end_id == made.token_to_id("<|end|>")
    assert prepare(free, plans_of(free), path, tmp_path / "prompts", as_text=True).end_id is None
    assert prepare(Scenario(), plans_of(free), path, tmp_path / "prompts", as_text=False).end_id is None
    told = free.model_copy(update={"extra_body": {"end_id": 5}})
    assert prepare(told, plans_of(free), path, tmp_path / "prompts", as_text=False).end_id is None


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
@pytest.mark.parametrize("source", ["chat", "random"])
def test_another_run_finds_nothing_of_this_one_cached(
    source: str, as_text: bool, bytes_path: Path, tmp_path: Path
) -> None:
    """With another salt every prompt has the same length and begins with other tokens, shared beginnings included."""
    scenario = Scenario(
        prompts=source, lengths=Lengths(isl="uniform(3, 60)", osl=4), prefixes=Prefixes(tokens=40, share=0.5)
    )
    tokenizer = read_tokenizer(bytes_path)
    begins: list[set[tuple[int, ...]]] = []
    lengths = []
    for salt in (1, 2):
        folder = tmp_path / str(salt)
        folder.mkdir()
        prepare(scenario, plans_of(scenario), bytes_path, folder, as_text=as_text, salt=salt)
        maker, mix = PromptMaker(scenario, folder), ConversationSampler(scenario)
        prompts = [maker.prompt(mix.begin(number)) for number in range(60)]
        ids = [tokenizer.encode(prompt.text).ids if as_text else prompt.ids for prompt in prompts]
        begins.append({tuple(each[:3]) for each in ids})
        lengths.append([len(each) for each in ids])
    assert (
        lengths[0] == lengths[1] == [ConversationSampler(scenario).begin(number).prompt_tokens for number in range(60)]
    )
    assert not begins[0] & begins[1]


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
def test_a_trace_can_be_played_with_prompts_of_ones_own(
    as_text: bool, ours: str, bytes_path: Path, tmp_path: Path
) -> None:
    """Rows of the file are cut or filled up to the trace's lengths, as text too."""
    (tmp_path / "trace.csv").write_text("at_s,isl,osl\n0,5,3\n1,70,4\n2,9,2\n")
    scenario = Scenario(prompts=ours, arrivals=Trace(path=str(tmp_path / "trace.csv")))
    maker, mix = _maker(scenario, bytes_path, tmp_path / "prompts", as_text=as_text)
    tokenizer = read_tokenizer(bytes_path)
    (plan,) = plans_of(scenario)
    for number, arrival in enumerate(plan.arrivals):
        prompt = maker.prompt(mix.begin_arrival(number, arrival))
        assert len(tokenizer.encode(prompt.text).ids if as_text else prompt.ids) == arrival.isl
        text = prompt.text if as_text else tokenizer.decode(prompt.ids)
        assert text[:4] == ("What", "Writ")[number % 2]
    assert (
        ConversationSampler(scenario).begin_arrival(0, plan.arrivals[0]).prompt_tokens == 5
    )  # a prediction needs no tokenizer


@pytest.mark.parametrize("as_text", [False, True], ids=["ids", "text"])
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_what_is_made_ahead_is_what_would_be_made(name: str, as_text: bool, bytes_path: Path, tmp_path: Path) -> None:
    """Whether a conversation was made ahead or not, and however often: it is the same, with the same prompts."""
    maker, mix = _maker(SCENARIOS[name], bytes_path, tmp_path / "prompts", as_text=as_text)
    ahead = Lookahead(mix, maker, 0)
    for number in range(12):
        if number % 5 == 1:
            ahead.make(range(number, number + 3))
        made, apart = ahead.begin(number), mix.begin(number)
        while not apart.is_over:
            assert ahead.prompt(made) == maker.prompt(apart)
            for state in (made, apart):
                maker.keep(state, state.exchange.reply_tokens, None)
                state.go_on(state.exchange.reply_tokens)
        assert made.is_over


def test_long_prompts_are_made_one_at_a_time(bytes_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the load generator would be held up; short ones are made together, once each."""
    for isl, at_once in ((MAX_TOKENS, 1), (64, 8)):
        scenario = Scenario(lengths=Lengths(isl=isl, osl=8), concurrency=(1,), requests=1)
        maker, mix = _maker(scenario, bytes_path, tmp_path / str(isl), as_text=False)
        made: list[int] = []
        monkeypatch.setattr(maker, "prompt", lambda state, made=made: made.append(state.conversation.number))
        ahead = Lookahead(mix, maker, 0)
        ahead.make(range(8))
        assert made == list(range(at_once))
