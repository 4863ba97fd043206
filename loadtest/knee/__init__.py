"""TODO."""

from loadtest.knee.bisection import Knee, Probe, find_knee
from loadtest.knee.search import UNITS, KneeFound, KneeSearch, Range, Span, driving, predicting, promises_of, search
from loadtest.knee.sequential_test import ObjectiveScope, share_interval

__all__ = [
    "UNITS",
    "Knee",
    "KneeFound",
    "KneeSearch",
    "ObjectiveScope",
    "Probe",
    "Range",
    "Span",
    "driving",
    "find_knee",
    "predicting",
    "promises_of",
    "search",
    "share_interval",
]
