"""TODO."""

from loadtest.knee.bisection import Knee, Probe, find_knee
from loadtest.knee.search import UNITS, KneeFound, KneeSearch, Range, Span, driving, predicting, search

__all__ = [
    "UNITS",
    "Knee",
    "KneeFound",
    "KneeSearch",
    "Probe",
    "Range",
    "Span",
    "driving",
    "find_knee",
    "predicting",
    "search",
]
