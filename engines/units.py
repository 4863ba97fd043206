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


def three_digits(value: float) -> str:
    """Return a number with three significant digits, or all those before the point; no exponent from 0.0001 on.

    >>> three_digits(1004.8), three_digits(63.42), three_digits(0.4163)
    ('1,005', '63.4', '0.416')
    """
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"  # noqa: PLR2004 (from here .3g has an exponent)
