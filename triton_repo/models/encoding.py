"""Tokenization with the results of the `tokenizers` library, but faster for plain text.

More than half of the library's time is spent splitting text into words. Words recur, and their tokens do not depend on
their context. Plain ASCII is therefore split by Python's `re`, and each word is passed to the library's model once. All
other text, and every tokenizer of another kind, goes to the library whole: two libraries may classify some Unicode
letters differently, and the tokens must be those that the model was trained on.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from triton_repo.models.text import byte_alphabet, described

CACHED_PIECES = 65_536
CACHED_CHARACTERS = 32  # longer pieces rarely recur, and a client could send any number of them

# How tokenizers split text, and the equivalent for ASCII. `\s` is [\t\n\v\f\r ] in `re.ASCII`, as in theirs.
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA_3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_CUTS = {
    pattern: pattern.replace(r"\p{L}+", "[A-Za-z]+").replace(rf"|\p{{N}}{count}|", f"|[0-9]{count}|")
    .replace(r"\p{L}\p{N}", "A-Za-z0-9")
    for pattern, count in ((_QWEN, ""), (_LLAMA_3, "{1,3}"))
}  # fmt: skip
# Where text can be cut into parts that are split independently: after a line break not followed by white space, and
# before a single space between two non-space characters.
_LINES = re.compile(r"(?<=[\r\n])(?=[!-~])")
_WORDS = re.compile(r"(?<=[!-~])(?= [!-~])")


class Encoder:
    """Converts text to token ids.

    Args:
        tokenizer: As returned by `load_tokenizer`.

    Attributes:
        is_fast: Whether plain text bypasses the library for this tokenizer.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pieces_of = _cut_for(tokenizer)
        self.is_fast = self._pieces_of is not None
        added = tokenizer.get_added_tokens_decoder()
        self._added = {token.content: token_id for token_id, token in added.items()}
        self._split = [_splitter(added.values(), normalized=normalized) for normalized in (False, True)]
        self._normalizes = tokenizer.normalizer is not None
        self._model = tokenizer.model
        self._written = dict(enumerate(byte_alphabet()))
        self._known: dict[str, tuple[int, ...]] = {}
        self._around = _around(tokenizer)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Return the token ids of a text; special tokens written in it become single tokens.

        Args:
            add_special_tokens: Add the special tokens of the tokenizer's template.
        """
        before, after = self._around if add_special_tokens else ((), ())
        ids = list(before)
        if self._pieces_of is None or not (text.isascii() or self._is_settled(text)):
            ids += self._tokenizer.encode(text, add_special_tokens=False).ids
        else:
            self._parts(text, ids)
        ids += after
        return ids

    def _is_settled(self, text: str) -> bool:
        """Whether normalization leaves the text unchanged, so that special tokens can be located in it."""
        return not self._normalizes or unicodedata.is_normalized("NFC", text)

    def _parts(self, text: str, ids: list[int]) -> None:
        raw, normalized = self._split
        for index, part in enumerate(raw(text)):
            if index % 2:
                ids.append(self._added[part])
                continue
            for inner, piece in enumerate(normalized(part)):
                if inner % 2:
                    ids.append(self._added[piece])
                elif piece:
                    self._text(piece, ids)

    def _text(self, text: str, ids: list[int]) -> None:
        if text.isascii():
            self._plain(text, ids)
            return
        for line in _LINES.split(text):
            if line.isascii():
                self._plain(line, ids)
            else:
                self._mixed(line, ids)

    def _mixed(self, line: str, ids: list[int]) -> None:
        """Split a line with non-ASCII characters into words; words that contain some go to the library, once each."""
        for word in _WORDS.split(line):
            tokens = self._known.get(word)
            if tokens is not None:
                ids += tokens
            elif word.isascii():
                self._plain(word, ids)
            else:
                ids += self._keep(word, self._tokenizer.encode(word, add_special_tokens=False).ids)

    def _plain(self, text: str, ids: list[int]) -> None:
        known, pieces_of = self._known, self._pieces_of
        assert pieces_of is not None
        for piece in pieces_of(text):
            tokens = known.get(piece)
            ids += self._learn(piece) if tokens is None else tokens

    def _learn(self, piece: str) -> tuple[int, ...]:
        """Return a piece's tokens from the library's model."""
        written = piece.encode().decode("latin-1").translate(self._written)
        return self._keep(piece, (token.id for token in self._model.tokenize(written)))

    def _keep(self, piece: str, token_ids: Iterable[int]) -> tuple[int, ...]:
        tokens = tuple(token_ids)
        if len(piece) <= CACHED_CHARACTERS:
            if len(self._known) >= CACHED_PIECES:
                self._known.clear()
            self._known[piece] = tokens
        return tokens


def _cut_for(tokenizer: Tokenizer) -> Callable[[str], Sequence[str]] | None:
    """Return a function that splits ASCII as the tokenizer does; None for an unknown kind of tokenizer."""
    steps = described(tokenizer.pre_tokenizer).get("pretokenizers", [])
    if [step["type"] for step in steps] != ["Split", "ByteLevel"] or not _is_plain(tokenizer):
        return None
    split, byte_level = steps
    pattern = _CUTS.get(split["pattern"].get("Regex"))
    isolated = split["behavior"] == "Isolated" and not split["invert"]
    if pattern is None or not isolated or byte_level["add_prefix_space"] or byte_level["use_regex"]:
        return None
    return re.compile(pattern, re.ASCII).findall


def _is_plain(tokenizer: Tokenizer) -> bool:
    """Whether the tokens of a word depend on the word alone."""
    model = tokenizer.model
    if not isinstance(model, BPE) or described(tokenizer.normalizer).get("type", "NFC") != "NFC":
        return False
    if model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix:
        return False
    added = tokenizer.get_added_tokens_decoder().values()
    return not any(token.single_word or token.lstrip or token.rstrip for token in added)


def _splitter(added: Iterable[AddedToken], *, normalized: bool) -> Callable[[str], Sequence[str]]:
    """Return a function that splits text at added tokens of one kind: text and token alternate, longest match first."""
    contents = [token.content for token in added if token.normalized is normalized]
    if not contents:
        return lambda text: (text,)
    longest_first = sorted(contents, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first))})").split


def _around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that a tokenizer's template puts before and after a text."""
    bare = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    begin = next((at for at in range(len(whole)) if whole[at : at + len(bare)] == bare), 0)
    return tuple(whole[:begin]), tuple(whole[begin + len(bare) :])
