"""The pages in a real browser: nothing overflows, overlaps or is cut off, at three widths, light and dark."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))
from conftest import succeed

from tests.e2e.browser import CHROMIUM, Browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
WIDTHS_PX = (1400, 800, 500)
PAGES = ("report/report.html", "comparison/comparison.html", "capacity/capacity.html")
LOAD = ("--isl", "200", "--osl", "40", "--concurrency", "1,8,32", "--requests", "200")
DEMAND = {
    "name": "small",
    "model": "llama-3-8b",
    "traffic": {
        "process": "described",
        "rate_by_hour_per_s": [1, 1, 0.5, 0.5, 0.5, 1, 2, 3, 4, 5, 6, 6, 6, 6, 5, 5, 5, 4, 4, 3, 3, 2, 2, 1],
        "lengths": {"isl": 256, "osl": 16},
    },
    "objectives": {"ttft_s": {"p90": 0.5}, "itl_s": {"p99": 0.1}},
    "limits": {"gpus": ["h100-sxm-80gb", "a100-sxm-80gb"], "precisions": ["fp8", "int8_sq"]},
    "candidates": {"max_batch_size": [16], "max_num_tokens": [2048]},
}
# What each fault looks like, and how it is named.
FAULTY = {
    "page: ": '<div style="width: 2000px">wide</div>',
    "'one' lies on 'two'": '<svg width="90"><text x="5" y="20">one</text><text x="9" y="22">two</text></svg>',
    "'outside' is cut off": '<svg width="90" height="40"><text x="70" y="20">outside</text></svg>',
    "table 'w' is cut off": '<div style="width: 9px"><table style="width: 99px"><tr><td>w</td></tr></table></div>',
    "table 's' scrolls in a wide window": (
        '<div class="wide" style="width: 9px; overflow-x: auto">'
        '<table style="width: 99px"><tr><td>s</td></tr></table></div>'
    ),
    "cell 'clipped' is cut off": (
        '<table style="table-layout: fixed; width: 20px"><tr><td style="overflow: hidden">clipped</td></tr></table>'
    ),
}


def _run(*command: str, folder: Path) -> None:
    with contextlib.chdir(folder):
        succeed(*command)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make one page of each kind, from predictions."""
    folder = tmp_path_factory.mktemp("pages")
    (folder / "demand.yaml").write_text(yaml.safe_dump(DEMAND))
    for out, gpu, precision in (("fast", "h100-sxm-80gb", "fp8"), ("slow", "a100-sxm-80gb", "int8_sq")):
        engine = ("--model", "llama-3-8b", "--gpu", gpu, "--precision", precision)
        _run("predict-load", *engine, *LOAD, "--out", out, folder=folder)
    _run("report-load", "fast", "--out", "report", "--no-exports", folder=folder)
    _run("report-load", "--compare", "fast", "slow", "--out", "comparison", folder=folder)
    asked = ("demand.yaml", "--what-if", "traffic*=2", "--out", "capacity", "--workers", "1")
    _run("plan-capacity", *asked, folder=folder)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Start Chromium once."""
    with Browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


def _lightness(colour: str) -> float:
    """Return the mean of `rgb(r, g, b)`, 0 to 255."""
    channels = [float(each) for each in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(channels) / 3


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_whole(pages: Path, browser: Browser, page: str, width_px: int, dark: bool) -> None:
    """No overflow, no label on another, nothing cut off, nothing loaded; dark where the reader's system is."""
    found = browser.open(pages / page, width_px=width_px, dark=dark)
    image = pages / f"{Path(page).stem}-{width_px}-{'dark' if dark else 'light'}.png"
    browser.shoot(image, width_px=width_px, height_px=found["height"])
    assert image.stat().st_size > 50_000, "an empty page"
    assert found["faults"] == []
    assert found["loaded"] == []
    assert found["labels"] > 30
    assert found["dark"] is dark
    assert (_lightness(found["paper"]) < 60) is dark
    assert (_lightness(found["ink"]) > 200) is dark


@pytest.mark.parametrize("fault", FAULTY)
def test_every_kind_of_fault_is_seen(tmp_path: Path, browser: Browser, fault: str) -> None:
    """A page made with one fault has that fault, and only that one."""
    page = tmp_path / "page.html"
    page.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin: 0">{FAULTY[fault]}')
    (found,) = browser.open(page, width_px=max(WIDTHS_PX) if "wide window" in fault else 500, dark=False)["faults"]
    assert fault in found
