"""The command `build-engine`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags, writing_flags
from engines.names import LLM_API_VERSION_NAMES, PRECISION_NAMES, gpu_names

BUILD_HELP = """Build a TensorRT-LLM engine, or plan and emulate one.

With nothing but --precision, the recipe's defaults stand: DeepSeek-R1-0528-Qwen3-8B on one H100. A flag overrides
the recipe. Where TensorRT-LLM, the GPU or the checkpoint is not on this machine, the command says which and what to do.

\b
  build-engine --precision fp8 --emulate                      plan, and let the emulator stand in for the engine
  build-engine --precision fp8 --checkpoint DIR               build for real, in TensorRT-LLM's container
  build-engine --precision fp8 --checkpoint DIR --until checkpoint
                                                              quantize and verify on a CPU, compile elsewhere
  build-engine --precision fp8,int8_sq,bf16 --gpu h100-sxm-80gb,a100-sxm-80gb --emulate
                                                              the whole matrix, and one table that compares it
  build-engine --precision fp8 --explain                      every value, its origin, the cost of its neighbours
  build-engine --list                                         every precision on every GPU: what can be built

Stages (inspect, quantize, verify, compile, smoke) are kept beside the engines, each under the hash of what went into
it: the same command again redoes nothing, after an interruption it goes on, and builds that share a stage share it.

\b
Exit status: 0 done; 1 could not; 2 asked wrongly; 3 does not fit, or the accuracy was missed; 130 interrupted.
"""


HELP_GROUPS = {
    "What to build": ("--recipe", "--model", "--checkpoint", "--tokenizer", "--precision", "--kv-cache"),
    "For what": ("--gpu", "--tp", "--pp", "--backend", "--tensorrt-llm"),
    "For the PyTorch backend": (
        "--trtllm-version",
        "--published",
        "--cuda-graph-batch-sizes",
        "--disaggregated",
        "--draft-model",
    ),
    "For which traffic": ("--isl", "--osl", "--ttft-ms", "--itl-ms"),
    "Limits, where the search is to be overruled": ("--max-batch-size", "--max-num-tokens", "--max-seq-len"),
    "Adapters and speculation": (
        "--lora-modules",
        "--max-lora-rank",
        "--speculative",
        "--lookahead",
        "--max-draft-len",
    ),
    "Quantizing": ("--calibration-text", "--calibration-samples", "--calibration-tokens", "--seed"),
    "How far to go": ("--emulate", "--until", "--max-perplexity-increase", "--dry-run", "--explain", "--list"),
    "What predicts": ("--engine-profile", "--step-time", "--step-time-calibration"),
    "Where to": ("--out", "--force", "--stages"),
}


@click.command(
    "build-engine",
    cls=Command,
    groups=HELP_GROUPS,
    help=BUILD_HELP,
    epilog="Writes artifacts/engines/NAME unless --out is given.",
)
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE,...",
    help="A recipe: latency, throughput, reasoning, or a YAML file; several make one engine each.",
)
@click.option("--model", help="A known model, when there is no checkpoint to read it from.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="Folder of a Hugging Face checkpoint.")
@click.option("--tokenizer", help="Folder with tokenizer.json, when the checkpoint has none.")
@click.option(
    "--precision",
    metavar="NAME,...",
    help=f"Weights and arithmetic: {', '.join(PRECISION_NAMES)}; several make one engine each.",
)
@click.option("--kv-cache", type=click.Choice(["auto", "16bit", "int8", "fp8", "nvfp4"]), help="KV cache format.")
@click.option(
    "--gpu",
    metavar="NAME,...",
    help=f"Target GPU: {', '.join(gpu_names())}; auto: this machine's; several make one engine each.",
)
@click.option("--tp", type=int, help="Tensor parallel size.")
@click.option("--pp", type=int, help="Pipeline parallel size.")
@click.option("--isl", type=int, help="Prompt length of a typical request, tokens.")
@click.option("--osl", type=int, help="Reply length of a typical request, tokens.")
@click.option("--ttft-ms", type=float, help="Objective for the mean time to first token, every slot taken.")
@click.option("--itl-ms", type=float, help="Objective for the mean gap between two tokens, every slot taken.")
@click.option("--max-batch-size", type=int, help="Sequences in one iteration, at most.")
@click.option("--max-num-tokens", type=int, help="Tokens in one iteration, at most.")
@click.option("--max-seq-len", type=int, help="Prompt plus reply of one sequence, at most.")
@click.option(
    "--tensorrt-llm", "tensorrt_llm", metavar="VERSION", help="TensorRT-LLM version to build with and serve by."
)
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "pytorch"]),
    help="tensorrt: an engine, up to 1.2.1; pytorch: a quantized checkpoint, and how trtllm-serve and Triton serve it.",
)
@click.option(
    "--trtllm-version",
    type=click.Choice(LLM_API_VERSION_NAMES),
    help="Whose argument names the PyTorch backend's files use.  [default: of --tensorrt-llm]",
)
@click.option("--published", metavar="NAME", help="Serve this published quantized checkpoint; nothing is quantized.")
@click.option("--cuda-graph-batch-sizes", metavar="N,...", help="Record CUDA graphs for these batch sizes alone.")
@click.option("--disaggregated", metavar="N:M", help="N servers compute prompts, M make replies, behind one router.")
@click.option("--draft-model", metavar="DIR|NAME", help="Draft model of eagle3 or draft_target, as the server sees it.")
@click.option("--lora-modules", metavar="NAME,...", help="Accept LoRA adapters on these modules: attn_q,attn_v,...")
@click.option("--max-lora-rank", type=int, help="Largest adapter rank.")
@click.option(
    "--speculative",
    metavar="MODE",
    help="Speculative decoding: draft_tokens_external, lookahead_decoding; of pytorch: eagle3, ngram, draft_target.",
)
@click.option(
    "--lookahead",
    metavar="W,N,G",
    help="Lookahead's window, n-gram and verification set sizes; the draft length follows from them.",
)
@click.option("--max-draft-len", type=int, help="Draft tokens a step, at most.")
@click.option(
    "--engine-profile",
    metavar="NAME",
    help="What is expected above the kernels: trtllm-1.x-triton, trtllm-serve, vllm-v1, ... (engine-profiles.md).",
)
@click.option(
    "--step-time",
    type=click.Choice(["auto", "roofline", "silicon"]),
    help="What stands in for the GPU's clock: data sheets, or measured kernels; auto: what held-out rows favour.",
)
@click.option(
    "--step-time-calibration",
    metavar="FILE",
    help="calibration.json of calibrate-engine: its source, times its factors.",
)
@click.option("--calibration-text", help="Text, JSONL or ShareGPT JSON to calibrate on; default: real chats.")
@click.option("--calibration-samples", type=int, help="Samples to calibrate on.")
@click.option("--calibration-tokens", type=int, help="Length of each sample, tokens.")
@click.option(
    "--max-perplexity-increase",
    type=float,
    metavar="RATIO",
    help="End with status 3 where quantizing raised perplexity by more than this, 0.05 for 5 %.",
)
@click.option("--emulate", is_flag=True, help="Build nothing: write the plan, and a manifest for the emulated engine.")
@click.option("--until", type=click.Choice(["checkpoint", "engine"]), default="engine", help="Stop after this stage.")
@click.option("--explain", "explained", is_flag=True, help="Print each value, its origin, and what others would cost.")
@click.option(
    "--stages",
    "stages_folder",
    type=click.Path(path_type=Path),
    help="Folder of finished stages; .stages beside --out unless given.",
)
@click.option("--list", "list_pairs", is_flag=True, help="Print every precision on every GPU, and end.")
@click.option("--seed", type=int, help="Seed of the calibration sample.")
@writing_flags
@common_flags
def build_engine(**flags: Any) -> None:
    """Plan, build or emulate an engine."""
    from engines.cli.actions.build_engine import run

    run(**flags)
