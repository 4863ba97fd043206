"""YAML as plain data, in which no key is repeated and nothing refers to another place."""

from __future__ import annotations

from typing import Any

import yaml

from engines.errors import UserError

MAX_INTEGER_BITS = 10_000  # Python writes no integer of more than 4300 digits, and YAML has other bases than ten
_ALIASES, _TWICE, _TAG = "aliases are not allowed", "is given twice", "could not determine a constructor for the tag"
_MISFIT = "no value of the tag !!"
# What to do, by what the reason contains.
_HINTS = {
    _ALIASES: "write the value out in each place, without & and *",
    _TWICE: "keep one of the two",
    _TAG: "write plain values, without '!' and '<<'",
    _MISFIT: "write plain values, without '!'",
    "'\\t'": "indent with spaces, not with tabs",
    "mapping values are not allowed": "quote a value that contains ': ', and check the indentation above",
    "expected <block end>": "check the indentation there and above",
}


def parse_yaml(text: str, *, where: str) -> Any:
    """Return the content of YAML text as plain data. Raises as `files.load_yaml` does; messages start with `where`."""
    try:
        return yaml.load(text, Loader=UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an invalid date or number
        reason = _reason(error)
        hint = next((hint for said, hint in _HINTS.items() if said in reason), "check the quotes and brackets there")
        raise UserError(f"{where}: not valid YAML: {reason}", hint=hint) from error
    except RecursionError as error:
        raise UserError(f"{where}: not valid YAML: nested too deeply") from error


def _reason(error: Exception) -> str:
    """Return where the text is wrong and why, on one line."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return " ".join(str(error).split()).replace(' in "<unicode string>",', "")


class UniqueKeyLoader(yaml.SafeLoader):
    """A safe YAML loader that refuses duplicate keys, and aliases (which allow "YAML bombs")."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return a node as data; refuse a value that its tag does not fit, and an integer that cannot be printed."""
        try:
            found = super().construct_object(node, deep=deep)
        except (AttributeError, LookupError) as error:  # such as '!!bool maybe'
            raise _misfit(node) from error
        if isinstance(found, int) and found.bit_length() > MAX_INTEGER_BITS:
            raise yaml.constructor.ConstructorError(None, None, "an integer of thousands of digits", node.start_mark)
        return found

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping as data; refuse a key that it has twice."""
        if not isinstance(node, yaml.MappingNode):
            raise _misfit(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict, set)):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' {_TWICE}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Return the next node; refuse an alias."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(None, None, _ALIASES, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def _misfit(node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, f"{_MISFIT}{node.tag.rpartition(':')[2]}", node.start_mark)
