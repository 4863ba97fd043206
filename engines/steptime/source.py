"""Which step-time source an engine's manifest names, made ready."""

from __future__ import annotations

from engines.errors import UserError
from engines.manifest import EngineManifest
from engines.steptime.roofline import Roofline
from engines.steptime.shape import StepTime


def step_time_for(manifest: EngineManifest) -> StepTime:
    """Return what stands in for the GPU's clock, as the manifest chose it.

    Raises:
        UserError: The manifest names a source that is not to be had.
    """
    source = manifest.step_time.source
    if source == "roofline":
        return Roofline(
            manifest.model,
            manifest.gpu,
            manifest.precision.name,
            manifest.precision.kv_cache,
            tensor_parallel=manifest.parallel.tensor,
        )
    raise UserError(f"step-time source '{source}' is not to be had here", hint="--step-time roofline")
