"""Measure real step times of an 8B geometry on the GPU at hand, with random weights.

A step-time model is only as good as the clock it was held against. This script runs the arithmetic of one
in-flight batching iteration (decode by batch and context, prefill by length) as a CUDA graph of plain PyTorch
operations, in BF16 and in FP8 (`torch._scaled_mm`, per-tensor scales), and writes one CSV row per shape. Weights
are random: their values do not change how long a step takes, their bytes do.

What it is not: TensorRT-LLM. Its kernels are fused further; expect a few per cent more here at small batches.

    python tests/gpu/measure_steps.py --out docs/measurements/steps-h100.csv
"""

from __future__ import annotations

import argparse
import csv
import datetime
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.nn import functional

FP8_MAX = 448.0  # largest finite value of float8_e4m3fn
FP8_ROWS = 16  # torch._scaled_mm wants whole tiles of rows


@dataclass(frozen=True)
class Geometry:
    """What decides the cost of a step; defaults are DeepSeek-R1-0528-Qwen3-8B's (its config.json)."""

    layers: int = 36
    hidden_size: int = 4096
    intermediate_size: int = 12288
    attention_heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    vocab_size: int = 151936


@dataclass(frozen=True)
class Shape:
    """One step to time: `batch` sequences decoding after `context_tokens`, or one prompt of `prompt_tokens`."""

    phase: str
    batch: int
    context_tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class Row:
    """One line of the CSV; times in seconds."""

    date: str
    device: str
    torch_version: str
    cuda_version: str
    precision: str
    phase: str
    batch: int
    context_tokens: int
    prompt_tokens: int
    repeats: int
    step_s_median: float
    step_s_p10: float
    step_s_p90: float


class Linear:
    """A matrix product without bias; weights in the model's own type or in FP8 with one scale."""

    def __init__(self, inputs: int, outputs: int, *, fp8: bool, dtype: torch.dtype, device: str) -> None:
        weight = torch.randn(outputs, inputs, dtype=dtype, device=device) * inputs**-0.5
        self.fp8 = fp8
        self.dtype = dtype
        if fp8:
            scale = weight.abs().max().float() / FP8_MAX
            self.weight = (weight.float() / scale).to(torch.float8_e4m3fn)
            self.scale = scale
            self.input_scale = torch.tensor(8.0 / FP8_MAX, device=device)  # calibrated in a real engine: a constant
        else:
            self.weight = weight

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `rows` times the weights; shape (tokens, inputs) -> (tokens, outputs)."""
        if not self.fp8:
            return rows @ self.weight.t()
        tokens = rows.shape[0]
        padded = functional.pad(rows, (0, 0, 0, -tokens % FP8_ROWS))
        quantized = (padded / self.input_scale.to(rows.dtype)).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        product = torch._scaled_mm(
            quantized, self.weight.t(), scale_a=self.input_scale, scale_b=self.scale, out_dtype=self.dtype
        )
        return product[:tokens]


class Layer:
    """One decoder layer: grouped-query attention over a cache, and a gated MLP."""

    def __init__(self, geometry: Geometry, *, fp8: bool, dtype: torch.dtype, device: str) -> None:
        self.geometry = geometry
        attention = geometry.attention_heads * geometry.head_size
        cached = 2 * geometry.kv_heads * geometry.head_size
        make = {"fp8": fp8, "dtype": dtype, "device": device}
        self.qkv = Linear(geometry.hidden_size, attention + cached, **make)
        self.out = Linear(attention, geometry.hidden_size, **make)
        self.gate_up = Linear(geometry.hidden_size, 2 * geometry.intermediate_size, **make)
        self.down = Linear(geometry.intermediate_size, geometry.hidden_size, **make)

    def __call__(self, hidden: torch.Tensor, cache: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Return the layer's output; `hidden` is (tokens, hidden), `cache` is None for a prompt from its start."""
        queries, keys, values = self._heads(self.qkv(_normalized(hidden)))
        attended = _attend_prompt(queries, keys, values) if cache is None else _attend_cache(queries, *cache)
        hidden = hidden + self.out(attended.reshape(hidden.shape[0], -1))
        gate, up = self.gate_up(_normalized(hidden)).chunk(2, dim=-1)
        return hidden + self.down(functional.silu(gate) * up)

    def _heads(self, projected: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        geometry = self.geometry
        heads = projected.view(projected.shape[0], -1, geometry.head_size)
        queries, keys, values = heads.split([geometry.attention_heads, geometry.kv_heads, geometry.kv_heads], dim=1)
        return _normalized(queries), _normalized(keys), values


class Model:
    """The whole stack: embedding, layers, and the output projection (16 bit, as engines keep it)."""

    def __init__(self, geometry: Geometry, *, fp8: bool, dtype: torch.dtype, device: str) -> None:
        self.geometry = geometry
        self.layers = [Layer(geometry, fp8=fp8, dtype=dtype, device=device) for _ in range(geometry.layers)]
        self.embedding = torch.randn(geometry.vocab_size, geometry.hidden_size, dtype=dtype, device=device)
        self.head = Linear(geometry.hidden_size, geometry.vocab_size, fp8=False, dtype=dtype, device=device)

    def step(
        self, tokens: torch.Tensor, caches: list[tuple[torch.Tensor, torch.Tensor]] | None, *, last_only: bool
    ) -> torch.Tensor:
        """Return the next token of each sequence (greedy); `tokens` is (tokens,)."""
        hidden = self.embedding[tokens]
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden, None if caches is None else caches[index])
        return self.head(_normalized(hidden[-1:] if last_only else hidden)).argmax(dim=-1)


def _normalized(rows: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(rows, rows.shape[-1:])


def _attend_prompt(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Causal attention of one prompt over itself; heads are (tokens, heads, size)."""
    attended = functional.scaled_dot_product_attention(
        queries.transpose(0, 1)[None],
        keys.transpose(0, 1)[None],
        values.transpose(0, 1)[None],
        is_causal=True,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)


def _attend_cache(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Attend from one new token per sequence to its cache, reading every key and value once.

    Args:
        queries: (batch, heads, size).
        keys: (batch, KV heads, context, size); `values` likewise.
    """
    batch, heads, size = queries.shape
    kv_heads = keys.shape[1]
    grouped = queries.view(batch, kv_heads, heads // kv_heads, size)
    scores = (grouped @ keys.transpose(-1, -2)) * size**-0.5
    return scores.softmax(dim=-1) @ values


def shapes(*, largest_kv_tokens: int) -> Iterator[Shape]:
    """Return the steps to time: decode by batch and context where the cache fits, prefill by length."""
    for batch in (1, 2, 4, 8, 16, 32, 64, 128, 256):
        for context_tokens in (128, 512, 1024, 2048, 4096, 8192):
            if batch * context_tokens <= largest_kv_tokens:
                yield Shape("decode", batch, context_tokens, 0)
    for prompt_tokens in (128, 256, 512, 1024, 2048, 4096, 8192):
        yield Shape("prefill", 1, 0, prompt_tokens)


def step_of(model: Model, shape: Shape, *, dtype: torch.dtype, device: str) -> Callable[[], torch.Tensor]:
    """Return a function that runs one step of `shape`, its inputs (each layer's KV cache too) on the device."""
    geometry = model.geometry
    if shape.phase == "prefill":
        prompt = torch.randint(geometry.vocab_size, (shape.prompt_tokens,), device=device)
        return lambda: model.step(prompt, None, last_only=True)
    size = (shape.batch, geometry.kv_heads, shape.context_tokens, geometry.head_size)
    caches = [
        (torch.randn(size, dtype=dtype, device=device), torch.randn(size, dtype=dtype, device=device))
        for _ in range(geometry.layers)
    ]
    tokens = torch.randint(geometry.vocab_size, (shape.batch,), device=device)
    return lambda: model.step(tokens, caches, last_only=False)


def time_on_gpu(step: Callable[[], torch.Tensor], *, repeats: int) -> list[float]:
    """Return the seconds of `repeats` replays of a step captured as a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    seconds = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000)
    return seconds


def time_on_cpu(step: Callable[[], torch.Tensor], *, repeats: int) -> list[float]:
    """Return the seconds of `repeats` runs on the CPU: to test this script, not to measure anything."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    return seconds


@torch.inference_mode()
def measure(geometry: Geometry, steps: list[Shape], *, precision: str, device: str, repeats: int) -> Iterator[Row]:
    """Time each shape and return its row; on a device too small for a shape, that shape is left out."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    clock = time_on_gpu if device == "cuda" else time_on_cpu
    model = Model(geometry, fp8=precision == "fp8", dtype=dtype, device=device)
    for shape in steps:
        seconds = sorted(clock(step_of(model, shape, dtype=dtype, device=device), repeats=repeats))
        yield Row(
            date=datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
            device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
            torch_version=torch.__version__,
            cuda_version=torch.version.cuda or "none",
            precision=precision,
            **asdict(shape),
            repeats=repeats,
            step_s_median=statistics.median(seconds),
            step_s_p10=seconds[len(seconds) // 10],
            step_s_p90=seconds[len(seconds) * 9 // 10],
        )


def main() -> None:
    """Measure BF16, and FP8 where the GPU has it, and write the CSV row by row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(
            1, "measure_steps: error: no CUDA GPU here\nhint: run it on the H100, H200 or A100 to be measured\n"
        )
    free_bytes = torch.cuda.mem_get_info()[0]
    geometry = Geometry()
    kv_bytes_per_token = 2 * 2 * geometry.layers * geometry.kv_heads * geometry.head_size
    largest = int((free_bytes - 20e9) / kv_bytes_per_token)  # 16 GB of weights, the rest for activations
    fp8_from = (8, 9)
    precisions = ["bf16", "fp8"] if torch.cuda.get_device_capability() >= fp8_from else ["bf16"]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(Row.__dataclass_fields__))
        writer.writeheader()
        for precision in precisions:
            steps = list(shapes(largest_kv_tokens=largest))
            for row in measure(geometry, steps, precision=precision, device="cuda", repeats=options.repeats):
                writer.writerow(asdict(row))
                file.flush()
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
