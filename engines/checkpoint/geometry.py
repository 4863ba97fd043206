"""From a checkpoint's facts to the geometry the plan works with."""

from __future__ import annotations

from typing import Any

from engines.checkpoint.inspection import ARCHITECTURES, CheckpointFacts
from engines.errors import UserError
from engines.spec import ModelSpec, RopeScaling


def model_of(facts: CheckpointFacts) -> ModelSpec:
    """Return the geometry of a checkpoint as a model of our own.

    Raises:
        UserError: The geometry does not add up to the tensors found, or the rope scaling is of an unknown kind.
    """
    model = ModelSpec.model_validate(
        {
            "name": facts.name.lower(),
            "family": ARCHITECTURES[facts.architecture],
            "layers": facts.layers,
            "hidden_size": facts.hidden_size,
            "intermediate_size": facts.intermediate_size,
            "attention_heads": facts.attention_heads,
            "kv_heads": facts.kv_heads,
            "head_size": facts.head_size,
            "vocab_size": facts.vocab_size,
            "max_position_embeddings": facts.max_position_embeddings,
            "rope_theta": facts.rope.base,
            "rope_scaling": _rope_scaling(facts),
            "norm_epsilon": facts.norm_epsilon,
            "tied_embeddings": facts.tied_embeddings,
            "qkv_bias": facts.qkv_bias,
            "qk_norm": facts.qk_norm,
            "eos_token_id": facts.eos_token_id,
            "pad_token_id": facts.pad_token_id,
            "source": f"config.json of the checkpoint {facts.name}",
        }
    )
    if model.parameters != facts.parameters:
        raise UserError(
            f"{facts.name}: config.json implies {model.parameters:,} parameters, the tensors have {facts.parameters:,}",
            hint="check that the checkpoint is complete and of a known family",
        )
    return model


def _rope_scaling(facts: CheckpointFacts) -> RopeScaling | None:
    stated: dict[str, Any] = facts.rope.scaling or {}
    kind = stated.get("rope_type", stated.get("type", "default"))
    if kind == "default":
        return None
    try:
        return RopeScaling(
            kind=kind,
            factor=stated["factor"],
            original_max_position_embeddings=stated.get(
                "original_max_position_embeddings", facts.max_position_embeddings
            ),
            attn_factor=stated.get("attn_factor"),
            low_freq_factor=stated.get("low_freq_factor"),
            high_freq_factor=stated.get("high_freq_factor"),
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"{facts.name}: rope scaling {stated} has an unknown type",
            hint="known: yarn, llama3, linear, dynamic",
        ) from error
