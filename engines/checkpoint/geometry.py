"""From a checkpoint's facts to the geometry that the plan uses."""

from __future__ import annotations

from engines.checkpoint.inspection import CheckpointFacts
from engines.errors import UserError
from engines.spec import ModelSpec, model_of_config


def model_of(facts: CheckpointFacts) -> ModelSpec:
    """Return the geometry of a checkpoint.

    Raises:
        UserError: The geometry does not match the tensors, or the kind of rope scaling is unknown.
    """
    model = model_of_config(facts)
    if model.parameters != facts.parameters:
        raise UserError(
            f"{facts.name}: config.json implies {model.parameters:,} parameters, the tensors have {facts.parameters:,}",
            hint="check that the checkpoint is complete and of a known family",
        )
    return model
