"""Flags that define the load, shared by run-load and predict-load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])

_FLAGS = (
    click.option(
        "--rate", metavar="R,R,...", help="Request rate of each level, per second: an open loop with Poisson arrivals."
    ),
    click.option(
        "--duration",
        type=float,
        help=(
            "Seconds during which an open loop sends requests. A rate profile is compressed to fit; its "
            "rates do not change."
        ),
    ),
    click.option(
        "--isl", help="Prompt length in tokens: a number or a distribution such as 'lognormal(mean=1024, cv=0.8)'."
    ),
    click.option("--osl", help="Reply length in tokens: a number or a distribution."),
    click.option("--requests", type=int, help="Measured requests per level."),
)


def load_flags(function: _FunctionT) -> _FunctionT:
    """Add `--rate`, `--duration`, `--isl`, `--osl` and `--requests` to a command."""
    for flag in reversed(_FLAGS):
        function = flag(function)
    return function
