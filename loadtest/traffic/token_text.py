"""Text with its tokens, so that any part can be sent as text or tokens without tokenizing again.

A part of a text has the same tokens as inside the whole only if it starts and ends where the tokenizer splits anyway.
For the tokenizers of all known model families, such a place is before a space that follows a non-space and precedes a
letter; whether this holds for the current tokenizer is tested before a run (`prepare.prepare`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from engines.errors import MissingError, UserError
from engines.files import load_json, parse_json, text_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ints: TypeAlias = npt.NDArray[np.int32]
Role = Literal["user", "assistant"]
_ROLES: dict[object, Role | Literal["system"]] = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "system": "system",
}
UNLIKE_TOKENS = 30  # an engine's smallest KV block, minus a run's marker words
_CHARACTERS_PER_TOKEN = 5  # read somewhat more text than needed instead of encoding twice


class Message(NamedTuple):
    """One message of a conversation."""

    role: Role
    text: str


class Span(NamedTuple):
    """Position of a message in a `TokenText`: tokens `begin` to `end`, exclusive."""

    role: Role
    begin: int
    end: int


@dataclass(slots=True)
class TokenText:
    """A text and its tokens.

    Attributes:
        ids: Shape (tokens,).
        starts: Character at which each token begins, and the text's length; shape (tokens + 1,).
        cuts: Tokens before which the text may be cut, ascending; shape (cuts,).
        begins: Of those, the ones with no two of which the text goes on alike; shape (begins,).
        rows: Of a prompt file, the messages of each of its rows.
    """

    ids: Ints
    starts: Ints
    cuts: Ints
    begins: Ints
    text: str = ""
    rows: list[list[Span]] = field(default_factory=list)

    @property
    def exchanges(self) -> list[list[tuple[int, int]]]:
        """Each row's exchanges as (prompt tokens, reply tokens); 0 for a reply that is not there."""
        return [
            [(prompt.end - prompt.begin, reply.end - reply.begin if reply else 0) for prompt, reply in pairs_of(row)]
            for row in self.rows
        ]

    def upto(self, begin: int, largest: int) -> int:
        """Return the last place, at most `largest`, at which a text from `begin` may end; `begin` if there is none."""
        own = np.int32(largest)  # a number of another type would make numpy copy all cuts
        place = int(self.cuts.searchsorted(own, side="right")) - 1
        return max(begin, int(self.cuts[place])) if place >= 0 else begin

    def part(self, begin: int, end: int) -> str:
        """Return the text of some tokens."""
        return self.text[self.starts[begin] : self.starts[end]]

    def save(self, folder: Path, name: str) -> None:
        """Write the arrays, the text and the rows."""
        np.save(folder / f"{name}.ids.npy", self.ids)
        np.save(folder / f"{name}.starts.npy", self.starts)
        np.save(folder / f"{name}.cuts.npy", self.cuts)
        np.save(folder / f"{name}.begins.npy", self.begins)
        (folder / f"{name}.txt").write_bytes(self.text.encode("utf-8", "surrogatepass"))
        (folder / f"{name}.rows.json").write_text(json.dumps(self.rows))

    @classmethod
    def load(cls, folder: Path, name: str, *, as_text: bool) -> TokenText:
        """Read the output of `save`; the tokens are memory-mapped, the text is read on request."""
        ids, starts, cuts, begins = (  # as plain arrays: an element of a memmap costs three times as much
            np.asarray(np.load(folder / f"{name}.{part}.npy", mmap_mode="r"))
            for part in ("ids", "starts", "cuts", "begins")
        )
        text = (folder / f"{name}.txt").read_bytes().decode("utf-8", "surrogatepass") if as_text else ""
        rows = [[Span(*span) for span in row] for row in json.loads((folder / f"{name}.rows.json").read_text())]
        return cls(ids, starts, cuts, begins, text, rows)


def pairs_of(row: list[Span]) -> list[tuple[Span, Span | None]]:
    """Return a row's prompts, each with the reply that follows it; None without a reply."""
    found: list[tuple[Span, Span | None]] = []
    for place, span in enumerate(row):
        if span.role == "user":
            later = row[place + 1] if place + 1 < len(row) else None
            found.append((span, later if later is not None and later.role == "assistant" else None))
    return found


def read_tokenizer(path: Path) -> Tokenizer:
    """Return a tokenizer without truncation and padding.

    Raises:
        MissingError: The file does not exist.
        UserError: The file is not a tokenizer.
    """
    from engines.checkpoint import load_tokenizer  # noqa: PLC0415 (slow to import; predictions seldom count tokens)

    tokenizer = load_tokenizer(path)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def end_id_of(tokenizer: Tokenizer, path: Path) -> int | None:
    """Return the end token named in the tokenizer's configuration; None if it names none.

    Raises:
        UserError: The configuration is not JSON.
    """
    beside = path.with_name("tokenizer_config.json")
    if not beside.is_file():
        return None
    turns = load_json(beside)
    word = turns.get("eos_token") if isinstance(turns, dict) else None
    word = word.get("content") if isinstance(word, dict) else word
    found: int | None = tokenizer.token_to_id(word) if isinstance(word, str) else None
    return found


def chat_text(tokenizer: Tokenizer, *, tokens: int) -> TokenText:
    """Return the beginning of the built-in chats, with at least this many tokens if available.

    Raises:
        MissingError: They are not installed.
    """
    from engines.checkpoint import default_text_path, documents_of  # noqa: PLC0415 (slow to import)

    parts: list[str] = []
    characters = 0
    for document in documents_of(default_text_path()):
        parts.append(document)
        characters += len(document) + 2
        if characters >= tokens * _CHARACTERS_PER_TOKEN:
            break
    return encoded(tokenizer, "\n\n".join(parts))


def encoded(tokenizer: Tokenizer, text: str) -> TokenText:
    """Return a text with its tokens."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts = np.fromiter(chain((begin for begin, _ in encoding.offsets), (len(text),)), np.int32, len(encoding.ids) + 1)
    ids, cuts = np.array(encoding.ids, np.int32), _cuts(text, starts)
    return TokenText(ids, starts, cuts, _begins(ids, cuts), text)


def file_text(tokenizer: Tokenizer, path: Path, *, max_rows: int) -> TokenText:
    """Return the first rows of a prompt file with their tokens; each message is tokenized alone.

    Raises:
        MissingError: There is no such file.
        UserError: A row in no shape we know, or none at all.
    """
    texts: list[TokenText] = []
    rows: list[list[Span]] = []
    tokens = 0
    for messages in read_messages(path):
        row = []
        for message in messages:
            found = encoded(tokenizer, message.text)
            if not len(found.ids):
                break
            row.append(Span(message.role, tokens, tokens + len(found.ids)))
            texts.append(found)
            tokens += len(found.ids)
        if row:
            rows.append(row)
        if len(rows) == max_rows:
            break
    if not rows:
        raise UserError(
            f"{path}: contains no prompt", hint="expected ShareGPT JSON, or JSON Lines with prompt, text or messages"
        )
    return _joined(texts, rows)


def _joined(texts: list[TokenText], rows: list[list[Span]]) -> TokenText:
    """Return several texts concatenated."""
    token_of = np.cumsum([0, *(len(each.ids) for each in texts)])
    character_of = np.cumsum([0, *(len(each.text) for each in texts)])
    text = "".join(each.text for each in texts)
    starts = [each.starts[:-1] + begin for each, begin in zip(texts, character_of, strict=False)]
    return TokenText(
        np.concatenate([each.ids for each in texts]),
        np.concatenate([*starts, [len(text)]]).astype(np.int32),
        np.concatenate([each.cuts + begin for each, begin in zip(texts, token_of, strict=False)]).astype(np.int32),
        np.zeros(0, np.int32),
        text,
        rows,
    )


def _cuts(text: str, starts: Ints) -> Ints:
    """Return the tokens that start with a space between a non-space and a letter; see the module."""
    places = [
        token
        for token, at in enumerate(starts[:-1].tolist())
        if 0 < at < len(text) - 1 and text[at] == " " and text[at + 1].isalpha() and not text[at - 1].isspace()
    ]
    return np.array(places, np.int32)


def _begins(ids: Ints, cuts: Ints) -> Ints:
    """Return the cuts whose following text does not repeat earlier text: real text repeats itself."""
    seen: set[bytes] = set()
    found = []
    for place in cuts.tolist():
        words = ids[place : place + UNLIKE_TOKENS].tobytes()
        if words not in seen:
            seen.add(words)
            found.append(place)
    return np.array(found, np.int32)


def read_messages(path: Path) -> Iterator[list[Message]]:
    """Yield a prompt file's rows as messages, prompts first; rows without messages are skipped.

    Raises:
        MissingError: The file does not exist.
        UserError: A line is not JSON, or a row has an unknown format.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="relative paths start at the scenario's folder")
    from engines.checkpoint import json_records  # noqa: PLC0415 (slow to import)

    rows = enumerate(json_records(path), start=1) if path.suffix == ".json" else _json_lines(path)
    kind = "row" if path.suffix == ".json" else "line"
    for number, row in rows:
        messages = _messages_of(row)
        if messages is None:
            raise UserError(
                f"{path}: {kind} {number} has no prompt",
                hint='as in {"prompt": "..."}, {"text": "..."}, {"messages": [{"role": "user", "content": "..."}]}',
            )
        if messages:
            yield messages


def _json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    with text_file(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, parse_json(line, where=f"{path}: line {number}")


def _messages_of(row: Any) -> list[Message] | None:
    """Return the messages of one row; None for an unknown format."""
    if not isinstance(row, dict):
        return None
    for name in ("prompt", "text"):
        if isinstance(row.get(name), str):
            return [Message("user", row[name])] if row[name] else []
    turns = row.get("messages", row.get("conversations"))
    if not isinstance(turns, list):
        return None
    return None if not all(isinstance(each, dict) for each in turns) else _in_turn(turns)


def _in_turn(turns: list[dict[str, Any]]) -> list[Message]:
    """Return a chat's messages up to the first without text; system instructions are prepended to the first prompt."""
    found: list[Message] = []
    instructions = ""
    for each in turns:
        role = _ROLES.get(each.get("role", each.get("from")))
        text = each.get("content", each.get("value"))
        if role is None or not isinstance(text, str) or not text:
            break
        if role == "system":
            instructions += text + "\n\n"
        elif role == "user":
            found.append(Message("user", instructions + text))
            instructions = ""
        elif found:  # a reply before the first prompt is dropped
            found.append(Message("assistant", text))
    return found
