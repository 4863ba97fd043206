"""PNG files of charts, without a filter for their rows.

Pillow tries five filters on every row, which takes as long as compressing the rows; of a chart, most of whose pixels
equal their neighbours, the best ones save 2 % (docs/decisions/0008).
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
BITS, RGB, NO_FILTER, PER_METRE = 8, 2, 0, 1
COMPRESSION = 3
INCH_M = 0.0254


def png_of(pixels: npt.NDArray[np.uint8], *, dpi: int) -> bytes:
    """Return an opaque image as a PNG file (ISO/IEC 15948).

    Args:
        pixels: Red, green, blue, and an alpha that is ignored; shape (height, width, 4).
    """
    height, width, _ = pixels.shape
    rows = np.empty((height, 1 + 3 * width), dtype=np.uint8)
    rows[:, 0] = NO_FILTER
    for channel in range(3):  # one after the other: numpy copies three bytes at a time slower than every third byte
        rows[:, 1 + channel :: 3] = pixels[..., channel]
    per_metre = round(dpi / INCH_M)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, BITS, RGB, 0, 0, 0)),
        (b"pHYs", struct.pack(">IIB", per_metre, per_metre, PER_METRE)),
        (b"IDAT", zlib.compress(rows.data, COMPRESSION)),
        (b"IEND", b""),
    )
    return SIGNATURE + b"".join(_chunk(name, data) for name, data in chunks)


def _chunk(name: bytes, data: bytes) -> bytes:
    """Return a part of the file: its length, its name, its content, and a checksum of both."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(name)))
