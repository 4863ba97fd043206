"""Charts of load tests, as SVG and PNG."""

from loadtest.report.charts.batch_latency import gap_against_batch
from loadtest.report.charts.comparison import changes
from loadtest.report.charts.distributions import distributions, frontier
from loadtest.report.charts.energy import energy_and_cost
from loadtest.report.charts.load_curves import latency_against_batch, latency_against_load
from loadtest.report.charts.style import Drawing
from loadtest.report.charts.timeline import timeline

__all__ = [
    "Drawing",
    "changes",
    "distributions",
    "energy_and_cost",
    "frontier",
    "gap_against_batch",
    "latency_against_batch",
    "latency_against_load",
    "timeline",
]
