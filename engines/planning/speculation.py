"""The speculative decoding an engine can be built for, and its draft length."""

from __future__ import annotations

from engines.errors import UserError
from engines.planning.recipe import SpeculativeChoices
from engines.spec import ModelSpec, lookahead_draft_tokens

# Modes without draft heads trained into the checkpoint; the others need checkpoints of their own kind.
HEADLESS_SPECULATION = {"draft_tokens_external", "lookahead_decoding"}


def resolve_speculation(choices: SpeculativeChoices, model: ModelSpec) -> SpeculativeChoices:
    """Return the requested speculation with its draft length resolved.

    Raises:
        UserError: The mode cannot be built here, or the draft length is missing or contradicts the mode.
    """
    if choices.mode == "none":
        if choices.max_draft_len or choices.lookahead:
            raise UserError(
                f"speculative.{'max_draft_len' if choices.max_draft_len else 'lookahead'} without a mode",
                hint="--speculative lookahead_decoding --lookahead 7,7,7",
            )
        return choices
    if choices.mode not in HEADLESS_SPECULATION:
        raise UserError(
            f"speculative decoding '{choices.mode}' needs draft heads trained for it, and {model.name} has none",
            hint=f"modes that need none: {', '.join(sorted(HEADLESS_SPECULATION))}",
        )
    if choices.mode == "lookahead_decoding":
        return _lookahead(choices)
    if choices.lookahead:
        raise UserError(f"speculative.lookahead with {choices.mode}", hint="--speculative lookahead_decoding")
    if not choices.max_draft_len:
        raise UserError(
            f"speculative decoding '{choices.mode}' needs a draft length", hint="--max-draft-len 5 is a common start"
        )
    return choices


def _lookahead(choices: SpeculativeChoices) -> SpeculativeChoices:
    sizes = choices.lookahead
    if sizes is None:
        raise UserError(
            "lookahead decoding needs its sizes: window, n-gram, verification set",
            hint="--lookahead 7,7,7 is a common start; the draft length follows from them",
        )
    draft = lookahead_draft_tokens(sizes.window_size, sizes.ngram_size, sizes.verification_set_size)
    if not draft:
        raise UserError(
            "these lookahead sizes draft no token", hint="--lookahead 2,2,1 is the smallest that drafts tokens"
        )
    if choices.max_draft_len not in {0, draft}:
        raise UserError(
            f"speculative.max_draft_len {choices.max_draft_len}: these lookahead sizes draft {draft} tokens per step; "
            "the engine must be built for exactly that length",
            hint=f"omit --max-draft-len, or --max-draft-len {draft}",
        )
    return choices.model_copy(update={"max_draft_len": draft})
