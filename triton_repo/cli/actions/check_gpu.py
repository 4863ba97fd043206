"""The implementation of `check-gpu`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines import console
from engines.build import trtllm
from engines.errors import MissingError, TargetMissedError
from engines.files import made_by, to_json
from engines.outputs import add_contents, folder_in_place, paths_named
from engines.spec import FP8_SM
from triton_repo.gpu_check import Link, Outcome, Session, Settings, links, reasons_against, walk


def run(checkpoint: Path | None, precision: str | None, **flags: Any) -> None:
    """Run the check and report it, or list its links."""
    if flags["only_list"]:
        for link in links():
            console.show(
                f"{link.id}: {link.title}\n  checked against: {link.held_to}: {link.evidence}\n  look at: {link.look}"
            )
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
        report = walk(session, made_by=head, on_outcome=(lambda _link, _outcome: None) if quiet else _tell)
        add_contents(out, out)
    if quiet:
        console.show(to_json(report).rstrip())
    else:
        console.wrote(session.settings.out, f"attach {session.settings.out / 'report.md'} to an issue")
    failed = report.count("failed")
    if failed:
        raise TargetMissedError(
            f"{failed} of {len(report.outcomes)} links failed, {report.count('not reached')} not reached",
            hint=f"the output of each command is in {session.settings.out / 'logs'}",
        )


def _session(checkpoint: Path | None, precision: str | None, flags: dict[str, Any]) -> Session:
    """Return the session that the links share."""
    out = flags["out"] or Path("artifacts/gpu-check")
    capability = int(trtllm.visible_compute_capabilities()[0].replace(".", ""))
    chosen = precision or ("fp8" if capability >= FP8_SM else "int8_sq")
    return Session(Settings(checkpoint, chosen, out), version=str(trtllm.installed_version()))


def _tell(link: Link, outcome: Outcome) -> None:
    """Print one link, what it was checked against, and its outcome."""
    console.show(f"{outcome.status:<11}  {link.id}: {link.title} ({outcome.seconds:.1f} s)")
    console.say(f"             checked against: {link.held_to}: {link.evidence}")
    console.say(f"             seen: {outcome.detail}")
