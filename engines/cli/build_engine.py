"""The command `build-engine`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import PROFILE_HELP, Command, common_flags, completing, draft_flags, profile_flag, writing_flags
from engines.names import (
    LLM_API_VERSION_NAMES,
    PRECISION_NAMES,
    gpu_names,
    model_names,
    recipe_names,
    refuse_unknown_names,
)

MILLISECONDS = click.FloatRange(min=0, min_open=True)
BUILD_HELP = """Build a TensorRT-LLM engine, or plan and emulate one.

With --precision alone, the recipe's defaults apply: DeepSeek-R1-0528-Qwen3-8B on one H100. Flags override the recipe.
If TensorRT-LLM, the GPU or the checkpoint is missing on this machine, the command says which one and what to do.

\b
  build-engine --precision fp8 --emulate         plan and emulate the engine
  build-engine --precision fp8 --checkpoint DIR  build it in the container
  build-engine --precision fp8 --checkpoint DIR --until checkpoint
                                                 quantize and verify on a CPU
  build-engine --precision fp8,bf16 --gpu h100-sxm-80gb,l4-24gb --dry-run
                                                 compare all combinations
  build-engine --precision fp8 --explain         every value and its origin
  build-engine --list                            precisions of each GPU

Stages (inspect, quantize, verify, compile, smoke) are cached next to the engines, each under the hash of its inputs.
Repeating a command reuses finished stages, an interrupted build resumes, and builds with equal inputs share a stage.

Exit status: 0: done; 1: failed; 2: usage error; 3: does not fit, or accuracy target missed; 130: interrupted.
"""


HELP_GROUPS = {
    "What to build": ("--recipe", "--model", "--checkpoint", "--tokenizer", "--precision", "--kv-cache"),
    "Target": ("--gpu", "--tp", "--pp", "--backend", "--tensorrt-llm"),
    "PyTorch backend": (
        "--trtllm-version",
        "--published",
        "--cuda-graph-batch-sizes",
        "--disaggregated",
        "--draft-model",
    ),
    "Expected traffic": ("--isl", "--osl", "--ttft-ms", "--itl-ms"),
    "Engine limits (default: searched)": ("--max-batch-size", "--max-num-tokens", "--max-seq-len"),
    "Adapters and speculative decoding": (
        "--lora-modules",
        "--max-lora-rank",
        "--speculative",
        "--lookahead",
        "--max-draft-len",
        "--max-total-draft-tokens",
        "--acceptance",
    ),
    "Quantization": ("--calibration-text", "--calibration-samples", "--calibration-tokens", "--seed"),
    "What to do": ("--emulate", "--until", "--max-perplexity-increase", "--dry-run", "--explain", "--list"),
    "Prediction": ("--engine-profile", "--step-time", "--step-time-calibration"),
    "Output": ("--out", "--force", "--stages"),
}


@click.command(
    "build-engine",
    cls=Command,
    example="build-engine --precision fp8 --emulate",
    groups=HELP_GROUPS,
    help=BUILD_HELP,
    epilog="Writes artifacts/engines/NAME unless --out is given.",
)
@click.option(
    "--recipe",
    "recipe_name",
    shell_complete=completing(recipe_names),
    metavar="NAME|FILE,...",
    help="Recipe: latency, throughput, reasoning, or a YAML file. Several build one engine each.",
)
@click.option("--model", shell_complete=completing(model_names), help="A known model, or a folder with a config.json.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder with a Hugging Face checkpoint.")
@click.option("--tokenizer", help="Folder with tokenizer.json, if the checkpoint has none.")
@click.option(
    "--precision",
    shell_complete=completing(lambda: PRECISION_NAMES),
    metavar="NAME,...",
    help=f"Weight and arithmetic precision: {', '.join(PRECISION_NAMES)}. Several build one engine each.",
)
@click.option("--kv-cache", type=click.Choice(["auto", "16bit", "int8", "fp8", "nvfp4"]), help="KV cache format.")
@click.option(
    "--gpu",
    shell_complete=completing(gpu_names),
    metavar="NAME,...",
    help=(
        f"Target GPU: {', '.join(gpu_names())}; auto: this machine's; or FILE.yaml from describe-machine. Several "
        "build one engine each."
    ),
)
@click.option("--tp", type=int, help="Tensor parallel size.")
@click.option("--pp", type=int, help="Pipeline parallel size.")
@click.option("--isl", type=int, help="Prompt length of a typical request, in tokens.")
@click.option("--osl", type=int, help="Reply length of a typical request, in tokens.")
@click.option("--ttft-ms", type=MILLISECONDS, help="Objective for mean TTFT with a full batch.")
@click.option("--itl-ms", type=MILLISECONDS, help="Objective for mean ITL with a full batch.")
@click.option("--max-batch-size", type=int, help="Maximum sequences in one iteration.")
@click.option("--max-num-tokens", type=int, help="Maximum tokens in one iteration.")
@click.option("--max-seq-len", type=int, help="Maximum tokens of one sequence, prompt plus reply.")
@click.option("--tensorrt-llm", "tensorrt_llm", metavar="VERSION", help="TensorRT-LLM version to build and serve with.")
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "pytorch"]),
    help=(
        "tensorrt: a compiled engine (up to 1.2.1); pytorch: a quantized checkpoint, with the files "
        "that trtllm-serve and Triton need."
    ),
)
@click.option(
    "--trtllm-version",
    type=click.Choice(LLM_API_VERSION_NAMES),
    help="TensorRT-LLM version whose argument names the PyTorch backend's files use.  [default: --tensorrt-llm]",
)
@click.option(
    "--published", metavar="NAME", help="Serve this published quantized checkpoint instead of quantizing one."
)
@click.option("--cuda-graph-batch-sizes", metavar="N,...", help="Record CUDA graphs for these batch sizes only.")
@click.option("--disaggregated", metavar="N:M", help="N servers for prefill and M for decode, behind one router.")
@click.option(
    "--draft-model",
    metavar="DIR|NAME",
    help="Draft model for eagle3 or draft_target: a path on the server, or a published name.",
)
@click.option("--lora-modules", metavar="NAME,...", help="Accept LoRA adapters on these modules: attn_q,attn_v,...")
@click.option("--max-lora-rank", type=int, help="Maximum adapter rank.")
@click.option(
    "--speculative",
    metavar="MODE",
    help=(
        "Speculative decoding: draft_tokens_external, lookahead_decoding; with pytorch: eagle3, ngram, draft_target."
    ),
)
@click.option(
    "--lookahead",
    metavar="W,N,G",
    help="Window, n-gram and verification set sizes of lookahead decoding. They determine the draft length.",
)
@draft_flags
@profile_flag(f"{PROFILE_HELP} (engine-profiles.md).")
@click.option(
    "--step-time",
    type=click.Choice(["auto", "roofline", "silicon"]),
    help=(
        "Source of step times: data sheets (roofline) or measured kernels (silicon). auto: the one with "
        "the lower held-out error."
    ),
)
@click.option(
    "--step-time-calibration",
    metavar="FILE",
    help="calibration.json from calibrate-engine: use its step-time source and its factors.",
)
@click.option("--calibration-text", help="Calibration text: plain text, JSONL or ShareGPT JSON.  [default: real chats]")
@click.option("--calibration-samples", type=int, help="Number of calibration samples.")
@click.option("--calibration-tokens", type=int, help="Length of each calibration sample, in tokens.")
@click.option(
    "--max-perplexity-increase",
    type=float,
    metavar="RATIO",
    help="Exit with status 3 if quantization raises perplexity by more than this ratio (0.05 is 5 %).",
)
@click.option("--emulate", is_flag=True, help="Build nothing; write the plan and the manifest of an emulated engine.")
@click.option("--until", type=click.Choice(["checkpoint", "engine"]), default="engine", help="Stop after this stage.")
@click.option(
    "--explain", "explained", is_flag=True, help="Print each value, its origin, and the cost of alternatives."
)
@click.option(
    "--stages",
    "stages_folder",
    type=click.Path(path_type=Path),
    help="Folder of the stage cache.  [default: .stages next to --out]",
)
@click.option("--list", "list_pairs", is_flag=True, help="Print which precisions each GPU supports, and exit.")
@click.option("--seed", type=int, help="Seed for drawing the calibration samples.")
@writing_flags
@common_flags
def build_engine(**flags: Any) -> None:
    """Plan, build or emulate an engine."""
    _refuse_unknown_names(flags)
    from engines.cli.actions.build_engine import run

    run(**flags)


def _refuse_unknown_names(flags: dict[str, Any]) -> None:
    """Refuse a model, GPU or precision that does not exist; in a list of several engines it is a row of the answer."""
    gpu, precision, recipe = flags["gpu"] or "", flags["precision"] or "", flags["recipe_name"] or ""
    if not any("," in words for words in (gpu, precision, recipe)):
        gpu = None if gpu in {"", "auto"} else gpu
        refuse_unknown_names(model=flags["model"], gpu=gpu, precision=precision or None)
