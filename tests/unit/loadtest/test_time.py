"""Which clocks the load tester looks at."""

from __future__ import annotations

import ast
from pathlib import Path

import loadtest

SOURCES = sorted(Path(loadtest.__path__[0]).rglob("*.py"))
WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime", "strftime", "ctime"}
ALLOWED = {
    # The kernel stamps arrivals by the wall clock: only its difference to now is used.
    "receiver.py": {"time.time"},
    "plan_capacity.py": {"datetime.now"},  # the date of a plan; no load is run
    "pricing.py": {"datetime.now"},  # the age of a price, after the load
}


def _wall_clock_reads(source: Path) -> set[str]:
    """Return the calls of a module that ask for the time of day."""
    found = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.attr in WALL:
            found |= {f"{node.value.id}.{node.attr}"} if node.value.id in {"time", "datetime", "date"} else set()
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "datetime"}:
            found |= {f"{node.module}.{alias.name}" for alias in node.names if alias.name in WALL}
    return found


def test_no_time_is_taken_from_a_clock_that_may_be_set() -> None:
    """A step of the wall clock moves no record, no arrival and no deadline: nothing reads it."""
    assert len(SOURCES) > 30
    reads = {source.name: found for source in SOURCES if (found := _wall_clock_reads(source))}
    assert reads == ALLOWED
