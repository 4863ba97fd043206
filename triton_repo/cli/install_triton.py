"""The command `install-triton`: its flags and its help."""

from __future__ import annotations

from typing import Any

import click

from engines import console
from triton_repo.cli.build_repo import FOLDER


@click.command("install-triton", cls=console.Command, example="install-triton")
@click.option(
    "--out", type=FOLDER, default=None, help="Folder to install into.  [default: opt/triton in this environment]"
)
@click.option("--force", is_flag=True, help="Reinstall even if the installation is complete.")
@console.common_flags
def install_triton(**flags: Any) -> None:
    """Install Triton on this machine, without a container and without root.

    The server comes from the nvidia-pytriton wheel. Its models run in a separate, small Python environment.
    Does nothing if it is already installed.
    """
    from triton_repo.cli.actions.install_triton import run

    run(**flags)
