"""From the output folder to the repository: the cases below validation/, the page below docs/measurements/."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.files import write_text
from engines.spec import read_accelerator
from validation.real.settings import CUT_NAME, ENGINE_PROFILE, ROOT
from validation.validate import PAGE as FIDELITY
from validation.validate import compare, write_page

PAGE = ROOT / "docs" / "measurements" / "real-server.md"
INTRODUCTION = """# A real server, measured

Written by `make real PUBLISH=1`, a section for each run, newest last: vLLM on a CPU, calibrated, predicted, measured,
planned and verified. [How it is done](../how-to/prove-it-on-your-laptop.md).
"""


def publish(out: Path) -> Iterator[Path]:
    """Copy the cases of a finished run, work out their commands from where they now lie, and add its section."""
    source = out / "validation" / CUT_NAME
    target = ROOT / "validation" / ENGINE_PROFILE / read_accelerator(source / "machine.yaml").name / CUT_NAME
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for case in sorted(target.rglob("case.yaml")):
        compare(case.parent, None)
    yield target
    write_page()
    yield FIDELITY
    before = PAGE.read_text(encoding="utf-8") if PAGE.is_file() else INTRODUCTION
    chart = f"../../{(target / 'measured.svg').relative_to(ROOT).as_posix()}"
    section = (out / "report.md").read_text(encoding="utf-8").replace("](measured.svg)", f"]({chart})")
    write_text(PAGE, f"{before.rstrip()}\n\n{section}")
    yield PAGE
