"""Which step-time source stands in for the GPU's clock, made ready."""

from __future__ import annotations

from engines.manifest import EngineManifest, StepTimeChoice
from engines.spec import Factors, GpuSpec, KvFormat, ModelSpec, loaded
from engines.steptime.calibrated import Calibrated
from engines.steptime.roofline import Roofline
from engines.steptime.shape import StepTime
from engines.steptime.silicon import Silicon


def step_time_of(
    choice: StepTimeChoice, model: ModelSpec, gpu: GpuSpec, precision: str, kv_format: KvFormat, *, tensor_parallel: int
) -> StepTime:
    """Return the chosen source, `roofline` (data sheets) or `silicon` (measured kernels), and its factors before it.

    What the server above takes from the engine's loop is in; leave the choice's host out for the engine alone.

    Raises:
        MissingError: The measured tables are not here, or have nothing of this GPU or format.
    """
    made = Roofline if choice.source == "roofline" else Silicon
    source: StepTime = made(model, gpu, precision, kv_format, tensor_parallel=tensor_parallel)
    if choice.factors is None and choice.host is None:
        return source
    return Calibrated(source, loaded(choice.factors or Factors(), choice.host))


def step_time_for(manifest: EngineManifest) -> StepTime:
    """Return what stands in for the GPU's clock, as an engine's manifest chose it; errors as `step_time_of`."""
    return step_time_of(
        manifest.step_time,
        manifest.model,
        manifest.gpu,
        manifest.precision.name,
        manifest.precision.kv_cache,
        tensor_parallel=manifest.parallel.tensor,
    )
