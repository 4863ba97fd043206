"""Resolves the step-time model of a plan: as given, the best known for the GPU, or a calibration's."""

from __future__ import annotations

from pathlib import Path

from engines.calibration import read_calibration, require_match
from engines.files import sha256_of
from engines.manifest import StepTimeChoice
from engines.planning.choices import Choices
from engines.spec import GpuSpec, KvFormat, ModelSpec, PlacedModel, Precision, engine_profile_named
from engines.steptime import favoured_source


def resolve_step_time(
    choices: Choices, model: ModelSpec, gpu: GpuSpec, precision: Precision, kv_format: KvFormat
) -> StepTimeChoice:
    """Return the step-time model; a calibration provides its own source, and is refused for other hardware."""
    recipe = choices.resolved.recipe
    tensor = recipe.parallel.tensor
    if recipe.step_time_calibration is None:
        profile = engine_profile_named(recipe.engine_profile)
        choices.given("engine_profile", profile.name, profile.description)
        placed = PlacedModel(model, gpu, precision.name, kv_format, tensor)
        source = recipe.step_time
        if source == "auto":
            source, why = favoured_source(placed, profile.kernels)
            choices.derived("step_time", source, why)
        else:
            choices.given("step_time", source, "as requested")
        return StepTimeChoice.expected(source, profile, placed)
    path = Path(recipe.step_time_calibration)
    known = read_calibration(path)
    require_match(known, gpu=gpu.name, precision=precision.name, tensor_parallel=tensor, path=path)
    if known.measured_on == "emulated":
        choices.notice(
            "emulated-calibration", f"{path} was measured on an emulated engine, and does not describe a GPU"
        )
    return known.step_time(sha256_of(path))
