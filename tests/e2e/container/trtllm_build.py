"""Stands in for trtllm-build: takes the flags that the facts of 1.2 know, and writes the files that 1.2 writes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FLAGS: dict[str, Any] = {}  # filled from the facts by main
VERSION = "1.2.1"
NO_SPECULATION = 1  # SpeculativeDecodingMode.NONE of tensorrt_llm/models/modeling_utils.py


def parsed(words: list[str]) -> dict[str, list[str]]:
    """Return the flags with their values; an unknown flag ends the program as argparse would."""
    given: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            if word not in FLAGS:
                sys.exit(f"trtllm-build: error: unrecognized arguments: {word}")
            given[word] = []
        elif given:
            given[next(reversed(given))].append(word)
    return given


def main(facts: Path) -> None:
    """Print the help, or build."""
    FLAGS.update(yaml.safe_load(facts.read_text())["trtllm-build"])
    if "--help" in sys.argv:
        print("usage: trtllm-build [-h]", *(f"[{flag} VALUE]" for flag in FLAGS))
        return
    given = {flag: values[0] if values else "" for flag, values in parsed(sys.argv[1:]).items()}
    checkpoint, engine = Path(given["--checkpoint_dir"]), Path(given["--output_dir"])
    pretrained = json.loads((checkpoint / "config.json").read_text())
    if not (checkpoint / "rank0.safetensors").stat().st_size:
        sys.exit("trtllm-build: error: no weights")
    numbers = ("max_batch_size", "max_num_tokens", "max_seq_len", "max_input_len", "max_beam_width")
    build: dict[str, Any] = {name: int(given[f"--{name}"]) for name in numbers}
    build["max_num_tokens"] = min(build["max_num_tokens"], build["max_batch_size"] * build["max_seq_len"])
    switches = ("use_paged_context_fmha", "use_fp8_context_fmha", "remove_input_padding", "context_fmha")
    plugins: dict[str, Any] = {name: given[f"--{name}"] == "enable" for name in switches}
    plugins |= {"tokens_per_block": int(given["--tokens_per_block"]), "lora_plugin": None}
    build |= {"plugin_config": plugins, "speculative_decoding_mode": NO_SPECULATION, "max_draft_len": 0}
    build |= {"gather_context_logits": False, "gather_generation_logits": False, "weight_streaming": False}
    config = {"version": VERSION, "pretrained_config": pretrained, "build_config": build}
    (engine / "config.json").write_text(json.dumps(config))
    (engine / "rank0.engine").write_bytes(b"engine")
    print("[TRT-LLM] [I] Total time of building all engines: 00:00:01")


if __name__ == "__main__":
    main(Path(sys.argv.pop(1)))
