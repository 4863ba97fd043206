"""The highest load that meets the objectives: bisection with a sequential test.

May import `run`, `simulate` and below.
"""

from loadtest.knee.bisection import Knee, Probe, find_knee
from loadtest.knee.search import UNITS, KneeResult, KneeSearch, Range, Span, driving, predicting, search
from loadtest.knee.sequential_test import CLEAR_Z, share_interval

__all__ = [
    "CLEAR_Z",
    "UNITS",
    "Knee",
    "KneeResult",
    "KneeSearch",
    "Probe",
    "Range",
    "Span",
    "driving",
    "find_knee",
    "predicting",
    "search",
    "share_interval",
]
