"""The built-in chats, tokenized beforehand: loading a tokenizer takes longer than all else that a short run does.

`make setup` writes what `prepare` would for the installed tokenizer. It is used for a tokenizer file with the same hash
while chats, library and code are as they were; prompts are the same to a byte. Other runs tokenize.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import sys
from importlib import metadata
from itertools import pairwise
from pathlib import Path

import engines.checkpoint
from engines.checkpoint import default_text_path
from engines.derived_copy import MADE_OF, derived_folder, is_intact
from engines.errors import UserError
from engines.files import sha256_of, write_json
from loadtest.scenario import Lengths, Scenario
from loadtest.traffic.levels import LevelPlan, plans_of
from loadtest.traffic.prepare import MIN_CHAT_TOKENS, chat_tokens_needed, must_state_end, prepare
from loadtest.traffic.prompts import META, Prepared, read_prepared
from loadtest.traffic.token_text import TokenText, read_tokenizer

FOLDER = Path(sys.prefix) / "share" / "chats"  # with a folder for each tokenizer, named by its hash
_SOURCES = (
    *(Path(__file__).with_name(f"{name}.py") for name in ("prepare", "prompts", "ready_chats", "token_text")),
    Path(engines.checkpoint.__file__).with_name("calibration_text.py"),
)
_CHATS_BYTES = 1 << 20  # of the file of chats: those used are at its beginning
_ORDERS = 3


def copy_ready_chats(
    scenario: Scenario,
    plans: list[LevelPlan],
    tokenizer_sha256: str,
    folder: Path,
    *,
    as_text: bool,
    salt: int = 0,
    ready: Path = FOLDER,
) -> bool:
    """Write what `prepare` would into a folder, without the tokenizer; return whether that was possible.

    Raises:
        MissingError: The chats are not installed.
    """
    source = ready / tokenizer_sha256
    if not (source / MADE_OF).is_file() or any(kind.prompts != "chat" for kind in scenario.kinds):
        return False
    has_hashes = any(arrival.prefix_hashes for plan in plans for arrival in plan.arrivals)
    if has_hashes or (not as_text and must_state_end(scenario)):
        return False
    if chat_tokens_needed(scenario, plans, {}) > MIN_CHAT_TOKENS or not is_intact(source, _made_of()):
        return False
    found = read_prepared(source)
    for path in source.iterdir():
        if path.name not in {META, MADE_OF}:
            shutil.copyfile(path, folder / path.name)
    if not as_text:
        found = found.model_copy(update={"as_text": False, "special_tokens": 0, "filler": ""})
    write_json(folder / META, found.model_copy(update={"salt": salt}))
    return True


def write_ready_chats(tokenizer_path: Path, ready: Path = FOLDER) -> None:
    """Write a tokenizer's chats for `copy_ready_chats`.

    Raises:
        UserError: With this tokenizer, parts of a text do not have the tokens that they have within it.
    """
    small = Scenario(concurrency=(1,), requests=1, lengths=Lengths(isl=64, osl=1))
    with derived_folder(ready / sha256_of(tokenizer_path), _made_of()) as made:
        found = prepare(small, plans_of(small), tokenizer_path, made, as_text=True)
        if found.tokenizer is not None or not _parts_hold(tokenizer_path, made, found):
            raise UserError(
                f"{tokenizer_path}: parts of a text have other tokens than within it",
                hint="its runs count every prompt",
            )


def _parts_hold(tokenizer_path: Path, folder: Path, found: Prepared) -> bool:
    """Return whether every part between two cuts, marker word and filler has its tokens in any order.

    `prepare` counts some of a run's prompts again; what it looks for is tried here at every place, and for every run.
    """
    tokenizer = read_tokenizer(tokenizer_path)
    chat = TokenText.load(folder, found.texts["chat"], as_text=True)
    parts = [(chat.ids[begin:end].tolist(), chat.part(begin, end)) for begin, end in pairwise(chat.cuts.tolist())]
    parts += [([token], word) for token, word in found.marks]
    filler = tokenizer.encode(f"x{found.filler}", add_special_tokens=False).ids[-1:]
    if any(tokenizer.encode(text, add_special_tokens=False).ids != ids for ids, text in parts):
        return False
    rng = random.Random(0)
    for _ in range(_ORDERS):
        mixed = [each for part in parts for each in (part, (filler, found.filler))]
        rng.shuffle(mixed)
        whole = tokenizer.encode("".join(text for _, text in mixed), add_special_tokens=False).ids
        if whole != [token for ids, _ in mixed for token in ids]:
            return False
    return True


def _made_of() -> dict[str, str]:
    digest = hashlib.sha256()
    for path in _SOURCES:
        digest.update(path.read_bytes())
    with default_text_path().open("rb") as file:
        chats = hashlib.sha256(file.read(_CHATS_BYTES)).hexdigest()
    return {"tokenizers": metadata.version("tokenizers"), "chats": chats, "code": digest.hexdigest()}
