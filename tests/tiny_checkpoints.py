"""Random Hugging Face checkpoints of every family, small enough to quantize in a fraction of a second."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.checkpoint.calibration_text import TextWindows
from engines.checkpoint.inspection import library
from engines.checkpoint.library_output import library_output_to

VOCABULARY = 256
WINDOWS = TextWindows(
    tuple(
        " ".join(f"w{(7 * document + 11 * word * word) % VOCABULARY}" for word in range(32)) for document in range(8)
    ),
    windows=4,
    tokens=24,
    origin="the test",
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "attn_factor": 0.88}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 32, "rope_parameters": {"rope_theta": 1_000_000.0, **YARN}, "rms_norm_eps": 1e-6},
    "llama": {"rope_parameters": {"rope_theta": 500_000.0, **LLAMA3}, "rms_norm_eps": 1e-5},
    "llama_tied": {"tie_word_embeddings": True, "attention_bias": True, "rope_parameters": {"rope_theta": 10_000.0}},
    "qwen2": {"rope_parameters": {"rope_theta": 1_000_000.0}, "use_sliding_window": False},
    "mistral": {"rope_parameters": {"rope_theta": 10_000.0, "rope_type": "linear", "factor": 2.0}, "head_dim": 16},
}
CLASSES = {"qwen3": "Qwen3", "llama": "Llama", "llama_tied": "Llama", "qwen2": "Qwen2", "mistral": "Mistral"}


def write_model(folder: Path, name: str, **geometry: Any) -> Path:
    """Write a random two-layer model with a word-level tokenizer.

    Args:
        geometry: Configuration that differs from the model's own.
    """
    torch = library("torch")
    with library_output_to(None):
        transformers = library("transformers")
        config = getattr(transformers, f"{CLASSES[name]}Config")(
            vocab_size=VOCABULARY,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.15,
            bos_token_id=1,
            eos_token_id=2,
            sliding_window=None,
            **{"hidden_size": 64, "intermediate_size": 128, **MODELS[name], **geometry},
        )
        torch.manual_seed(0)
        model = getattr(transformers, f"{CLASSES[name]}ForCausalLM")(config)
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms and biases start out as ones and zeros, which would hide a mix-up
                parameter.data += 0.2 * torch.randn_like(parameter)
        model.to(torch.bfloat16).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_random(folder: Path, config: dict[str, Any], *, scale: float) -> Path:
    """Write random BF16 weights of a configuration under Hugging Face's names, and the configuration; no tokenizer.

    Unlike `write_model`, it needs no class of transformers: for the models that the tests build through the commands.

    Args:
        config: Of a model with a gated MLP: `config.json`.
        scale: Standard deviation of the weights; norms are ones.
    """
    from safetensors.torch import save_file  # noqa: PLC0415 (loads PyTorch, which few tests need)

    folder.mkdir(exist_ok=True)
    save_file(_random_weights(config, scale), str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _random_weights(config: dict[str, Any], scale: float) -> dict[str, Any]:
    words, hidden, inner = config["vocab_size"], config["hidden_size"], config["intermediate_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim", hidden // heads)
    torch = library("torch")
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> Any:
        return (scale * torch.randn(shape, generator=generator)).to(torch.bfloat16)

    def ones(size: int) -> Any:
        return torch.ones(size, dtype=torch.bfloat16)

    tensors = {"model.embed_tokens.weight": matrix(words, hidden), "lm_head.weight": matrix(words, hidden)}
    tensors["model.norm.weight"] = ones(hidden)
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        for name, shape in {
            "self_attn.q_proj": (heads * head, hidden),
            "self_attn.k_proj": (kv_heads * head, hidden),
            "self_attn.v_proj": (kv_heads * head, hidden),
            "self_attn.o_proj": (hidden, heads * head),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }.items():
            tensors[f"{layer}.{name}.weight"] = matrix(*shape)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{layer}.{norm}.weight"] = ones(hidden)
        for norm in ("q_norm", "k_norm") if config["model_type"] == "qwen3" else ():
            tensors[f"{layer}.self_attn.{norm}.weight"] = ones(head)
    return tensors


def write_tokenizer_of(text: Path, folder: Path, *, words: int) -> None:
    """Write a byte-level tokenizer of a text's most frequent words."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: PLC0415

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=words, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(text)], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer whose words are w0, w1, ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415

    words = {f"w{word}": word for word in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
