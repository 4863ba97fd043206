"""The command `check-repo`: its flags and its help."""

from __future__ import annotations

from typing import Any

import click

from engines import console
from triton_repo.cli.build_repo import FOLDER


@click.command("check-repo", cls=console.Command, example="check-repo artifacts/repositories/NAME -v")
@click.argument("repository", type=FOLDER)
@console.common_flags
def check_repo(**flags: Any) -> None:
    """Check any TensorRT-LLM model repository for Triton, without starting a server.

    Checks Triton's schema, TensorRT-LLM's tensors and parameters, the ensemble's connections, the engine's limits and
    known issues. Each finding comes with its fix. Exits with status 3 if there is an error. -v adds advice.
    """
    from triton_repo.cli.actions.check_repo import run

    run(**flags)
