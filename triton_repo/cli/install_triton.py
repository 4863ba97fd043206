"""The command `install-triton`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from engines import console
from triton_repo.cli.build_repo import FOLDER
from triton_repo.server import local_triton


@click.command("install-triton", cls=console.Command)
@click.option(
    "--out", type=FOLDER, default=None, help="Folder to install into.  [default: opt/triton in this environment]"
)
@click.option("--force", is_flag=True, help="Install again even where a whole installation stands.")
@console.common_flags
def install_triton(out: Path | None, force: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001 (-v is everywhere)
    """Install the real Triton for this machine, without a container and without root.

    The server comes from the nvidia-pytriton wheel; its models get a small Python environment of their own.
    Does nothing where it is already there.
    """
    target = (out or local_triton.default_folder()).absolute()
    done = local_triton.install(
        target, force=force, command=console.command_line("install-triton"), progress=console.progress
    )
    if as_json:
        console.show(json.dumps({"folder": str(target), "installed": done, "triton": local_triton.TRITON_VERSION}))
        return
    if not done:
        console.progress(f"Triton {local_triton.TRITON_VERSION} is already there")
    console.wrote(target, "build-repo ENGINE_DIR")
