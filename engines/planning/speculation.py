"""The speculative decoding an engine can be built for, and its draft length."""

from __future__ import annotations

from engines.errors import UserError
from engines.planning.recipe import SpeculativeChoices
from engines.spec import ModelSpec, lookahead_draft_tokens

# Modes without draft heads trained into the checkpoint; the others need checkpoints of their own kind.
HEADLESS_SPECULATION = {"draft_tokens_external", "lookahead_decoding"}


def resolve_speculation(asked: SpeculativeChoices, model: ModelSpec) -> SpeculativeChoices:
    """Return the requested speculation with its draft length resolved.

    Raises:
        UserError: The mode cannot be built here, or the draft length is missing or contradicts the mode.
    """
    if asked.mode == "none":
        if asked.max_draft_len or asked.lookahead:
            raise UserError(
                f"speculative.{'max_draft_len' if asked.max_draft_len else 'lookahead'} without a mode",
                hint="--speculative lookahead_decoding --lookahead 7,7,7",
            )
        return asked
    if asked.mode not in HEADLESS_SPECULATION:
        raise UserError(
            f"speculative decoding '{asked.mode}' needs draft heads trained for it, and {model.name} has none",
            hint=f"modes that need none: {', '.join(sorted(HEADLESS_SPECULATION))}",
        )
    if asked.mode == "lookahead_decoding":
        return _lookahead(asked)
    if asked.lookahead:
        raise UserError(f"speculative.lookahead with {asked.mode}", hint="--speculative lookahead_decoding")
    if not asked.max_draft_len:
        raise UserError(
            f"speculative decoding '{asked.mode}' needs a draft length", hint="--max-draft-len 5 is a common start"
        )
    return asked


def _lookahead(asked: SpeculativeChoices) -> SpeculativeChoices:
    sizes = asked.lookahead
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
    if asked.max_draft_len not in {0, draft}:
        raise UserError(
            f"speculative.max_draft_len {asked.max_draft_len}: these lookahead sizes draft {draft} tokens per step; "
            "the engine must be built for exactly that length",
            hint=f"omit --max-draft-len, or --max-draft-len {draft}",
        )
    return asked.model_copy(update={"max_draft_len": draft})
