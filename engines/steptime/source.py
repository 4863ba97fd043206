"""Which step-time source stands in for the GPU's clock, made ready."""

from __future__ import annotations

from engines.errors import UserError
from engines.manifest import EngineManifest
from engines.spec.gpu import GpuSpec
from engines.spec.model import ModelSpec
from engines.spec.precision import KvFormat
from engines.steptime.calibrated import Calibrated
from engines.steptime.roofline import Roofline
from engines.steptime.shape import StepTime
from engines.steptime.silicon import Silicon


def step_time_of(
    source: str, model: ModelSpec, gpu: GpuSpec, precision: str, kv_format: KvFormat, *, tensor_parallel: int = 1
) -> StepTime:
    """Return a step-time source by name: `roofline` (data sheets) or `silicon` (measured kernels).

    Raises:
        UserError: There is no such source.
        MissingError: The measured tables are not here, or have nothing of this GPU or format.
    """
    if source == "roofline":
        return Roofline(model, gpu, precision, kv_format, tensor_parallel=tensor_parallel)
    if source == "silicon":
        return Silicon(model, gpu, precision, kv_format, tensor_parallel=tensor_parallel)
    raise UserError(f"step-time source '{source}' is not to be had here", hint="--step-time roofline")


def step_time_for(manifest: EngineManifest) -> StepTime:
    """Return what stands in for the GPU's clock, as an engine's manifest chose it; errors as `step_time_of`."""
    source = step_time_of(
        manifest.step_time.source,
        manifest.model,
        manifest.gpu,
        manifest.precision.name,
        manifest.precision.kv_cache,
        tensor_parallel=manifest.parallel.tensor,
    )
    factors = manifest.step_time.factors
    return source if factors is None else Calibrated(source, factors)
