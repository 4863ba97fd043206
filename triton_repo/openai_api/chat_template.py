"""Renders a checkpoint's chat template in Jinja2's sandbox, within limits.

A template is a downloaded program. The sandbox denies access to files, modules and attributes that could run code. In
addition, every loop step and call is counted, text cannot be multiplied without bound, and only the filters that chat
templates use are available. A template that exceeds a limit causes an error instead of a hanging server.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engines.errors import MissingError, UserError

MAX_STEPS = 100_000  # loop steps and calls; Qwen3's template needs five per message
MAX_CHARACTERS = 8_000_000
MAX_TEMPLATE_CHARACTERS = 200_000
MAX_OPERAND = 10_000  # of '%' and '**'
MAX_NUMBER = 2**64
_FILTERS = frozenset(
    {"capitalize", "default", "d", "dictsort", "first", "float", "int", "items", "last", "length", "count", "list"}
    | {"lower", "map", "reject", "rejectattr", "round", "safe", "select", "selectattr", "sort", "title", "trim"}
    | {"unique", "upper"}
)
_WIDENING = frozenset({"center", "expandtabs", "ljust", "rjust", "translate", "zfill"})
_BUDGET = "budget of this rendering"


class TemplateError(Exception):
    """A template refused the messages (`raise_exception`), is invalid, or exceeded a limit."""


class ChatTemplate:
    """The chat template of a tokenizer's folder.

    Args:
        source: The template.
        tokens: Variables for special tokens, such as `bos_token`.

    Raises:
        UserError: It is not a Jinja2 template, or is too long.
    """

    def __init__(self, source: str, tokens: Mapping[str, str], *, where: str = "chat template") -> None:
        if len(source) > MAX_TEMPLATE_CHARACTERS:
            raise UserError(f"{where}: {len(source)} characters long; the limit is {MAX_TEMPLATE_CHARACTERS}")
        self._tokens = dict(tokens)
        environment = _Environment()
        try:
            self._template = environment.from_string(_counted(environment.parse(source)))
        except (jinja2.TemplateError, RecursionError) as error:
            raise UserError(f"{where}: not a Jinja2 template: {error}", hint="use the checkpoint's template") from error

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the prompt of a conversation.

        Args:
            options: Further variables for the template, such as `enable_thinking`.

        Raises:
            TemplateError: The template refused, failed or exceeded a limit.
        """
        values = {**self._tokens, **(options or {}), "messages": list(messages), _BUDGET: _Budget()}
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(values, add_generation_prompt=add_generation_prompt):
                size += len(part)
                if size > MAX_CHARACTERS:
                    raise TemplateError(f"the chat template produced more than {MAX_CHARACTERS} characters")
                parts.append(part)
        except jinja2.TemplateError as error:
            raise TemplateError(f"the chat template cannot render these messages: {error}") from error
        except (
            ArithmeticError,
            AttributeError,
            LookupError,
            MemoryError,
            RecursionError,
            TypeError,
            ValueError,
        ) as error:
            raise TemplateError(
                f"the chat template failed on these messages: {type(error).__name__}: {error}"
            ) from error
        return "".join(parts)


def load_template(folder: Path) -> ChatTemplate | None:
    """Return the chat template of a tokenizer's folder; None if it has none.

    `chat_template.jinja` takes precedence over tokenizer_config.json; of several named templates, `default` is used.

    Raises:
        UserError: A file cannot be read or parsed.
        MissingError: There are several templates, and none is named `default`.
    """
    config_path = folder / "tokenizer_config.json"
    config = _read_config(config_path)
    tokens = {name: text for name in config if name.endswith("_token") and (text := _text_of(config[name])) is not None}
    own = folder / "chat_template.jinja"
    if own.is_file():
        return ChatTemplate(own.read_text(encoding="utf-8"), tokens, where=str(own))
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {each["name"]: each["template"] for each in source if isinstance(each, dict)}
        if "default" not in named:
            raise MissingError(f"{config_path}: no chat template named 'default' among: {', '.join(named)}")
        source = named["default"]
    return None if source is None else ChatTemplate(str(source), tokens, where=str(config_path))


class _Budget:
    """Counts the steps of one rendering."""

    def __init__(self) -> None:
        self._left = MAX_STEPS

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise TemplateError(f"the chat template took more than {MAX_STEPS} steps")


class _Counted:
    """A loop's iterable that counts each step; it has a length if the original has one, for `loop.last`."""

    def __init__(self, values: Iterable[Any], budget: _Budget) -> None:
        self._values = values
        self._budget = budget

    def __iter__(self) -> Iterator[Any]:
        for value in self._values:
            self._budget.spend()
            yield value

    def __len__(self) -> int:
        return len(self._values)  # type: ignore[arg-type]  # without one, Jinja2 makes a list


class _Environment(ImmutableSandboxedEnvironment):
    """A sandboxed environment that renders as transformers does: same white space, same extras."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_printable
        )
        self.filters = {name: run for name, run in self.filters.items() if name in _FILTERS}
        self.filters |= {"tojson": _to_json, "counted": _count, "joined": _joined, "join": _joined}
        self.filters |= {"string": _text, "replace": _replaced}
        self.globals = {name: self.globals[name] for name in ("range", "dict", "namespace", "cycler", "joiner")}
        self.globals |= {"raise_exception": _refuse, "strftime_now": _strftime_now}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator in {"%", "**"} and not (_is_small(left) and _is_small(right)):
            raise TemplateError(f"the chat template uses '{operator}' on something other than small numbers")
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        _refuse_size(
            0 if numbers else _repeats(left) * _repeats(right) if operator == "*" else _size(left) + _size(right)
        )
        result = super().call_binop(context, operator, left, right)
        if isinstance(result, int) and abs(result) > MAX_NUMBER:
            raise TemplateError("the chat template produced a number above 2**64")
        return result

    def wrap_str_format(self, value: Any) -> Any:
        if super().wrap_str_format(value) is not None:  # it can pad to any width
            raise TemplateError("the chat template uses str.format, which is not supported; use '~' to join text")
        return None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 (as in Jinja2)
        __context[_BUDGET].spend()
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str) and __obj.__name__ == "replace":
            return _replaced(owner, *args, **kwargs)
        if isinstance(owner, str) and __obj.__name__ == "join":
            return _joined(args[0], owner)
        return super().call(__context, __obj, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _WIDENING and super().is_safe_attribute(obj, attr, value)


def _counted(template: nodes.Template) -> nodes.Template:
    """Wrap the iterable of every loop with a counter, and every `~` with a length limit."""
    for loop in template.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
    for each in list(template.find_all(nodes.Concat)):
        each.nodes = [
            nodes.Filter(nodes.List(each.nodes, lineno=each.lineno), "joined", [], [], None, None, lineno=each.lineno)
        ]
    return template


@jinja2.pass_context
def _count(context: Context, values: Any) -> Any:
    if isinstance(values, jinja2.Undefined):
        return values
    return _Counted(values, context[_BUDGET])


def _printable(value: Any) -> Any:
    """Refuse lists, tuples, dicts and sets: a list may contain itself many times over."""
    if isinstance(value, (list, tuple, dict, set)):
        raise TemplateError(f"the chat template prints a {type(value).__name__}; only text and numbers can be")
    return value


def _text(value: Any) -> str:
    return str(_printable(value))


def _joined(values: Iterable[Any], separator: str = "") -> str:
    if _size(values) > MAX_STEPS:
        raise TemplateError(f"the chat template joins more than {MAX_STEPS} items")
    texts = [_text(value) for value in values]
    _refuse_size(sum(map(len, texts)) + len(separator) * len(texts))
    return separator.join(texts)


def _replaced(text: str, old: str, new: str, count: int = -1) -> str:
    _refuse_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new, count)


@jinja2.pass_context
def _to_json(context: Context, value: Any, indent: int | None = None, ensure_ascii: bool = False, **_: Any) -> str:
    """JSON as transformers writes it for tools: non-ASCII characters are not escaped."""
    parts: list[str] = []
    size = 0
    for part in json.JSONEncoder(indent=indent, ensure_ascii=ensure_ascii).iterencode(value):
        context[_BUDGET].spend()
        size += len(part)
        _refuse_size(size)
        parts.append(part)
    return "".join(parts)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(str(message)[:1000])


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().astimezone().strftime(str(form)[:100])


def _refuse_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise TemplateError(f"the chat template produced a value of more than {MAX_CHARACTERS} characters or items")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, (str, list, tuple)) else 1


def _repeats(value: Any) -> int:
    """Return the factor by which an operand multiplies the other; the product of two numbers is checked elsewhere."""
    return max(1, value) if isinstance(value, int) else _size(value)


def _is_small(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) <= MAX_OPERAND


def _text_of(named: object) -> str | None:
    """Return a token's text from tokenizer_config.json, where it is a string or an object with `content`."""
    content = named.get("content") if isinstance(named, dict) else named
    return content if isinstance(content, str) else None


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object")
    return config
