"""The command `install-triton`."""

from __future__ import annotations

from typing import Any

import click

from engines import console
from triton_repo.cli.build_repo import FOLDER


@click.command("install-triton", cls=console.Command)
@click.option(
    "--out", type=FOLDER, default=None, help="Folder to install into.  [default: opt/triton in this environment]"
)
@click.option("--force", is_flag=True, help="Install again even where a whole installation stands.")
@console.common_flags
def install_triton(**flags: Any) -> None:
    """Install the real Triton for this machine, without a container and without root.

    The server comes from the nvidia-pytriton wheel; its models get a small Python environment of their own.
    Does nothing where it is already there.
    """
    from triton_repo.cli.actions.install_triton import run

    run(**flags)
