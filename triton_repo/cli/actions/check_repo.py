"""The implementation of `check-repo`."""

from __future__ import annotations

import json
from pathlib import Path

from engines import console
from engines.errors import TargetMissedError
from triton_repo.audit import Finding, audit_repository


def run(repository: Path, as_json: bool, verbose: bool) -> None:
    """Check a model repository of any origin, without starting a server."""
    findings = audit_repository(repository)
    errors = sum(finding.severity == "error" for finding in findings)
    if as_json:
        found = [finding.model_dump() for finding in findings]
        console.show(json.dumps({"repository": str(repository), "errors": errors, "findings": found}, indent=2))
    else:
        _show_findings(repository, findings, verbose=verbose)
    if errors:
        raise TargetMissedError(
            f"{repository}: {errors} error{'s' * (errors != 1)}; the repository should not be served"
        )


def _show_findings(repository: Path, findings: list[Finding], *, verbose: bool) -> None:
    shown = [finding for finding in findings if verbose or finding.severity != "advice"]
    for finding in shown:
        console.say(f"{finding.severity}: {finding.file}: {finding.what}")
        console.say(f"  fix: {finding.fix}")
    counts = {severity: sum(f.severity == severity for f in findings) for severity in ("error", "warning", "advice")}
    advice = f"{counts['advice']} recommendation{'s' * (counts['advice'] != 1)}"
    if not counts["error"] and not counts["warning"]:
        hidden = f"; {advice}, listed by -v" if counts["advice"] and not verbose else ""
        console.show(f"{repository}: no errors, no warnings{hidden}")
        return
    errors, warnings = (f"{counts[kind]} {kind}{'s' * (counts[kind] != 1)}" for kind in ("error", "warning"))
    console.show(f"{repository}: {errors}, {warnings}, {advice}")
