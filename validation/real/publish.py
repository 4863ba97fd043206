"""From the output folder to the repository: the cases below validation/, the page below docs/measurements/."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from engines.files import read_json, write_text
from engines.spec import read_accelerator
from validation.fidelity.comparison import compare
from validation.fidelity.page import PAGE as FIDELITY
from validation.fidelity.page import write_page
from validation.real.chain import Context
from validation.real.settings import CUT_NAME, ENGINE_PROFILE, ROOT

PAGE = ROOT / "docs" / "measurements" / "real-server.md"
IMAGES = ROOT / "docs" / "images"
INTRODUCTION = """# A real server, measured

Do calibrated predictions hold on an engine by other authors? `make real` calibrates, predicts, measures, plans and
verifies vLLM on a CPU ([how](../how-to/prove-it-on-your-laptop.md)); `make real PUBLISH=1` adds a section for each run,
newest last.
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
    # The cases hold the latest run alone; each section keeps the chart of its own.
    chart = IMAGES / f"real-server-{read_json(out / 'context.json', Context).began:%Y%m%dT%H%M%S}.svg"
    shutil.copyfile(target / "measured.svg", chart)
    yield chart
    section = (out / "report.md").read_text(encoding="utf-8").replace("](measured.svg)", f"](../images/{chart.name})")
    write_text(PAGE, with_section(before, section, chart=chart.name))
    yield PAGE


def with_section(page: str, section: str, *, chart: str) -> str:
    r"""Return the page with a run's section: in the place of the one that shows the same chart, else at the end.

    >>> page = with_section("# Runs", "## A\n\n![](a.svg)\n", chart="a.svg")
    >>> page == with_section(page, "## A\n\n![](a.svg)\n", chart="a.svg")
    True
    """
    parts = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    kept = [section if f"{chart})" in part else part for part in parts]
    return "\n\n".join(part.strip() for part in (kept if section in kept else [*kept, section])) + "\n"
