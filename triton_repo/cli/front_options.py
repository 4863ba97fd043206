"""The options of serve-repo for the OpenAI front. It imports little, so that --help stays fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from engines.console import PORT
from triton_repo.openai_api import KEY_VARIABLE

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])


def front_flags(function: _FunctionT) -> _FunctionT:
    """Add serve-repo's flags for the OpenAI front."""
    options = (
        click.option("--openai", is_flag=True, help="Also serve an OpenAI-compatible API in front of Triton."),
        click.option("--openai-port", type=PORT, default=9000, show_default=True),
        click.option(
            "--openai-model", default=None, help="Model name that clients send.  [default: the engine's model]"
        ),
        click.option(
            "--reasoning",
            type=click.Choice(["auto", "always", "off"]),
            default="auto",
            show_default=True,
            help=(
                "Whether to separate reasoning (<think>) from the answer. always: replies start with reasoning "
                "even without the tag."
            ),
        ),
        click.option(
            "--api-key-file",
            type=click.Path(path_type=Path),
            default=None,
            help=f"File with one API key per line.  [default: the environment variable {KEY_VARIABLE}]",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function
