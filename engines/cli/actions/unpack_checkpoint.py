"""The implementation of `unpack-checkpoint`."""

from __future__ import annotations

from pathlib import Path

from engines.checkpoint import inspect_checkpoint, unpack
from engines.console import command_line, quoted, show, wrote
from engines.files import made_by, to_json


def run(source: str, out: Path, force: bool, as_json: bool, verbose: bool) -> None:  # noqa: ARG001
    """Unpack a GGUF file into a Hugging Face checkpoint folder."""
    head = made_by(command_line("unpack-checkpoint"))
    folder = unpack("smollm2" if source == "smollm2" else Path(source), out, made_by=head, force=force)
    facts = inspect_checkpoint(folder)
    if as_json:
        show(to_json(facts).rstrip())
        return
    show(f"{facts.name}: {facts.architecture}, {facts.parameters:,} parameters, {facts.dtype}")
    wrote(folder, f"build-engine --checkpoint {quoted(folder)} --precision fp8 --until checkpoint")
