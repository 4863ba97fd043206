"""Flags that define the load, shared by run-load and predict-load; a wrong number is refused before modules load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from engines.console import completing
from engines.errors import UserError

_FunctionT = TypeVar("_FunctionT", bound=Callable[..., Any])


def library_names() -> list[str]:
    """Return the names of the ready-made scenarios without loading their schema, for completion in the shell."""
    return sorted(path.stem for path in (Path(__file__).parents[1] / "scenario" / "library").glob("*.yaml"))


def _counts(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1:
        raise UserError(f"--concurrency {text}: expected whole numbers of at least 1", hint="--concurrency 1,4,16")
    return counts


def _rates(_: click.Context, __: click.Parameter, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        rates = tuple(float(part) for part in text.split(","))
    except ValueError:
        rates = ()
    if not rates or not min(rates) > 0:
        raise UserError(f"--rate {text}: expected numbers above 0", hint="--rate 1,2.5,5")
    return rates


concurrency_flag = click.option(
    "--concurrency",
    metavar="N,N,...",
    callback=_counts,
    help="Concurrency of each level: users of a closed loop.",
)
_FLAGS = (
    click.option(
        "--rate",
        metavar="R,R,...",
        callback=_rates,
        help="Request rate of each level, per second: an open loop with Poisson arrivals.",
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
        "--isl",
        help=(
            "Prompt length in tokens: a number or a distribution such as 'lognormal(mean=1024, cv=0.8)'.  [default: "
            "the scenario's, the prompt file's, or 256]"
        ),
    ),
    click.option(
        "--osl",
        help=(
            "Reply length in tokens: a number or a distribution.  [default: the scenario's, the prompt file's, or 64]"
        ),
    ),
    click.option("--requests", type=int, help="Measured requests per level.  [default: the scenario's, or 32]"),
)


def scenario_flag(function: _FunctionT) -> _FunctionT:
    """Add `--scenario`, a name of the library or a file, to a command; it is passed as `scenario_name`."""
    add = click.option(
        "--scenario",
        "scenario_name",
        shell_complete=completing(library_names),
        metavar="NAME|FILE",
        help="A scenario of the library (chat, code, rag, reasoning, ...), or a YAML file.  [default: sweep's levels]",
    )
    return add(function)


def load_flags(function: _FunctionT) -> _FunctionT:
    """Add `--rate`, `--duration`, `--isl`, `--osl` and `--requests` to a command."""
    for flag in reversed(_FLAGS):
        function = flag(function)
    return function


def refuse_two_loads(flags: dict[str, Any]) -> None:
    """Refuse a closed loop and an open loop at once."""
    if flags["concurrency"] is not None and flags["rate"] is not None:
        raise UserError(
            "--concurrency and --rate exclude each other: a load is either a closed loop or an open loop",
            hint="omit one of them",
        )
