"""How decode attention fills a GPU where its kernel is not split along the context: one thread block a query head."""

from __future__ import annotations

from typing import NamedTuple

from engines.spec.placed_model import PlacedModel

# TensorRT-LLM's masked attention launches blocks of 256, 512 or 1,024 threads: the most that still fill the GPU
# (decoderMaskedMultiheadAttentionLaunch.h). With an FP8 cache and these head sizes, registers are bounded so that a
# multiprocessor holds four blocks of 256 (`Launch_bounds_config` in decoderMaskedMultiheadAttentionTemplate.h); with
# other caches the compiler decides how many.
FP8_BLOCKS, FP8_BLOCKS_HEAD_SIZES = 4, (64, 128)


class Waves(NamedTuple):
    """Waves of thread blocks; see `wave_sequences`, `wave_reads` and `wave_blocks` of `Factors`."""

    sequences: float
    reads: float
    blocks: int = 1

    @property
    def factors(self) -> dict[str, float]:
        """Its fields as those of `Factors`."""
        return {f"wave_{name}": value for name, value in self._asdict().items()}


SPLIT = Waves(1.0, 1.0)  # split along the context: no waves


def waves_on(placed: PlacedModel) -> Waves:
    """Return the waves of a model on a GPU, for a kernel that is not split.

    >>> from engines.spec.gpu import gpu_named
    >>> from engines.spec.model import model_named
    >>> waves_on(PlacedModel(model_named("llama-3-8b"), gpu_named("h100-sxm-80gb"), "fp8", "fp8"))
    Waves(sequences=4.125, reads=4.0, blocks=4)
    """
    model = placed.model
    full = max(1.0, placed.gpu.multiprocessors * placed.tensor_parallel / model.attention_heads)
    is_bounded = placed.kv_format == "fp8" and model.head_size in FP8_BLOCKS_HEAD_SIZES
    return Waves(full, model.attention_heads / model.kv_heads, FP8_BLOCKS if is_bounded else 1)
