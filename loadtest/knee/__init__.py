"""TODO."""

from loadtest.knee.bisection import Knee, Probe, find_knee
from loadtest.knee.search import UNITS, Asked, KneeFound, Range, Span, driving, predicting, promises_of, search
from loadtest.knee.sequential_test import Promise

__all__ = [
    "UNITS",
    "Asked",
    "Knee",
    "KneeFound",
    "Probe",
    "Promise",
    "Range",
    "Span",
    "driving",
    "find_knee",
    "predicting",
    "promises_of",
    "search",
]
