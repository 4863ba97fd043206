"""The command `compare-models`: its flags and its help."""

from __future__ import annotations

from typing import Any

import click

from engines.console import Command, common_flags
from engines.names import PRECISION_NAMES, gpu_names, model_names

DEFAULT_MODELS = ("deepseek-r1-0528-qwen3-8b", "llama-3-8b", "mistral-7b", "qwen1.5-7b")
DEFAULT_GPU = "a100-sxm-80gb"
DEFAULT_CONTEXT_TOKENS = 128
DEFAULT_CLAIM_TOKENS_PER_S = 150.0

COMPARE_HELP = f"""Compare models at batch 1 on one GPU, and judge a claim of tokens per second.

Beside each predicted rate stands the bound that memory bandwidth sets: every token reads all weights and its whole KV
cache once. No software decodes one token at a time faster; speculative decoding, several tokens a read, is outside it.

MODEL is one of: {", ".join(model_names())}; without any: {", ".join(DEFAULT_MODELS)}.
"""


@click.command("compare-models", cls=Command, help=COMPARE_HELP)
@click.argument("models", nargs=-1, metavar="[MODEL]...")
@click.option("--gpu", default=DEFAULT_GPU, show_default=True, help=f"One of: {', '.join(gpu_names())}.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    metavar="NAME,...",
    help=f"Some of: {', '.join(PRECISION_NAMES)}; default: fp16, then all that are possible on the GPU.",
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
    help="The claimed rate of one sequence, to be judged.",
)
@common_flags
def compare_models(**flags: Any) -> None:
    """Compare models at batch 1 on one GPU, and judge a claim of tokens per second."""
    from engines.cli.actions.compare_models import run

    run(**flags | {"models": flags["models"] or DEFAULT_MODELS})
