"""Events in JSON that differ in one text alone, as nearly all of a reply do: recognized without parsing each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from loadtest.client.receiver import compiled

_PLAIN = re.compile(rb"[ !#-\[\]-~]+")  # what JSON writes without escapes
_OPENING = re.compile(rb"\s*:\s*\"")


@dataclass(frozen=True, slots=True)
class Shape:
    """An event's bytes before and after its text.

    An event with the same bytes there, and a text between them that JSON writes without escapes, parses to the same
    values but for the text.

    Attributes:
        is_kept: Whether later prompts repeat the text.
    """

    head: bytes
    tail: bytes
    is_kept: bool

    @classmethod
    def of(cls, event: bytes, name: str, text: str, *, is_kept: bool) -> Shape | None:
        """Return the shape of an event whose field `name` contains `text`; None if its place is ambiguous.

        >>> Shape.of(b'{"i": 1, "text": "the", "end": null}', "text", "the", is_kept=True).text_in(
        ...     b'{"i": 1, "text": "next", "end": null}')
        'next'
        """
        key = f'"{name}"'.encode()
        if event.count(key) != 1:  # once, it is the field: within a text, its quotes would be escaped
            return None
        opening = _OPENING.match(event, event.index(key) + len(key))
        if opening is None:
            return None
        size = len(text.encode("utf-8", "replace"))
        shape = cls(event[: opening.end()], event[opening.end() + size :], is_kept)
        return shape if shape.tail[:1] == b'"' and shape.text_in(event) == text else None

    def text_in(self, event: bytes) -> str | None:
        """Return the text of an event of this shape; None for any other event, or a text that JSON escapes."""
        if not event.startswith(self.head) or not event.endswith(self.tail):
            return None
        try:
            text = event[len(self.head) : -len(self.tail)].decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() and '"' not in text and "\\" not in text else None

    def sizes_in(self, events: list[bytes], place: int) -> list[int]:
        """Return the sizes of the texts from a place on, up to the first event of another shape or other text."""
        return plain_sizes(events, place, self.head, self.tail)

    def texts_of(self, events: list[bytes]) -> list[str]:
        """Return the texts of events with plain texts that are kept; empty ones where they are not."""
        begin, end = len(self.head), -len(self.tail)
        return [event[begin:end].decode() for event in events] if self.is_kept else [""] * len(events)


def _plain_sizes(events: list[bytes], place: int, head: bytes, tail: bytes) -> list[int]:
    """Return the characters between head and tail from a place on, up to the first that are not all printable ASCII."""
    sizes = []
    for event in events[place:]:
        text = event[len(head) : len(event) - len(tail)]
        if len(event) <= len(head) + len(tail) or not (event.startswith(head) and event.endswith(tail)):
            break
        if not _PLAIN.fullmatch(text):
            break
        sizes.append(len(text))
    return sizes


plain_sizes: Callable[[list[bytes], int, bytes, bytes], list[int]] = compiled("plain_sizes", _plain_sizes)
