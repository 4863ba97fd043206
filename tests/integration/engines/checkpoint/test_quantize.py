"""Real exports of tiny models: written, mended, read back tensor by tensor, and judged."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engines.checkpoint.export_config import mend_config
from engines.checkpoint.export_job import ExportJob
from engines.checkpoint.gguf import name_special_tokens, unpack
from engines.checkpoint.inspection import inspect_checkpoint, library
from engines.checkpoint.library_output import library_output_to
from engines.checkpoint.quantization import quantize, quantizing_memory_bytes
from engines.checkpoint.trtllm_checkpoint import read_exported
from engines.checkpoint.verification import (
    SourceWeights,
    exported_geometry_of,
    geometry_of,
    logits,
    round_nvfp4,
    verify,
)
from engines.checkpoint.weight_formats import round_int8_weight
from engines.errors import MissingError, ToolError, UserError
from engines.files import MadeBy
from engines.spec.precision import KvFormat
from tests.late import Late
from tests.tiny_checkpoints import MODELS, WINDOWS, write_model
from triton_repo.models.text import SpecialTokens, load_tokenizer, special_tokens

Late("modelopt", "quantize")
torch, tensor_files = Late("torch", "quantize"), Late("safetensors.torch", "quantize")
# The models by name, each with the geometry that differs from its own.
WIDE = {"hidden_size": 128, "intermediate_size": 256}
NAMES: dict[str, dict[str, int]] = {**{name: {} for name in MODELS}, "qwen3_wide": WIDE, "llama_wide": WIDE}

# How far a weight may be off by its format, relative to the root mean square of its matrix.
WEIGHT_ERROR = {
    "bf16": 0.0,
    "fp16": 1e-3,
    "fp8": 0.04,
    "int8_wo": 0.01,
    "int8_sq": 0.02,
    "int4_awq": 0.15,
    "w4a8_awq": 0.16,
    "nvfp4": 0.15,
}
Make = Callable[[str], Path]


@dataclass(frozen=True)
class Export:
    """An exported checkpoint, its source, and what was said about it."""

    source: Path
    folder: Path
    notices: list[str]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a tiny random model by name, once."""
    made: dict[str, Path] = {}

    def make_once(name: str) -> Path:
        if name not in made:
            made[name] = write_model(tmp_path_factory.mktemp(name) / name, name.removesuffix("_wide"), **NAMES[name])
        return made[name]

    return make_once


def export(
    source: Path, out: Path, precision: str, kv_cache: KvFormat = "16bit", *, tensor: int = 1, pipeline: int = 1
) -> Export:
    """Quantize on the test's text."""
    job = ExportJob(
        source=source,
        precision=precision,
        kv_cache=kv_cache,
        calibration=WINDOWS,
        seed=0,
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
    )
    notices = quantize(job, out, progress=lambda _: None, log=out.with_suffix(".log"))
    return Export(source, out, [f"{notice.code}: {notice.text}" for notice in notices])


def effective_weights(weights: Any, index: int) -> dict[str, Any]:
    """Return a layer's matrices with what their input is multiplied by folded in."""
    layer = weights.layer(index)
    linears = {name: getattr(layer, name) for name in ("qkv", "dense", "gate", "up", "down")}
    return {
        name: linear.weight if linear.input_factor is None else linear.weight * linear.input_factor
        for name, linear in linears.items()
    }


@pytest.mark.parametrize("name", sorted(NAMES))
def test_forward_pass_equals_transformers(make: Make, name: str) -> None:
    """The reference forward pass gives transformers' logits, every architecture, rope scaling and bias."""
    folder = make(name)
    facts = inspect_checkpoint(folder)
    tokens = torch.tensor(WINDOWS.token_windows(folder / "tokenizer.json"))
    with library_output_to(None):
        transformers = library("transformers")
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.inference_mode():
            expected = model.eval()(tokens).logits
    ours = logits(SourceWeights(folder, facts), tokens, geometry_of(facts))
    assert expected.std() > 0.5
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "kv_cache"),
    [
        ("bf16", "16bit"),
        ("fp16", "16bit"),
        ("fp8", "fp8"),
        ("int8_wo", "int8"),
        ("int8_sq", "16bit"),
        ("int4_awq", "16bit"),
        ("w4a8_awq", "fp8"),
        ("nvfp4", "fp8"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_export_holds_the_source_within_its_format(
    make: Make, tmp_path: Path, name: str, precision: str, kv_cache: KvFormat
) -> None:
    """Each precision's export, read back, is the source's weights within the format's error, and is judged so."""
    wide = "_wide" if precision == "w4a8_awq" else ""  # groups of 128 alone
    made = export(make(name + wide), tmp_path / "out", precision, kv_cache)
    facts = inspect_checkpoint(made.source)
    checkpoint = read_exported(made.folder)
    assert checkpoint.config["rotary_base"] == facts.rope.base
    for index in range(facts.layers):
        expected = effective_weights(SourceWeights(made.source, facts), index)
        for kind, found in effective_weights(checkpoint, index).items():
            error = (found - expected[kind]).square().mean().sqrt() / expected[kind].square().mean().sqrt()
            assert float(error) <= WEIGHT_ERROR[precision], (index, kind)
    quality = verify(made.source, made.folder, held_out=WINDOWS, progress=lambda _: None)
    assert quality.tokens == 4 * 23
    assert quality.kl_divergence_nats < 0.5  # random weights, narrow layers: real models lose far less
    if precision == "bf16":
        assert quality.kl_divergence_nats < 1e-6
        assert quality.top1_agreement_ratio == 1
        assert quality.perplexity_quantized == pytest.approx(quality.perplexity_source, rel=1e-5)
    elif precision != "fp16":
        assert quality.kl_divergence_nats > 1e-6  # something was rounded: the judge looks at the export, not the source


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("precision", ["fp8", "int8_sq", "nvfp4"])
def test_ranks_join_to_the_whole(make: Make, tmp_path: Path, precision: str, tensor: int, pipeline: int) -> None:
    """An export split over ranks joins to what an export for one GPU holds."""
    whole = read_exported(export(make("qwen3"), tmp_path / "whole", precision).folder)
    split = read_exported(export(make("qwen3"), tmp_path / "split", precision, tensor=tensor, pipeline=pipeline).folder)
    assert len(split.ranks) == tensor * pipeline
    torch.testing.assert_close(split.embedding(), whole.embedding())
    torch.testing.assert_close(split.head(), whole.head())
    for index in range(2):
        expected = effective_weights(whole, index)
        for kind, found in effective_weights(split, index).items():
            torch.testing.assert_close(found, expected[kind], msg=f"layer {index}, {kind}")


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_simulation_equals_modelopts_own(make: Make, tmp_path: Path, name: str) -> None:
    """Computed from the export, the logits are those of ModelOpt's own simulation in the model it quantized."""
    folder = make(name)
    facts = inspect_checkpoint(folder)
    tokens = torch.tensor(WINDOWS.token_windows(folder / "tokenizer.json"))
    with library_output_to(None), torch.inference_mode():
        model = library("transformers").AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
        mtq = library("modelopt.torch.quantization")
        model = mtq.quantize(model.eval(), mtq.FP8_DEFAULT_CFG, forward_loop=lambda calibrated: calibrated(tokens))
        decoder = "qwen" if name == "qwen3" else "llama"
        library("modelopt.torch.export").export_tensorrt_llm_checkpoint(
            model, decoder, torch.bfloat16, tmp_path, inference_tensor_parallel=1
        )
        theirs = model.float()(tokens).logits
    mend_config(tmp_path, facts, precision="fp8", kv_cache="16bit")
    checkpoint = read_exported(tmp_path)
    ours = logits(checkpoint, tokens, exported_geometry_of(checkpoint))
    plain = logits(SourceWeights(folder, facts), tokens, geometry_of(facts))
    assert (ours - theirs).square().mean() < 0.03 * (ours - plain).square().mean()


def test_dropped_rotary_base_is_mended(make: Make, tmp_path: Path) -> None:
    """ModelOpt leaves Qwen3's rotary_base and YaRN out; both are put back, and said."""
    made = export(make("qwen3"), tmp_path / "out", "fp8")
    config = json.loads((made.folder / "config.json").read_text())
    assert config["rotary_base"] == 1_000_000.0
    assert config["rotary_scaling"]["factor"] == 4.0
    assert config["rotary_scaling"]["type"] == "yarn"
    assert config["qk_layernorm"] is True
    assert config["attn_bias"] is False
    assert any(said.startswith("export-mended") and "rotary_base" in said for said in made.notices)


def test_a_config_written_by_tensorrt_llms_own_class_is_held_to_the_source(make: Make, tmp_path: Path) -> None:
    """Where TensorRT-LLM is installed, ModelOpt lets its config class write; that of 0.17 did not know head_dim."""
    made = export(make("qwen3"), tmp_path / "out", "bf16")
    path = made.folder / "config.json"
    theirs = {"head_size": 16, "rotary_embedding_dim": 16, "seq_length": 8192, "tie_word_embeddings": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | theirs))
    notices = mend_config(made.folder, inspect_checkpoint(made.source), precision="bf16", kv_cache="16bit")
    config = json.loads(path.read_text())
    assert (config["head_size"], config["rotary_embedding_dim"], config["seq_length"]) == (32, 32, 8192)
    assert sorted(notice.text.split()[3] for notice in notices) == ["head_size", "rotary_embedding_dim"]


def test_mended_config_changes_the_verdict(make: Make, tmp_path: Path) -> None:
    """The judge reads the export's own config: take rotary_base away again and the KL divergence shows it."""
    made = export(make("llama"), tmp_path / "out", "bf16")
    path = made.folder / "config.json"
    config = json.loads(path.read_text())
    del config["rotary_base"]
    path.write_text(json.dumps(config))
    quality = verify(made.source, made.folder, held_out=WINDOWS, progress=lambda _: None)
    assert quality.kl_divergence_nats > 0.001


def test_wrong_structure_is_not_mended(make: Make, tmp_path: Path) -> None:
    """A hidden size that is not the source's means other weights: refused, not mended."""
    made = export(make("llama"), tmp_path / "out", "bf16")
    path = made.folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 128}))
    facts = inspect_checkpoint(made.source)
    with pytest.raises(ToolError, match="hidden_size = 128"):
        mend_config(made.folder, facts, precision="bf16", kv_cache="16bit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("transformer.layers.1.mlp.fc.weights_scaling_factor"), "fc.weights_scal.*missing"),
        (lambda tensors: tensors.update({"transformer.layers.1.odd": torch.ones(1)}), "layers.1.odd' unknown"),
        (lambda tensors: tensors.update({"transformer.ln_f.weight": torch.ones(3)}), "ln_f.weight' is F32 .3."),
    ],
)
def test_every_tensor_is_accounted_for(make: Make, tmp_path: Path, change: Callable[..., None], message: str) -> None:
    """A tensor too few, too many or misshapen is named."""
    made = export(make("llama"), tmp_path / "out", "fp8")
    path = made.folder / "rank0.safetensors"
    tensors = tensor_files.load_file(path)
    change(tensors)
    tensor_files.save_file(tensors, path)
    with pytest.raises(ToolError, match=message):
        verify(made.source, made.folder, held_out=WINDOWS, progress=lambda _: None)


def test_missing_rank_is_refused(make: Make, tmp_path: Path) -> None:
    """A rank's file that is not there is named."""
    made = export(make("llama"), tmp_path / "out", "bf16", tensor=2)
    (made.folder / "rank1.safetensors").unlink()
    with pytest.raises(MissingError, match="rank1"):
        read_exported(made.folder)


def test_same_seed_same_bytes(make: Make, tmp_path: Path) -> None:
    """Two exports of one seed hold the same tensors."""
    first = tensor_files.load_file(export(make("qwen3"), tmp_path / "a", "int4_awq").folder / "rank0.safetensors")
    second = tensor_files.load_file(export(make("qwen3"), tmp_path / "b", "int4_awq").folder / "rank0.safetensors")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_heads_must_divide_over_gpus(make: Make, tmp_path: Path) -> None:
    """Two KV heads cannot be split over four GPUs."""
    with pytest.raises(UserError, match="2 KV heads do not divide over 4"):
        export(make("llama"), tmp_path / "out", "fp8", tensor=4)


def test_w4a8_in_groups_of_64_is_refused_before_any_work(make: Make, tmp_path: Path) -> None:
    """TensorRT-LLM has no W4A8 kernel for groups of 64: where 128 does not divide a layer, nothing is begun."""
    with pytest.raises(UserError, match="a multiple of 128; they are 64, 64, 128 wide"):
        export(make("llama"), tmp_path / "out", "w4a8_awq", "fp8")
    assert not (tmp_path / "out").exists()


def test_eight_bit_weights_are_rounded_as_tensorrt_llm_rounds_them() -> None:
    """Steps of a channel's largest magnitude over 128, saturating at 127 of them; worked by hand from its C++."""
    weight = torch.tensor([[1.0, -0.5, 0.3], [-2.0, 1.999, 0.0], [0.0, 0.0, 0.0]])
    wanted = torch.tensor([[127 / 128, -0.5, 38 / 128], [-2.0, 127 / 64, 0.0], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(round_int8_weight(weight), wanted)


def test_smaller_groups_are_said(make: Make, tmp_path: Path) -> None:
    """Where 128 does not divide a layer, groups of 64 are used and the reader is told."""
    made = export(make("llama"), tmp_path / "out", "int4_awq")
    assert any(said.startswith("group-size") for said in made.notices)
    with safe_open(made.folder / "rank0.safetensors", framework="pt") as file:
        assert file.get_slice("transformer.layers.0.mlp.proj.weights_scaling_factor").get_shape() == [64, 2]


def test_library_chatter_goes_to_the_log(make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What ModelOpt prints is in the log, and nowhere else."""
    export(make("llama"), tmp_path / "out", "fp8")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err == ""
    assert "quantizers" in (tmp_path / "out.log").read_text()


def test_nvfp4_rounds_to_the_nearest() -> None:
    """Rounding a group whose scale is 1 finds the nearest E2M1 number, ties to the even one."""
    grid = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values = torch.linspace(0.01, 6, 15).tolist()
    group = torch.tensor([*values, 6.0])
    nearest = grid[(group[:, None] - grid).abs().argmin(-1)]
    torch.testing.assert_close(round_nvfp4(group, 1.0), nearest)
    torch.testing.assert_close(round_nvfp4(-group, 1.0), -nearest)


def test_peak_memory_grows_with_the_model(make: Make) -> None:
    """The estimate covers at least the model at 16 bit and its export."""
    facts = inspect_checkpoint(make("qwen3"))
    large = facts.model_copy(update={"parameters": 8_190_735_360, "vocab_size": 151_936, "hidden_size": 4096})
    assert quantizing_memory_bytes(large, "fp8") > 2 * 8_190_735_360 + 8_190_735_360 * 0.85
    assert (
        quantizing_memory_bytes(large, "bf16")
        > quantizing_memory_bytes(large, "fp8")
        > quantizing_memory_bytes(facts, "fp8")
    )


def test_an_unpacked_tokenizer_ends_with_the_models_end_token(tmp_path: Path) -> None:
    """Transformers 5.14 takes SmolLM2's end token for the one that begins a turn: replies would not end."""
    transformers = library("transformers")
    vocabulary = {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}
    whole = Tokenizer(WordLevel(vocabulary, unk_token="<|endoftext|>"))
    read = transformers.PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<|im_start|>")
    name_special_tokens(read, transformers.LlamaConfig(bos_token_id=1, eos_token_id=2, pad_token_id=2))
    read.save_pretrained(tmp_path)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 2)
    assert special_tokens(tmp_path, load_tokenizer(tmp_path)) == SpecialTokens(end_id=2, pad_id=2)


def test_unpack_refuses_what_is_not_gguf(tmp_path: Path) -> None:
    """A file that is not there, or not GGUF, is refused and leaves nothing behind."""
    with pytest.raises(MissingError, match="no such file"):
        unpack(tmp_path / "model.gguf", tmp_path / "out", made_by=MadeBy(command="unpack-checkpoint", version="0"))
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a GGUF file"):
        unpack(tmp_path / "model.gguf", tmp_path / "out", made_by=MadeBy(command="unpack-checkpoint", version="0"))
    assert not (tmp_path / "out").exists()
