"""The report of a walk: every link with its outcome, and the machine it was walked on."""

from __future__ import annotations

from typing import Literal

from engines.files import Document, Strict

Status = Literal["passed", "failed", "not reached"]
REPORT_JSON, REPORT_TEXT = "report.json", "report.md"


class Outcome(Strict):
    """How one link did.

    Attributes:
        detail: What was seen: a figure where it passed, the error where it failed, the link it waited for otherwise.
        seconds: Wall time; 0 where it was not reached.
    """

    link: str
    status: Status
    detail: str
    seconds: float = 0.0


class Report(Document):
    """`report.json`: what a walk found.

    Attributes:
        machine: GPU, driver, versions, by name.
        outcomes: One for each link of the road, in its order.
    """

    checkpoint: str
    precision: str
    machine: dict[str, str]
    outcomes: tuple[Outcome, ...]

    def count(self, status: Status) -> int:
        """Return how many links ended so."""
        return sum(outcome.status == status for outcome in self.outcomes)


def report_text(report: Report) -> str:
    """Return the report as Markdown, to attach to an issue."""
    counts = ", ".join(f"{report.count(status)} {status}" for status in ("passed", "failed", "not reached"))
    lines = [
        "# GPU check",
        "",
        f"{counts}. Checkpoint {report.checkpoint}, precision {report.precision}.",
        f"Made by `{report.made_by.command}` {report.made_by.version}.",
        "",
        "| link | status | seconds | seen |",
        "|---|---|---|---|",
        *(f"| `{o.link}` | {o.status} | {o.seconds:.1f} | {_cell(o.detail)} |" for o in report.outcomes),
        "",
        "| machine | |",
        "|---|---|",
        *(f"| {name} | {_cell(value)} |" for name, value in report.machine.items()),
    ]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "<br>")
