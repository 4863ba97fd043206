"""The options that select a server. Kept free of other rooms, so that --help stays fast."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from engines.console import OPENAI_KEY

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])

_PORTS = Path(__file__).parents[1] / "client" / "protocols" / "ports.json"
PROTOCOLS = tuple(json.loads(_PORTS.read_text(encoding="utf-8")))


def target_flags(function: _FunctionT) -> _FunctionT:
    """Add the flags that select a server: --url, --protocol, --model, credentials, tokenizer and metrics pages."""
    for add in reversed(_ADD_TARGET_FLAGS):
        function = add(function)
    return function


_NAMES = (
    *("url", "protocol", "model", "api-key-env", "ca-file", "insecure", "tokenizer", "metrics-url"),
    *("power-url", "power-gpu"),
)
TARGET_FLAGS = tuple(f"--{name}" for name in _NAMES)
_ADD_TARGET_FLAGS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--url",
        default="http://127.0.0.1:8000",
        show_default=True,
        help="Server URL: http[s]://HOST:PORT or grpc[s]://HOST:PORT.",
    ),
    click.option(
        "--protocol",
        type=click.Choice(PROTOCOLS),
        help="Protocol: Triton's generate_stream or gRPC; OpenAI's chat or text completions.  [default: detected]",
    ),
    click.option(
        "--model",
        help=(
            "Model: tensorrt_llm (token ids), ensemble or tensorrt_llm_bls on Triton; any on "
            "an OpenAI server.  [default: tensorrt_llm, or the only one]"
        ),
    ),
    click.option(
        "--api-key-env", default=OPENAI_KEY, show_default=True, help="Environment variable that contains the API key."
    ),
    click.option(
        "--ca-file",
        type=click.Path(path_type=Path),
        help="PEM file of certificates to trust, for https:// and grpcs://.",
    ),
    click.option("--insecure", is_flag=True, help="Do not verify the server's certificate."),
    click.option(
        "--tokenizer",
        type=click.Path(path_type=Path),
        help="tokenizer.json.  [default: the server's, that of an earlier run beside --out, or a known model's]",
    ),
    click.option(
        "--metrics-url",
        multiple=True,
        help=(
            "Metrics page of the server or of a GPU exporter; may be repeated.  [default: the metrics port on "
            "the host of --url]"
        ),
    ),
    click.option(
        "--power-url",
        multiple=True,
        help="Metrics page with the power or energy of the GPUs, such as a DCGM exporter's; may be repeated.",
    ),
    click.option(
        "--power-gpu",
        multiple=True,
        metavar="INDEX|UUID",
        help="GPU of the server, if the --power-url pages show others; may be repeated.  [default: every GPU there]",
    ),
)
