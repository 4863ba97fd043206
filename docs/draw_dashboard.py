"""Draw docs/images/dashboard.svg: every panel of a deployment's dashboard, by its own query.

A real Prometheus asks the real Triton, which serves an emulated engine under a load that fits it and then one that does
not. Grafana itself is not used: it draws the same queries with other pens. Needs Debian's prometheus; two minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "e2e"))
from conftest import BIN, succeed
from monitoring import Deployed, Prometheus, small_engine, wait_until

FITS, TOO_MUCH = ("6", "30"), ("30", "20")  # requests a second, seconds
UNITS = {"short": "", "reqps": "", "percentunit": ", ratio", "s": ", s"}  # Grafana's names; most titles say it
LENGTHS = ("--isl", "128", "--osl", "128")


def main() -> None:
    """Serve, load, ask and draw."""
    mpl.use("agg")
    mpl.rcParams.update({"svg.hashsalt": "docs", "font.size": 9, "axes.grid": True, "grid.alpha": 0.25})
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        small_engine(base / "engine")
        queue = ["--max-queue-size", 20, "--time-scale", 2]
        succeed("build-repo", base / "engine", "--out", base / "repository", *queue)
        succeed("build-deployment", base / "repository", "--out", base / "files", "--name", "demo")
        server = Deployed(base / "files", base)
        try:
            wait_until(lambda: server.control("probe") == 0)
            prometheus = Prometheus(base / "files", base, server.metrics)
            try:
                panels, begin = _load(server, base), time.time()
                figure = draw(panels, prometheus, begin - 80, begin)
            finally:
                prometheus.end()
        finally:
            server.end()
    figure.savefig(ROOT / "docs/images/dashboard.svg", format="svg", metadata=dict.fromkeys(("Creator", "Date")))


def _load(server: Deployed, base: Path) -> list[dict[str, Any]]:
    """Send both loads; return the dashboard's panels."""
    for number, (rate, seconds) in enumerate((FITS, TOO_MUCH)):
        command = [str(BIN / "run-load"), "--url", server.url, "--model", "ensemble", *LENGTHS]
        more = ["--rate", rate, "--duration", seconds, "--out", str(base / f"run{number}")]
        subprocess.run([*command, *more], check=False, capture_output=True, timeout=200)
    time.sleep(3)
    return list(json.loads((base / "files/grafana/dashboard.json").read_text())["panels"])


def draw(panels: list[dict[str, Any]], prometheus: Prometheus, begin_s: float, end_s: float) -> Figure:
    """Return one chart a panel, in the dashboard's order."""
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(12, 2.3 * rows), layout="constrained")
    figure.suptitle(
        "Emulated engine of 8 slots; a load that fits, then one that does not. Drawn from the panels' queries."
    )
    places = list(figure.subplots(rows, 2).flat)
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, panel in zip(places, panels, strict=False):
        unit = UNITS[panel["fieldConfig"]["defaults"]["unit"]]
        axes.set_title(f"{panel['title']}{unit}", fontsize=10, loc="left")
        for target in panel["targets"]:
            _lines(axes, target, prometheus, begin_s, end_s)
        axes.set_xlim(0, end_s - begin_s)
        axes.set_ylim(bottom=0)
        if any(line.get_label()[:1] not in "_" for line in axes.lines):
            axes.legend(fontsize=7, loc="upper left")
        if not axes.lines:
            axes.text(0.5, 0.5, "this server (Triton 24.10) does not publish it", ha="center", transform=axes.transAxes)
    figure.supxlabel("seconds")
    return figure


def _lines(axes: Axes, target: dict[str, Any], prometheus: Prometheus, begin_s: float, end_s: float) -> None:
    span = {"start": str(begin_s), "end": str(end_s), "step": "1"}
    found = prometheus.ask("query_range", query=target["expr"], **span)["result"]
    for series in found:
        times = [float(at) - begin_s for at, _ in series["values"]]
        label = target["legendFormat"].replace(" {{instance}}", "").replace("{{instance}}", "")
        for name, value in series["metric"].items():
            label = label.replace(f"{{{{{name}}}}}", value)
        axes.plot(times, [float(value) for _, value in series["values"]], label=label)


if __name__ == "__main__":
    main()
