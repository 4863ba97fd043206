"""Factors between units, and units for display. Internally there are only seconds and bytes."""

from __future__ import annotations

GIB = 1024**3
MIB = 1024**2
MS_PER_S = 1e3
S_PER_MS = 1e-3
SECONDS_PER_H = 3600.0


def gib(size_bytes: float) -> str:
    """Return bytes as GiB for display.

    >>> gib(16_381_470_720)
    '15.26 GiB'
    """
    return f"{size_bytes / GIB:.2f} GiB"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds, without the unit, with three or more significant digits.

    >>> milliseconds(0.0051234), milliseconds(0.0301), milliseconds(1.5)
    ('5.12', '30.1', '1,500')
    """
    value = seconds * MS_PER_S
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"  # noqa: PLR2004
