"""The command `check-repo`."""

from __future__ import annotations

from typing import Any

import click

from engines import console
from triton_repo.cli.build_repo import FOLDER


@click.command("check-repo", cls=console.Command)
@click.argument("repository", type=FOLDER)
@console.common_flags
def check_repo(**flags: Any) -> None:
    """Look through a model repository, whoever made it, without starting anything.

    Triton's schema, TensorRT-LLM's tensors and parameters, the ensemble's wiring, the engine's own limits, and what has
    hurt others; each finding with its fix. Ends with status 3 where there is an error. -v adds the advice.
    """
    from triton_repo.cli.actions.check_repo import run

    run(**flags)
