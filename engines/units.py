"""Factors between units, and units for display. Internally there are only seconds and bytes."""

from __future__ import annotations

import re

GIB = 1024**3
MIB = 1024**2
MS_PER_S = 1e3
S_PER_MS = 1e-3
SECONDS_PER_H = 3600.0
_SECONDS = {"ms": S_PER_MS, "s": 1, "m": 60, "min": 60, "h": SECONDS_PER_H}
_THOUSANDS = {"k": 10**3, "K": 10**3, "M": 10**6}


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

    >>> three_digits(1004.8), three_digits(63.42), three_digits(0.52), three_digits(0)
    ('1,005', '63.4', '0.520', '0')
    """
    if abs(value) >= 999.5:  # noqa: PLR2004 (from here .3g has an exponent)
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".") if value else "0"


def short_number(value: float) -> str:
    """Return a number with three significant digits, or all those before the point, without zeros at its end.

    >>> short_number(24.4367), short_number(0.5), short_number(8), short_number(1234.5)
    ('24.4', '0.5', '8', '1,234')
    """
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"  # noqa: PLR2004 (from here .3g has an exponent)


def hint_of_time(given: str, *, in_ms: bool = False) -> str | None:
    """Return what to write in place of a time that was given with its unit.

    >>> hint_of_time("150ms"), hint_of_time("1.5 min")
    ('times are in seconds, without a unit: 0.15', 'times are in seconds, without a unit: 90')
    >>> hint_of_time("0.05s", in_ms=True)
    'this time is in milliseconds, without a unit: 50'
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)\s*", given)
    if found is None:
        return None
    time_s = float(found[1]) * _SECONDS[found[2]]
    if in_ms:
        return f"this time is in milliseconds, without a unit: {time_s * MS_PER_S:g}"
    return f"times are in seconds, without a unit: {time_s:g}"


def hint_of_count(given: str) -> str | None:
    """Return what to write in place of a number that was given in thousands or millions.

    >>> hint_of_count("1.5k"), hint_of_count("2M")
    ('write the number out: 1500', 'write the number out: 2000000')
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKM])", given)
    return f"write the number out: {round(float(found[1]) * _THOUSANDS[found[2]])}" if found else None
