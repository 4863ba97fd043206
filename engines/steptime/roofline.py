"""Step time from data sheets: bytes over bandwidth, operations over arithmetic, and efficiencies.

The floor of a step is physics: read every weight once, read each sequence's KV cache once, multiply. Real engines miss
that floor by efficiencies and by a launch gap before every kernel; these are the constants below, one set per GPU
generation, named so that a calibration can replace each. Host times come from an engine profile or a calibration.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.spec import KV_BYTES, SIXTEEN_BIT_BYTES, GpuSpec, ModelSpec, PlacedModel, precision_named
from engines.steptime.products import products_of
from engines.steptime.shape import DecodeLine, StepCost, StepShape, in_order

# Reads and writes of a token's hidden state between the GEMMs of a layer: norms, rope, quantization.
ACTIVATION_PASSES = 14
LOGITS_BYTES = 4
SAMPLING_PASSES = 3  # softmax, penalties, selection
ALL_REDUCES_PER_LAYER = 2
# Overlap of reading the weights and multiplying: 1 would be none, infinity complete. TensorRT-LLM 0.9's published
# prompts of 128 to 4,096 tokens (Mistral 7B, H100 and A100) are near 1.5.
OVERLAP_POWER = 1.5


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Efficiency of an engine relative to the data sheet; ratios in (0, 1], seconds.

    Attributes:
        weights_bandwidth: Share of peak bandwidth while reading weights.
        kv_bandwidth: Share of peak bandwidth while reading the KV cache.
        gemm: Share of peak arithmetic in large matrix products.
        attention: Share of 16-bit peak arithmetic in prompt attention.
        layer_s: Launch gaps and small kernels of one layer, independent of the batch.
    """

    weights_bandwidth: float
    kv_bandwidth: float
    gemm: float
    attention: float
    layer_s: float


# `layer_s` is the remainder of TensorRT-LLM 0.9's published milliseconds per token of Mistral 7B at batch 1 after
# reading the weights (6.77 at FP16 and 4.33 at FP8 on an H100, 11.2 on an A100). All others are fitted to the maximum
# loads published for 0.15 and 0.17 (Mistral 7B; H100 and H200, A100, L40S), with a mean error of 3 %:
# validation/trtllm-bench.
HOPPER = Efficiency(0.862, 0.926, 0.675, 0.515, 50e-6)
AMPERE = Efficiency(0.802, 0.908, 0.797, 0.439, 65e-6)
ADA = Efficiency(0.796, 0.886, 0.561, 0.763, 65e-6)
_BY_GENERATION = {"8.0": AMPERE, "8.9": ADA, "9.0": HOPPER}
# A CPU's peaks are measured (describe-machine): its libraries reach them in large products. `layer_s`: dispatching a
# layer's dozen operators, and what `attention` stays below the products, assumed until a calibration says better.
CPU = Efficiency(1.0, 1.0, 1.0, 0.5, 1e-4)


def efficiency_of(gpu: GpuSpec) -> Efficiency:
    """Return the constants of a GPU's generation, or a CPU's; Blackwell uses Hopper's until measured.

    If the peaks were measured, an engine reaches them; attention keeps its ratio to matrix products.
    """
    if gpu.device == "cpu":
        return CPU
    stated = _BY_GENERATION.get(gpu.compute_capability, HOPPER)
    if gpu.peaks == "stated":
        return stated
    return Efficiency(1.0, 1.0, 1.0, stated.attention / stated.gemm, stated.layer_s)


class Roofline:
    """Step time of a model on its GPUs, from the data sheet.

    Args:
        efficiency: None: the constants of the GPU's generation.
        step_tokens: Tokens that each decoding sequence computes in a step: 1, and its draft with speculation. Their
            queries read the sequence's cache together, once.
    """

    def __init__(self, placed: PlacedModel, *, efficiency: Efficiency | None = None, step_tokens: int = 1) -> None:
        model, gpu, tensor_parallel = placed.model, placed.gpu, placed.tensor_parallel
        self._step_tokens = step_tokens
        chosen = precision_named(placed.precision)
        self.efficiency = eff = efficiency or efficiency_of(gpu)
        bandwidth = gpu.bandwidth_bytes_per_s * tensor_parallel
        rest_flops = gpu.dense_flops[chosen.rest_arithmetic]
        head_flops = rest_flops * tensor_parallel * eff.gemm
        self._products = products_of(model, gpu, chosen, tensor_parallel=tensor_parallel)
        self.weights_s = (
            model.read_bytes_per_step(chosen) / (bandwidth * eff.weights_bandwidth)
            if self._products is None
            else self._products.min_s
        )
        linear_flops = gpu.dense_flops[chosen.arithmetic] * tensor_parallel * eff.gemm
        self.linear_s_per_token = 2 * model.linear_parameters / linear_flops
        self.head_s_per_token = 2 * model.head_parameters / head_flops
        kv_bytes = 2 * model.layers * model.kv_size * KV_BYTES[placed.kv_format]
        self.kv_s_per_token = kv_bytes / (bandwidth * eff.kv_bandwidth)
        pair_flops = 4 * model.layers * model.attention_size  # two for q.k, two for p.v, each element
        self.attention_s_per_pair = pair_flops / (rest_flops * tensor_parallel * eff.attention)
        hidden_bytes = model.layers * model.hidden_size * chosen.rest_bytes * ACTIVATION_PASSES
        moved_bytes = hidden_bytes + model.qk_norm_bytes_per_token * chosen.rest_bytes / SIXTEEN_BIT_BYTES
        self.activation_s_per_token = moved_bytes / (bandwidth * eff.kv_bandwidth)
        logits_bytes = model.vocab_size * LOGITS_BYTES * SAMPLING_PASSES
        self.sampling_s_per_sequence = logits_bytes / (gpu.bandwidth_bytes_per_s * eff.kv_bandwidth)
        self.launch_s = model.layers * eff.layer_s
        self.onboard_s_per_token = kv_bytes / gpu.interconnect_bytes_per_s
        self.reduce_s_per_token = _reduce_s(model, gpu, tensor_parallel)

    def cost(self, shape: StepShape) -> StepCost:
        """Return the seconds of one iteration by cause."""
        decoded = shape.decode_sequences * self._step_tokens
        sequences, tokens = decoded + shape.prefill_sequences, decoded + shape.prefill_tokens
        if self._products is None:
            gemm_s = tokens * self.linear_s_per_token + sequences * self.head_s_per_token
            product_s = _overlapped(self.weights_s, gemm_s)
        else:
            product_s = self._products.seconds(tokens, sequences)
        return StepCost(
            weights_s=self.weights_s,
            gemm_s=product_s - self.weights_s,
            kv_read_s=shape.decode_context_tokens * self.kv_s_per_token,
            attention_s=shape.prefill_attended_tokens * self.attention_s_per_pair,
            activations_s=tokens * self.activation_s_per_token,
            communication_s=tokens * self.reduce_s_per_token,
            launch_s=self.launch_s,
            sampling_s=sequences * self.sampling_s_per_sequence,
            onboard_s=shape.onboarded_tokens * self.onboard_s_per_token,
        )

    def seconds(self, shape: StepShape) -> float:
        """Return the seconds of one iteration."""
        return in_order(self.cost(shape))

    def decode_line(self, decode_sequences: int, decode_context_tokens: int) -> DecodeLine:  # noqa: ARG002 (linear)
        """Return the line of pure decode steps, which is linear in the context everywhere."""
        return DecodeLine(self.seconds(StepShape(decode_sequences=decode_sequences)), self.kv_s_per_token)


def _overlapped(reading_s: float, arithmetic_s: float) -> float:
    """Return the time of two partly overlapping activities; the overlap is imperfect where their times are similar."""
    return float((reading_s**OVERLAP_POWER + arithmetic_s**OVERLAP_POWER) ** (1 / OVERLAP_POWER))


def _reduce_s(model: ModelSpec, gpu: GpuSpec, tensor_parallel: int) -> float:
    """Return one token's share of the all-reduces of all layers in seconds: a ring moves 2 (n - 1) / n of it."""
    ring = 2 * (tensor_parallel - 1) / tensor_parallel
    per_layer = ALL_REDUCES_PER_LAYER * model.hidden_size * SIXTEEN_BIT_BYTES * ring
    return model.layers * per_layer / gpu.interconnect_bytes_per_s
