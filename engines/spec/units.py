"""Units for people. Inside the code there are only seconds and bytes; these turn them into what is read."""

from __future__ import annotations

GIB = 1024**3
MIB = 1024**2


def gib(size_bytes: float) -> str:
    """Return bytes as GiB for a reader.

    >>> gib(16_381_470_720)
    '15.26 GiB'
    """
    return f"{size_bytes / GIB:.2f} GiB"


def milliseconds(seconds: float) -> str:
    """Return seconds as milliseconds with three significant digits.

    >>> milliseconds(0.0051234), milliseconds(1.5)
    ('5.12 ms', '1500 ms')
    """
    value = seconds * 1000
    return f"{value:.3g} ms" if value < 1000 else f"{value:.0f} ms"  # noqa: PLR2004 (where digits become noise)
