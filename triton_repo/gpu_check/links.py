"""The links from checkpoint to served engine: what each was checked against, and what to check first on a GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from engines.errors import UserError
from engines.files import Strict, read_yaml

HeldTo = Literal["ran upstream's code", "read upstream's files", "our stand-in", "nothing"]


class Link(Strict):
    """One link of the road.

    Attributes:
        id: Its name in reports.
        title: What happens there.
        held_to: The strongest evidence there is without a GPU.
        evidence: What exactly was run or read, of which version.
        look: What the first person with a GPU should look at.
        needs: Links without which this one cannot be reached.
    """

    id: str
    title: str
    held_to: HeldTo
    evidence: str
    look: str
    needs: tuple[str, ...] = ()


class _Links(Strict):
    links: tuple[Link, ...]


@cache
def links() -> tuple[Link, ...]:
    """Return every link, in the order in which they are walked.

    Raises:
        UserError: The file that comes with the package is damaged: a link needs one that does not come before it.
    """
    path = Path(__file__).with_name("links.yaml")
    found = read_yaml(path, _Links).links
    seen: set[str] = set()
    for link in found:
        if link.id in seen or not seen.issuperset(link.needs):
            raise UserError(f"{path}: link '{link.id}' is there twice, or needs one that does not come before it")
        seen.add(link.id)
    return found


def links_table() -> str:
    """Return the table of docs/explanation/what-was-verified.md."""
    rows = ["| link | what happens | checked against | how | look at first on a GPU |", "|---|---|---|---|---|"]
    rows += [f"| `{link.id}` | {link.title} | {link.held_to} | {link.evidence} | {link.look} |" for link in links()]
    return "\n".join(rows)
