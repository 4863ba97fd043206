"""The room's commands: install-triton, build-repo, check-repo, serve-repo."""

from __future__ import annotations

import json
from pathlib import Path

import click

from engines import console
from triton_repo import runtime

FOLDER = click.Path(path_type=Path)


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
    target = (out or runtime.default_folder()).absolute()
    done = runtime.install(
        target, force=force, command=console.command_line("install-triton"), progress=console.progress
    )
    if as_json:
        console.show(json.dumps({"folder": str(target), "installed": done, "triton": runtime.TRITON_VERSION}))
        return
    if not done:
        console.progress(f"Triton {runtime.TRITON_VERSION} is already there")
    console.wrote(target, "build-repo ENGINE_DIR")
