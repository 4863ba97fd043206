"""Stands in for TensorRT-LLM's examples/run.py: the arguments that we give it, and the lines that it prints."""

from __future__ import annotations

import argparse
import json
from pathlib import Path


def main() -> None:
    """Read the engine's config and the tokenizer, and answer as a model that knows its capitals."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--engine_dir", type=Path, required=True)
    parser.add_argument("--tokenizer_dir", type=Path, required=True)
    parser.add_argument("--max_output_len", type=int, required=True)
    parser.add_argument("--input_text", nargs="+", required=True)
    asked = parser.parse_args()
    json.loads((asked.engine_dir / "config.json").read_text())
    json.loads((asked.tokenizer_dir / "tokenizer.json").read_text())
    for index, text in enumerate(asked.input_text):
        print(f'Input [Text {index}]: "{text}"')
        print(f'Output [Text {index} Beam 0]: " Paris. w1 w2"')


if __name__ == "__main__":
    main()
