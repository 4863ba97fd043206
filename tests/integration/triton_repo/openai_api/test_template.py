"""Chat templates: rendered as transformers renders them, and unable to do anything else."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from engines.errors import MissingError, UserError
from triton_repo.openai_api.chat_template import MAX_STEPS, ChatTemplate, TemplateError, load_template

QWEN3 = Path(sys.prefix) / "share" / "tokenizers" / "qwen3"
CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "世界 👩‍🚀"}],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "<think>\nx\n</think>\n\ntwo"},
        {"role": "user", "content": "3"},
    ],
    [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"a": "é"}}}]},
        {"role": "tool", "content": "r"},
        {"role": "tool", "content": "s"},
    ],
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}])
def test_qwen3s_template_gives_what_transformers_gives(chat: list[dict[str, Any]], options: dict[str, Any]) -> None:
    """White space, JSON and special tokens, to the last character."""
    rendering = pytest.importorskip("transformers.utils.chat_template_utils", reason="transformers is not installed")
    if not QWEN3.is_dir():
        pytest.skip("the Qwen3 tokenizer is not installed: make setup")
    template = load_template(QWEN3)
    assert template is not None
    source = json.loads((QWEN3 / "tokenizer_config.json").read_text())["chat_template"]
    for generation in (True, False):
        ours = template.render(chat, add_generation_prompt=generation, options=options)
        theirs, _ = rendering.render_jinja_template(
            [chat], chat_template=source, add_generation_prompt=generation, **options
        )
        assert ours == theirs[0]


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(3) }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception.__globals__['x'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ '{0.__class__}'.format('x') }}",
        "{{ lipsum.__globals__ }}",
        "{{ ''|attr('__class__') }}",
    ],
)
def test_a_template_reaches_nothing(source: str) -> None:
    """No attribute, module or file behind what it was given; messages are not changed."""
    with pytest.raises((TemplateError, UserError)):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ [1] * 1000000000 }}",
        "{{ 10 ** 99999 }}",
        "{{ (9 ** 9) ** 9 }}",
        "{% set ns = namespace(n=9) %}{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ '{:>999999999}'.format('a') }}",
        "{{ '{:>999999999}'.format_map({}) }}",
        "{{ '%999999999d' % 3 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ ('a' * 1000000).replace('a', 'b' * 1000000) }}",
        "{{ 'b'.join('a' * 8000000) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='aa') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}"
        "{{ ns.l | tojson }}",
        "{% for i in range(3000) %}{{ 'a' * 7000 }}{% endfor %}",
        "{{ messages[7].content.x }}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_cannot_take_the_server_with_it(source: str) -> None:
    """Past its limits it is an error, and soon."""
    begin = time.process_time()
    with pytest.raises(TemplateError):
        ChatTemplate(source, {}).render([{"role": "user", "content": "x"}])
    assert time.process_time() - begin < 10


@pytest.mark.parametrize("source", ["{{ x", "{{ 'x' | center(9) }}", "{% import 'os' %}{% bogus %}", "x" * 200_001])
def test_what_is_no_template_is_refused_at_the_start(source: str) -> None:
    """Where it is, and what is wrong with it."""
    with pytest.raises(UserError, match="chat template"):
        ChatTemplate(source, {})


def test_a_template_may_refuse() -> None:
    """Its own words are passed on."""
    template = ChatTemplate("{% if messages | length > 1 %}{{ raise_exception('one at a time') }}{% endif %}", {})
    assert template.render([{"role": "user", "content": "x"}]) == ""
    with pytest.raises(TemplateError, match="one at a time"):
        template.render([{}, {}])


def test_a_long_chat_is_within_the_limits() -> None:
    """Two thousand messages through Qwen3's own template, with steps to spare."""
    if not QWEN3.is_dir():
        pytest.skip("the Qwen3 tokenizer is not installed: make setup")
    template = load_template(QWEN3)
    assert template is not None
    chat = [{"role": "user" if turn % 2 == 0 else "assistant", "content": "x"} for turn in range(2000)]
    assert template.render(chat).count("<|im_start|>") == 2001
    assert MAX_STEPS >= 5 * 2000


def test_where_templates_are_looked_for(tmp_path: Path) -> None:
    """chat_template.jinja first, then tokenizer_config.json: one, or the one named default; else none."""
    assert load_template(tmp_path) is None
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"bos_token": {"content": "<s>"}, "chat_template": "{{ bos_token }}one"}))
    found = load_template(tmp_path)
    assert found is not None
    assert found.render([]) == "<s>one"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    found = load_template(tmp_path)
    assert found is not None
    assert found.render([]) == "d"
    config.write_text(json.dumps({"chat_template": named[:1]}))
    with pytest.raises(MissingError, match="no chat template named 'default' among: tool_use"):
        load_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("own")
    found = load_template(tmp_path)
    assert found is not None
    assert found.render([]) == "own"
    config.write_text("[")
    with pytest.raises(UserError, match="not valid JSON"):
        load_template(tmp_path)
