"""Facts of other projects, kept as YAML beside the tests that are held to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def read_facts(path: Path) -> Any:
    """Read a file of facts, with libyaml where PyYAML has it: every worker reads all of them to collect the tests."""
    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
