"""Selects and prepares the step-time source that replaces the GPU."""

from __future__ import annotations

from functools import cache
from typing import Literal

from engines.errors import MissingError
from engines.manifest import EngineManifest, StepTimeChoice
from engines.spec import Factors, GpuSpec, Kernels, KvFormat, ModelSpec, PlacedModel, SpeculativeDecoding, loaded
from engines.steptime.calibrated import Calibrated
from engines.steptime.kernel_tables import version_of
from engines.steptime.roofline import Roofline
from engines.steptime.scaled import scaled
from engines.steptime.shape import StepCost, StepTime
from engines.steptime.silicon import SYSTEMS, Silicon, library_name
from engines.steptime.speculative import Drafting, Speculative

# GPUs on which measured kernels have lower held-out errors than data sheets; docs/measurements/fidelity.md has both.
SILICON_FAVOURED = ("a100-sxm-80gb", "b200-sxm-180gb", "h100-sxm-80gb", "h200-sxm-141gb")


def step_time_of(
    choice: StepTimeChoice, placed: PlacedModel, *, speculative: SpeculativeDecoding | None = None
) -> StepTime:
    """Return the chosen source, `roofline` (data sheets) or `silicon` (measured kernels), with its factors.

    Includes the server's share of the engine's loop; for the engine alone, omit the choice's host.

    Args:
        speculative: What each decode step drafts and verifies; None: one token a step.

    Raises:
        MissingError: The measured tables are not installed, or lack this GPU or format.
    """
    tokens = 1 if speculative is None else 1 + speculative.verified_tokens
    source: StepTime
    if choice.source == "roofline":
        source = Roofline(placed, step_tokens=tokens)
    else:
        source = Silicon(placed, step_tokens=tokens, kernels=choice.kernels)
    factors = loaded(choice.factors or Factors(), choice.host)
    if choice.factors is not None or choice.host is not None:
        source = Calibrated(source, factors)
    if speculative is None:
        return source
    drafting = None
    if speculative.draft is not None:
        drafting = Drafting(speculative.draft, placed, passes=speculative.draft_passes, factors=factors)
    added_s = factors.verify_s + speculative.draft_passes * factors.draft_pass_s
    if speculative.is_tree:
        added_s += factors.tree_s
    prompt_s = 0.0 if drafting is None else factors.draft_prompt_s
    return Speculative(source, drafting, added_s=added_s, prompt_s=prompt_s)


def cached_step_time(
    choice: StepTimeChoice,
    placed: PlacedModel,
    *,
    speculative: SpeculativeDecoding | None = None,
    ratios: StepCost | None = None,
) -> StepTime:
    """Return `step_time_of`, scaled by `ratios`; cached, because reading measured tables takes seconds."""
    documents = (choice, placed.model, placed.gpu, speculative)
    texts = [None if each is None else each.model_dump_json() for each in documents]
    return _made_once(*texts, placed.precision, placed.kv_format, placed.tensor_parallel, ratios)


@cache
def _made_once(
    choice: str,
    model: str,
    gpu: str,
    speculative: str | None,
    precision: str,
    kv_format: KvFormat,
    tensor_parallel: int,
    ratios: StepCost | None,
) -> StepTime:
    if ratios is not None:  # one source, and what it has looked up, serves every ratio
        return scaled(_made_once(choice, model, gpu, speculative, precision, kv_format, tensor_parallel, None), ratios)
    geometry, board = ModelSpec.model_validate_json(model), GpuSpec.model_validate_json(gpu)
    return step_time_of(
        StepTimeChoice.model_validate_json(choice),
        PlacedModel(geometry, board, precision, kv_format, tensor_parallel),
        speculative=None if speculative is None else SpeculativeDecoding.model_validate_json(speculative),
    )


def favoured_source(placed: PlacedModel, kernels: Kernels) -> tuple[Literal["roofline", "silicon"], str]:
    """Return the source with the lower held-out error for a GPU, and the reason."""
    gpu = placed.gpu
    if gpu.name not in SILICON_FAVOURED:
        return "roofline", f"no measured kernels, or not more accurate than data sheets on held-out rows of {gpu.name}"
    try:
        source = Silicon(placed, kernels=kernels)
    except MissingError as error:
        return "roofline", f"data sheets: {error.message}"
    if source.derived:
        return "roofline", f"data sheets: no measured kernels: {source.derived[0]}"
    return "silicon", f"measured kernels: more accurate than data sheets on held-out rows of {gpu.name}"


def step_time_words(choice: StepTimeChoice, gpu: str) -> str:
    """Return a source of step times; of measured kernels, with the framework and version whose kernels they are.

    >>> step_time_words(StepTimeChoice(source="roofline"), "h100-sxm-80gb")
    'roofline'
    """
    if choice.source == "roofline":
        return choice.source
    return f"{choice.source} ({choice.kernels} {version_of(library_name(choice.kernels), SYSTEMS[gpu], None)} kernels)"


def step_time_for(manifest: EngineManifest) -> StepTime:
    """Return the step-time source chosen in an engine's manifest. Raises as `step_time_of` does."""
    return step_time_of(manifest.step_time, manifest.placed, speculative=manifest.speculative)
