"""Stands in for convert_checkpoint.py of Qwen: TensorRT-LLM's tensor names, from a Hugging Face checkpoint of Qwen3.

Source of the names:
    TensorRT-LLM 1.2, tensorrt_llm/models/qwen/convert.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

LAYER = {
    "self_attn.o_proj.weight": "attention.dense.weight",
    "self_attn.q_norm.weight": "attention.q_layernorm.weight",
    "self_attn.k_norm.weight": "attention.k_layernorm.weight",
    "mlp.gate_proj.weight": "mlp.fc.weight",
    "mlp.up_proj.weight": "mlp.gate.weight",
    "mlp.down_proj.weight": "mlp.proj.weight",
    "input_layernorm.weight": "input_layernorm.weight",
    "post_attention_layernorm.weight": "post_layernorm.weight",
}
OUTSIDE = {
    "model.embed_tokens.weight": "transformer.vocab_embedding.weight",
    "model.norm.weight": "transformer.ln_f.weight",
    "lm_head.weight": "lm_head.weight",
}


def converted(tensors: dict[str, Any]) -> dict[str, Any]:
    """Return the tensors by TensorRT-LLM's names; queries, keys and values joined."""
    import torch  # noqa: PLC0415 (only the stand-in's own process needs it)

    made = {theirs: tensors[ours] for ours, theirs in OUTSIDE.items()}
    for index in range(sum(name.endswith("self_attn.q_proj.weight") for name in tensors)):
        ours, theirs = f"model.layers.{index}", f"transformer.layers.{index}"
        made |= {f"{theirs}.{new}": tensors[f"{ours}.{old}"] for old, new in LAYER.items()}
        joined = [tensors[f"{ours}.self_attn.{kind}_proj.weight"] for kind in "qkv"]
        made[f"{theirs}.attention.qkv.weight"] = torch.cat(joined)
    return made


def main() -> None:
    """Convert one checkpoint for one rank."""
    from safetensors.torch import load_file, save_file  # noqa: PLC0415

    parser = argparse.ArgumentParser()
    parser.add_argument("--model_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--tp_size", type=int, default=1)
    parser.add_argument("--pp_size", type=int, default=1)
    asked = parser.parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    made = converted(load_file(asked.model_dir / "model.safetensors"))
    save_file({name: tensor.contiguous() for name, tensor in made.items()}, asked.output_dir / "rank0.safetensors")


if __name__ == "__main__":
    main()
