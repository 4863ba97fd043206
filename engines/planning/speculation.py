"""The speculative decoding an engine can be built for: its draft length, its draft model and what it accepts."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from engines.errors import UserError
from engines.planning.choices import Choices
from engines.planning.recipe import SpeculativeChoices
from engines.spec import (
    AcceptanceProfile,
    DraftModel,
    ModelSpec,
    Sizing,
    SpeculativeDecoding,
    default_acceptance,
    eagle3_head_in,
    eagle3_head_of,
    gib,
    is_checkpoint_folder,
    lookahead_draft_tokens,
    precision_named,
    read_config,
    resolve_model,
)

# Modes without draft heads trained into the checkpoint; the others need checkpoints of their own kind.
HEADLESS_SPECULATION = {"draft_tokens_external", "lookahead_decoding"}
PREDICTED = {"eagle3", "draft_target", "ngram", "lookahead_decoding"}
WITH_DRAFT_MODEL = {"eagle3", "draft_target"}


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


def rates_of(text: str | None) -> tuple[float, ...] | None:
    """Return the rates of `--acceptance`; None if it is not given.

    Raises:
        UserError: One is not a number.

    >>> rates_of("0.6,0.3")
    (0.6, 0.3)
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--acceptance {text}: expected numbers from 0 to 1", hint="--acceptance 0.6,0.4") from None


class Speculated(NamedTuple):
    """What is planned of speculative decoding; without a decoding, why it is not predicted."""

    decoding: SpeculativeDecoding | None = None
    reason: str = ""


def speculation_of(choices: SpeculativeChoices, model: ModelSpec) -> Speculated:
    """Return what each decode step drafts and verifies; none if no figure of it could be predicted, with the reason.

    Args:
        choices: With the draft length resolved.

    Raises:
        UserError: The acceptance does not fit the draft length, or the draft model's folder cannot be read.
    """
    mode = choices.mode
    if mode == "none":
        return Speculated()
    draft_len, draft = _accepted_at_most(choices), draft_model_of(choices, model)
    acceptance = _acceptance(choices, draft_len)
    if reason := _why_not(choices, acceptance, has_draft=draft is not None):
        return Speculated(reason=reason)
    verified = choices.max_total_draft_tokens or choices.max_draft_len
    if verified < draft_len:
        raise UserError(
            f"speculative.max_total_draft_tokens {verified} is less than max_draft_len {draft_len}",
            hint="a tree verifies at least one token for each of its levels",
        )
    decoding = SpeculativeDecoding(
        method=mode,
        draft_len=draft_len,
        verified_tokens=verified,
        draft_passes=0 if draft is None else draft_len,
        draft=draft,
        acceptance=acceptance.rates,
        acceptance_source=acceptance.source,
    )
    return Speculated(decoding)


def note_speculation(choices: Choices, speculative: SpeculativeChoices, speculated: Speculated, sizing: Sizing) -> None:
    """Record the speculation and what is accepted, with a notice of what no figure includes."""
    if speculative.mode == "none":
        return
    draft, decoding = speculative.max_draft_len, speculated.decoding
    choices.given("speculative.mode", speculative.mode, f"up to {draft} draft tokens per step")
    if choices.resolved.recipe.backend == "tensorrt":
        choices.notice(
            "speculative",
            f"trtllm-build adds {draft} to max_seq_len and needs max_num_tokens of at least "
            f"{sizing.max_batch_size * (draft + 1)}",
        )
    if decoding is None:
        choices.notice(
            "speculative-not-predicted",
            f"predictions and the emulator decode one token per step: {speculated.reason}; a draft model's memory is "
            "not in the plan",
        )
        return
    rates = " ".join(f"{rate:g}" for rate in decoding.acceptance)
    choices.given("speculative.acceptance", rates, decoding.acceptance_source)
    choices.derived(
        "speculative.tokens_per_step", round(decoding.tokens_per_step, 3), "one, and the sum of the acceptance"
    )
    if decoding.draft is not None:
        text = (
            f"{gib(decoding.draft.weights_bytes(precision_named('bf16')))} of 16-bit weights; its cache in every block"
        )
        choices.given("speculative.draft_model", decoding.draft.name, text)
    choices.notice(
        "acceptance",
        f"figures assume {decoding.tokens_per_step:.2f} tokens per step; acceptance depends on the draft model and the "
        "text, and is independent from step to step here",
    )


def _acceptance(choices: SpeculativeChoices, draft_len: int) -> AcceptanceProfile:
    """Return the rates of each position: as given, or the method's default; empty, with the reason, without either."""
    if choices.acceptance != "auto":
        if len(choices.acceptance) != draft_len:
            raise UserError(
                f"speculative.acceptance has {len(choices.acceptance)} rates, and a step can accept {draft_len} tokens",
                hint="one rate for each position, the first position first",
            )
        if list(choices.acceptance) != sorted(choices.acceptance, reverse=True):
            raise UserError(
                f"speculative.acceptance {list(choices.acceptance)} rises: a token is accepted only after the last one",
                hint="rates over all steps (vLLM's, run-load's), not over those that accepted the position before",
            )
        return AcceptanceProfile(rates=choices.acceptance, source="as given")
    default = default_acceptance().get(choices.mode)
    if default is None or choices.max_total_draft_tokens is not None:
        drafts = "a draft tree" if choices.max_total_draft_tokens else choices.mode
        return AcceptanceProfile(rates=(), source=f"no measured acceptance of {drafts} is known; give --acceptance")
    return AcceptanceProfile(rates=default.first(draft_len), source=default.source)


def _why_not(choices: SpeculativeChoices, acceptance: AcceptanceProfile, *, has_draft: bool) -> str:
    """Return why no figure of this speculation can be predicted; empty if it can."""
    if choices.mode not in PREDICTED:
        return "its drafts come from outside the step that is modelled"
    if not acceptance.rates:
        return acceptance.source if _accepted_at_most(choices) else "it has no draft length"
    if choices.mode in WITH_DRAFT_MODEL and not has_draft:
        return f"the geometry of {choices.draft_model} is not known; give its folder"
    return ""


def draft_model_of(choices: SpeculativeChoices, model: ModelSpec) -> DraftModel | None:
    """Return the geometry of the draft model; None if its name is not known, or the mode has none.

    A published EAGLE-3 head is one layer of its target; see `eagle3_head_of`.

    Raises:
        MissingError, UserError: Its folder has no config.json that can be read.
    """
    name = choices.draft_model or ""
    is_folder = bool(name) and is_checkpoint_folder(name)
    if choices.mode not in WITH_DRAFT_MODEL:
        return None
    if choices.mode == "eagle3":
        if is_folder:
            return eagle3_head_in(read_config(Path(name)), model, name=name)
        return eagle3_head_of(model)
    try:
        known = resolve_model(name)
    except UserError:
        if is_folder:
            raise
        return None
    return DraftModel(**known.model_dump())


def _accepted_at_most(choices: SpeculativeChoices) -> int:
    """Return the most draft tokens that a step can accept: of lookahead, one n-gram without its first token."""
    if choices.mode == "lookahead_decoding" and choices.lookahead is not None:
        return choices.lookahead.ngram_size - 1
    return choices.max_draft_len


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
