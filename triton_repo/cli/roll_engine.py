"""The command `roll-engine`: its flags and its help."""

from __future__ import annotations

from typing import Any

import click

from engines import console
from triton_repo.cli.build_deployment import FOLDER


@click.command(
    "roll-engine", cls=console.Command, example="roll-engine artifacts/repositories/NAME artifacts/engines/OTHER"
)
@click.argument("repository", type=FOLDER)
@click.argument("engine_dir", type=FOLDER)
@console.common_flags
def roll_engine(**flags: Any) -> None:
    """Replace the engine of a running server without dropping requests.

    Requests in flight finish on the old engine; new requests go to the new one. If the new engine does not load or
    does not answer, the old one keeps serving. Afterwards the repository describes the new engine.
    """
    from triton_repo.cli.actions.roll_engine import run

    run(**flags)
