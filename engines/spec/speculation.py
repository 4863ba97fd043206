"""Speculative decoding: what an engine drafts and verifies in each step, and how often drafts are accepted."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from engines.errors import UserError
from engines.files import Strict, validate
from engines.names import spec_data
from engines.spec.model import ModelSpec

SpeculativeMethod = Literal[
    "eagle3", "draft_target", "ngram", "lookahead_decoding", "draft_tokens_external", "medusa", "eagle"
]
Rate = Annotated[float, Field(ge=0, le=1)]

# EAGLE-3 heads see the hidden states of a low, a middle and a high layer (Li et al., 2025, section 3.1).
EAGLE3_FUSED_STATES = 3
# Output vocabulary of published EAGLE-3 heads: `draft_vocab_size` of yuhuili/EAGLE3-LLaMA3.1-Instruct-8B and of
# SpecForge's configs/qwen3-8b-eagle3.json.
EAGLE3_VOCAB_SIZE = 32_000


class DraftModel(ModelSpec):
    """The geometry of a draft model.

    Its embedding is the target's own where `tied_embeddings` is set, as in an EAGLE-3 head.

    Attributes:
        fused_states: Hidden states of the target that its input layer joins; 0: an ordinary model. The first layer of
            a head also takes the joined states beside its input, so its attention's inputs are twice as wide.
    """

    fused_states: int = 0

    @property
    def linear_parameters(self) -> int:
        """Weights of the linear maps, with the input layer of a head."""
        if not self.fused_states:
            return super().linear_parameters
        fusion = self.fused_states * self.hidden_size**2
        wider = self.hidden_size * (self.attention_size + 2 * self.kv_size)
        return super().linear_parameters + fusion + wider


def eagle3_head_of(target: ModelSpec) -> DraftModel:
    """Return the geometry of a published EAGLE-3 head of a model: one of its layers behind a fusion of its states.

    >>> from engines.spec.model import model_named
    >>> round(eagle3_head_of(model_named("qwen3-8b")).parameters / 1e6)  # Tengyunw/qwen3_8b_eagle3: 0.8 GB at 16 bit
    400
    """
    return _head(target, {"name": f"eagle3-head-of-{target.name}", "layers": 1, "vocab_size": EAGLE3_VOCAB_SIZE})


def eagle3_head_in(config: dict[str, Any], target: ModelSpec, *, name: str) -> DraftModel:
    """Return the geometry of an EAGLE-3 head by its config.json; what that does not say is the target's.

    Source:
        Keys of yuhuili/EAGLE3-LLaMA3.1-Instruct-8B and SpecForge's configs: those of a Llama model, `draft_vocab_size`.
    """
    names = {
        "layers": "num_hidden_layers",
        "hidden_size": "hidden_size",
        "intermediate_size": "intermediate_size",
        "attention_heads": "num_attention_heads",
        "kv_heads": "num_key_value_heads",
        "head_size": "head_dim",
        "vocab_size": "draft_vocab_size",
    }
    stated = {ours: config[theirs] for ours, theirs in names.items() if config.get(theirs) is not None}
    return _head(target, {"vocab_size": config.get("vocab_size", EAGLE3_VOCAB_SIZE), **stated, "name": name})


def _head(target: ModelSpec, changed: dict[str, Any]) -> DraftModel:
    own = {"tied_embeddings": True, "qk_norm": False, "hugging_face_id": None, "aliases": (), "source": ""}
    return validate(
        {**target.model_dump(), **own, **changed, "fused_states": EAGLE3_FUSED_STATES},
        DraftModel,
        where=f"draft model {changed['name']}",
    )


class SpeculativeDecoding(Strict):
    """What an engine drafts and verifies in each decode step.

    Attributes:
        draft_len: Maximum number of draft tokens accepted per step: depth of a chain or a tree, or length of an n-gram.
        verified_tokens: Draft tokens verified per step for each sequence: `draft_len` of a chain, more of a tree or
            of lookahead's two branches.
        draft_passes: Passes of the draft model in each step; 0 without one.
        draft: Its geometry; None without one.
        acceptance: Share of the steps in which the draft token at each position is accepted, the first position first:
            what vLLM calls the acceptance rate per position. Its sum plus one is the mean number of tokens a step.
        acceptance_source: Where the profile comes from.
    """

    method: SpeculativeMethod
    draft_len: Annotated[int, Field(ge=1)]
    verified_tokens: Annotated[int, Field(ge=1)]
    draft_passes: Annotated[int, Field(ge=0)] = 0
    draft: DraftModel | None = None
    acceptance: Annotated[tuple[Rate, ...], Field(min_length=1)]
    acceptance_source: str

    @model_validator(mode="after")
    def _consistent(self) -> SpeculativeDecoding:
        if len(self.acceptance) != self.draft_len:
            raise ValueError(f"acceptance has {len(self.acceptance)} positions, and {self.draft_len} can be accepted")
        if any(later > earlier for earlier, later in zip(self.acceptance, self.acceptance[1:], strict=False)):
            raise ValueError("acceptance rises: a token is accepted only after the one before it")
        if (self.draft is None) != (self.draft_passes == 0):
            raise ValueError("a draft model and its passes go together")
        return self

    @property
    def is_tree(self) -> bool:
        """Whether a draft model proposes several tokens for a position."""
        return self.draft is not None and self.verified_tokens > self.draft_len

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens of a sequence in one step: its own and the accepted ones."""
        return 1 + sum(self.acceptance)


class AcceptanceProfile(Strict):
    """A default acceptance profile: rates by position, and where they were read."""

    rates: tuple[Rate, ...]
    source: str

    def first(self, draft_len: int) -> tuple[float, ...]:
        """Return the rates of the first positions.

        Raises:
            UserError: The profile has fewer.
        """
        if draft_len > len(self.rates):
            raise UserError(
                f"the acceptance profile has {len(self.rates)} positions, and the draft length is {draft_len}",
                hint="--acceptance, one rate for each position, as vLLM's metrics and run-load report them",
            )
        return self.rates[:draft_len]


@cache
def default_acceptance() -> dict[str, AcceptanceProfile]:
    """Return the default acceptance profiles, by method; a method without a source has none."""
    loaded = spec_data("acceptance")
    return {name: validate(values, AcceptanceProfile, where="acceptance.yaml") for name, values in loaded.items()}


def lookahead_draft_tokens(window_size: int, ngram_size: int, verification_set_size: int) -> int:
    """Return the draft tokens per step of lookahead decoding, which `--max_draft_len` must equal.

    Args:
        window_size: N-grams of the lookahead branch (W).
        ngram_size: Maximum draft tokens accepted per step (N).
        verification_set_size: N-grams verified per step (G).

    Source:
        TensorRT-LLM 1.2, examples/lookahead/README.md.

    >>> lookahead_draft_tokens(7, 7, 7), lookahead_draft_tokens(1, 1, 0)
    (83, 0)
    """
    return max(ngram_size - 2, 0) + (window_size - 1 + verification_set_size) * (ngram_size - 1)
