"""The command `compare-models`: its flags and its help."""

from __future__ import annotations

from typing import Any

import click

from engines.console import Command, common_flags, completing
from engines.names import PRECISION_NAMES, gpu_names, known_gpu_name, known_precision_name, model_names

DEFAULT_MODELS = ("deepseek-r1-0528-qwen3-8b", "llama-3-8b", "mistral-7b", "qwen1.5-7b")
DEFAULT_GPU = "a100-sxm-80gb"
DEFAULT_CONTEXT_TOKENS = 128
DEFAULT_CLAIM_TOKENS_PER_S = 150.0

COMPARE_HELP = f"""Compare models at batch size 1 on one GPU, and check a claimed rate of tokens per second.

Each predicted rate is shown with its upper bound from memory bandwidth: every token reads all weights and the whole KV
cache once. No software that decodes one token at a time is faster. Speculative decoding is outside this bound.

MODEL is one of: {", ".join(model_names())}; without any: {", ".join(DEFAULT_MODELS)}.
"""


@click.command(
    "compare-models", cls=Command, example="compare-models llama-3-8b qwen3-8b --gpu h100-sxm-80gb", help=COMPARE_HELP
)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option(
    "--gpu",
    shell_complete=completing(gpu_names),
    default=DEFAULT_GPU,
    show_default=True,
    help=f"One of: {', '.join(gpu_names())}.",
)
@click.option(
    "--precision",
    "precisions",
    shell_complete=completing(lambda: PRECISION_NAMES),
    multiple=True,
    metavar="NAME,...",
    help=f"Any of: {', '.join(PRECISION_NAMES)}.  [default: fp16, and all others that the GPU supports]",
)
@click.option(
    "--isl",
    "context_tokens",
    type=click.IntRange(min=1),
    default=DEFAULT_CONTEXT_TOKENS,
    show_default=True,
    help="Tokens in the KV cache while decoding.",
)
@click.option(
    "--claim",
    "claim_tokens_per_s",
    type=float,
    default=DEFAULT_CLAIM_TOKENS_PER_S,
    show_default=True,
    metavar="TOKENS_PER_S",
    help="Claimed rate of one sequence to check.",
)
@common_flags
def compare_models(**flags: Any) -> None:
    """Compare models at batch size 1 on one GPU, and check a claimed rate of tokens per second."""
    known_gpu_name(flags["gpu"])
    for name in ",".join(flags["precisions"]).split(","):
        if name.strip():
            known_precision_name(name.strip())
    from engines.cli.actions.compare_models import run

    run(**flags | {"models": flags["models"] or DEFAULT_MODELS})
