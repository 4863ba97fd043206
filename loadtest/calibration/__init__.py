"""Fits step times, host times and KV cache to measured points. May import `simulate`, `metrics` and the rooms below."""

from loadtest.calibration.calibrate import MIN_POINTS, calibrate
from loadtest.calibration.measured_points import SERVED, Deployment, Point, points_text, read_points
from loadtest.calibration.structures import TOKEN_BUDGETS, Request

__all__ = [
    "MIN_POINTS",
    "SERVED",
    "TOKEN_BUDGETS",
    "Deployment",
    "Point",
    "Request",
    "calibrate",
    "points_text",
    "read_points",
]
