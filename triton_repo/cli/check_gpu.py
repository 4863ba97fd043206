"""The command that walks the whole road on a GPU: check-gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console
from engines.build import trtllm
from engines.errors import MissingError, TargetMissedError
from engines.files import made_by, to_json
from engines.outputs import add_contents, folder_in_place, paths_named
from engines.spec import FP8_SM, PRECISIONS
from triton_repo.gpu_check import Link, Outcome, Session, Settings, links, reasons_against, walk

FOLDER = click.Path(path_type=Path)


@click.command("check-gpu", cls=console.Command, epilog="Writes artifacts/gpu-check unless --out is given.")
@click.option("--checkpoint", type=FOLDER, help="Hugging Face checkpoint; default: SmolLM2, whose answer is known.")
@click.option(
    "--precision", type=click.Choice(list(PRECISIONS)), help="Default: fp8 where the GPU has it, else int8_sq."
)
@click.option("--out", type=FOLDER, default=None, help="Folder of the report, the logs and what is built.")
@click.option("--force", is_flag=True, help="Replace what --out already holds.")
@click.option("--list", "only_list", is_flag=True, help="Print the links and what each was held to, and end.")
@click.option("--skip", "may_skip", is_flag=True, help="Where the machine cannot: print the reason and end with 0.")
@console.common_flags
def check_gpu(checkpoint: Path | None, precision: str | None, **flags: Any) -> None:
    """Build, serve and load a real engine on this machine, link by link, and write a report.

    The links are those of docs/explanation/what-was-verified.md; each is marked passed, failed or not reached. It needs
    a GPU and the container with TensorRT-LLM. The report, report.md, is made to be attached to an issue. Ends with
    status 3 where a link failed.
    """
    if flags["only_list"]:
        for link in links():
            console.show(f"{link.id}: {link.title}\n  held to: {link.held_to}: {link.evidence}\n  look at: {link.look}")
        return
    reasons = reasons_against(default_checkpoint=checkpoint is None)
    if reasons:
        if flags["may_skip"]:
            console.show(f"check-gpu: skipped: {'; '.join(reasons)}")
            return
        raise MissingError("; ".join(reasons), hint="run it in the container, on a machine with a GPU: README.md")
    session = _session(checkpoint, precision, flags)
    quiet = flags["as_json"]
    head, out = made_by(console.command_line("check-gpu")), session.settings.out
    inputs = paths_named({**flags, "checkpoint": checkpoint})
    with folder_in_place(out, made_by=head, files=(), force=flags["force"], inputs=inputs):
        report = walk(session, made_by=head, told=(lambda _link, _outcome: None) if quiet else _tell)
        add_contents(out, out)
    if quiet:
        console.show(to_json(report).rstrip())
    else:
        console.wrote(session.settings.out, f"attach {session.settings.out / 'report.md'} to an issue")
    failed = report.count("failed")
    if failed:
        raise TargetMissedError(
            f"{failed} of {len(report.outcomes)} links failed, {report.count('not reached')} were not reached",
            hint=f"what each command printed is in {session.settings.out / 'logs'}",
        )


def _session(checkpoint: Path | None, precision: str | None, flags: dict[str, Any]) -> Session:
    """Return the state of the walk."""
    out = flags["out"] or Path("artifacts/gpu-check")
    capability = int(trtllm.visible_compute_capabilities()[0].replace(".", ""))
    chosen = precision or ("fp8" if capability >= FP8_SM else "int8_sq")
    return Session(Settings(checkpoint, chosen, out), version=str(trtllm.installed_version()))


def _tell(link: Link, outcome: Outcome) -> None:
    """Print one link as the page lists it, and how it did."""
    console.show(f"{outcome.status:<11}  {link.id}: {link.title} ({outcome.seconds:.1f} s)")
    console.show(f"             held to: {link.held_to}: {link.evidence}")
    console.show(f"             seen: {outcome.detail}")


if __name__ == "__main__":
    check_gpu(prog_name="check-gpu")
