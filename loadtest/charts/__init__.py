"""Charts of load tests, as SVG or PNG."""

from loadtest.charts.batch import gap_against_batch
from loadtest.charts.canvas import Image, theme_css, themed
from loadtest.charts.changes import changes
from loadtest.charts.levels import latency_against_batch, latency_against_load
from loadtest.charts.spread import distributions, frontier
from loadtest.charts.timeline import timeline

__all__ = [
    "Image",
    "changes",
    "distributions",
    "frontier",
    "gap_against_batch",
    "latency_against_batch",
    "latency_against_load",
    "theme_css",
    "themed",
    "timeline",
]
