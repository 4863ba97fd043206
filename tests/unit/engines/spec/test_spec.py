"""Models and GPUs against numbers published elsewhere."""

from __future__ import annotations

import pytest

from engines.errors import UserError
from engines.spec.gpu import gpu_named, known_gpus
from engines.spec.model import known_models, model_named
from engines.spec.precision import PRECISIONS, precision_named
from engines.units import GIB

PUBLISHED_PARAMETERS = {  # safetensors totals on the model cards
    "qwen3-14b": 14_768_307_200,
    "llama-2-7b": 6_738_415_616,
    "deepseek-r1-0528-qwen3-8b": 8_190_735_360,
    "qwen3-8b": 8_190_735_360,
    "llama-3-8b": 8_030_261_248,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen1.5-7b": 7_721_324_544,
    "qwen2-7b": 7_615_616_512,
    "qwen2.5-7b": 7_615_616_512,
    "gpt-j-6b": 6_050_882_784,
    "smollm2-135m": 134_515_008,
}


@pytest.mark.parametrize("name", sorted(known_models()))
def test_parameter_count_is_the_published_one(name: str) -> None:
    """Every model's geometry adds up to the parameter count its makers publish."""
    assert known_models()[name].parameters == PUBLISHED_PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "kv_format", "size_bytes"),
    [
        ("llama-3.1-8b", "fp8", 64 * 1024),
        ("llama-3.1-8b", "16bit", 128 * 1024),
        ("deepseek-r1-0528-qwen3-8b", "16bit", 144 * 1024),
        ("deepseek-r1-0528-qwen3-8b", "fp8", 72 * 1024),
        ("qwen1.5-7b", "16bit", 512 * 1024),
    ],
)
def test_kv_bytes_per_token(name: str, kv_format: str, size_bytes: int) -> None:
    """KV cache per token: 2 x layers x KV heads x head size x bytes."""
    assert model_named(name).kv_bytes_per_token(kv_format) == size_bytes  # type: ignore[arg-type]


@pytest.mark.parametrize(("precision", "size_gib"), [("bf16", 15.26), ("fp8", 8.79), ("int4_awq", 5.65)])
def test_weights_of_the_target_model(precision: str, size_gib: float) -> None:
    """The target's weights: everything at 16 bit; linears at 8 bit; linears at 4 bit in groups of 128."""
    size_bytes = model_named("deepseek-r1-0528-qwen3-8b").weights_bytes(PRECISIONS[precision])
    assert size_bytes / GIB == pytest.approx(size_gib, abs=0.11)  # 4 bit: scales of the groups come on top


def test_a_step_does_not_read_the_embedding() -> None:
    """One step reads all weights but an untied embedding; a tied one is the output projection and is read."""
    target, tied = model_named("deepseek-r1-0528-qwen3-8b"), model_named("smollm2-135m")
    bf16 = PRECISIONS["bf16"]
    assert target.weights_bytes(bf16) - target.read_bytes_per_step(bf16) == 2 * 151_936 * 4096
    assert tied.weights_bytes(bf16) == tied.read_bytes_per_step(bf16)


@pytest.mark.parametrize("name", ["llama-3-8b-instruct", "Qwen/Qwen3-8B", "MISTRAL-7B"])
def test_models_answer_to_the_names_people_use(name: str) -> None:
    """Hugging Face ids, names of published tables and any case find the model."""
    assert model_named(name).parameters > 7e9


@pytest.mark.parametrize("name", ["H100-SXM-80GB", "H200-SXM-141GB", "A100-SXM-80GB", "A100-PCIE-80GB", "L40S"])
def test_gpus_answer_to_the_names_of_published_tables(name: str) -> None:
    """The GPU names of published measurements find the GPU."""
    assert gpu_named(name).dense_flops["bf16"] >= 312e12


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: model_named("qwen3-8"), "did you mean 'qwen3-8b'?"),
        (lambda: gpu_named("h100-sxm-80"), "did you mean 'h100-sxm-80gb'?"),
        (lambda: precision_named("int8sq"), "did you mean 'int8_sq'?"),
    ],
)
def test_unknown_names_suggest_the_nearest(call: object, hint: str) -> None:
    """An unknown model, GPU or precision is refused with the nearest known one."""
    with pytest.raises(UserError) as caught:
        call()  # type: ignore[operator]
    assert caught.value.hint == hint


def test_arithmetic_follows_the_architecture() -> None:
    """FP8 needs compute capability 8.9 and FP4 needs 10.0: no older GPU lists a peak for them."""
    for gpu in known_gpus().values():
        assert ("fp8" in gpu.dense_flops) == (gpu.sm >= 89)
        assert ("fp4" in gpu.dense_flops) == (gpu.sm >= 100)
