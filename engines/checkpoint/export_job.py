"""Settings of an export and the layout of its weights: the split over GPUs and the quantization groups."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from engines.checkpoint.calibration_text import TextWindows
from engines.checkpoint.inspection import CheckpointFacts, inspect_checkpoint
from engines.errors import UserError
from engines.manifest import Notice
from engines.spec import Backend, KvFormat, group_size_for, precision_named


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportJob:
    """An export to write.

    Attributes:
        source: Folder of the Hugging Face checkpoint.
        calibration: Text for measuring activation ranges; not read if nothing has to be measured.
        seed: Seed of torch's generator; the caller's generator state is restored.
    """

    source: Path
    precision: str
    kv_cache: KvFormat
    calibration: TextWindows
    seed: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1


@dataclass(frozen=True, slots=True)
class Layout:
    """How the weights of an export are stored.

    Attributes:
        group_size: Weights along the input that share a scale; 0 without groups.
    """

    facts: CheckpointFacts
    precision: str
    kv_cache: KvFormat
    group_size: int
    tensor_parallel: int
    pipeline_parallel: int

    @property
    def dtype(self) -> Literal["float16", "bfloat16"]:
        """Return the 16-bit type that the model is loaded in."""
        return "float16" if self.precision == "fp16" else "bfloat16"

    @property
    def needs_text(self) -> bool:
        """Return whether ModelOpt needs calibration text."""
        return self.kv_cache != "16bit" or self.precision not in {"bf16", "fp16", "int8_wo"}


def layout_of(job: ExportJob, backend: Backend) -> Layout:
    """Return the layout of a job's weights.

    Raises:
        UserError: The checkpoint cannot be split or grouped as requested.
    """
    facts = inspect_checkpoint(job.source, hash_files=False)
    if facts.activation != "silu":
        raise UserError(f"{facts.name}: activation {facts.activation} is not supported", hint="known: silu")
    divided = {
        "attention heads": (facts.attention_heads, job.tensor_parallel),
        "KV heads": (facts.kv_heads, job.tensor_parallel),
        "intermediate size": (facts.intermediate_size, job.tensor_parallel),
        "layers": (facts.layers, job.pipeline_parallel),
    }
    for what, (count, ranks) in divided.items():
        if count % ranks:
            raise UserError(
                f"{facts.name}: {count} {what} do not divide over {ranks} GPUs", hint="lower --tp or --pp to a divisor"
            )
    precision = precision_named(job.precision)
    return Layout(
        facts=facts,
        precision=precision.name,
        kv_cache=job.kv_cache,
        group_size=group_size_for(
            precision,
            name=facts.name,
            inputs=(facts.hidden_size, facts.attention_heads * facts.head_size, facts.intermediate_size),
            tensor_parallel=job.tensor_parallel,
            backend=backend,
        ),
        tensor_parallel=job.tensor_parallel,
        pipeline_parallel=job.pipeline_parallel,
    )


def group_notices(layout: Layout) -> list[Notice]:
    """Return a notice if the quantization group size is not the usual one."""
    usual = precision_named(layout.precision).group_size
    if layout.group_size == usual:
        return []
    text = (
        f"{layout.precision} weights share a scale in groups of {layout.group_size}, not {usual}: "
        f"this model's linear layers do not divide by {usual}"
    )
    return [Notice(code="group-size", text=text)]
