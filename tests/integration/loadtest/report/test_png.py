"""PNG files of charts, read by Pillow and compared with Matplotlib's own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from loadtest.report.charts.both_formats import PNG_DPI
from loadtest.report.charts.png import png_of
from loadtest.report.charts.style import drawing_of, new_figure


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (300, 1001)])
def test_pixels_are_read_back(shape: tuple[int, int]) -> None:
    """An image of any size is read back pixel by pixel, with its resolution."""
    pixels = np.random.default_rng(1).integers(0, 256, size=(*shape, 4), dtype=np.uint8)
    with Image.open(io.BytesIO(png_of(pixels, dpi=150))) as image:
        assert image.mode == "RGB"
        assert image.info["dpi"] == pytest.approx((150, 150), abs=0.02)
        assert np.array_equal(np.asarray(image), pixels[..., :3])


def test_a_chart_has_the_pixels_of_matplotlibs_own_file() -> None:
    """A drawing's PNG equals what Matplotlib writes of the same figure, and is not much larger."""
    figure = new_figure()
    figure.subplots(1, 2)[0].plot([1, 2, 4], [3, 1, 2], label="a line")
    figure.legend()
    ours = drawing_of(figure).png
    own = io.BytesIO()
    FigureCanvasAgg(figure).print_png(own)  # with the ticks that are drawn for both
    with Image.open(io.BytesIO(ours)) as image, Image.open(own) as expected:
        assert image.size == (round(14.0 * PNG_DPI), round(5.4 * PNG_DPI))
        assert np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))
    assert len(ours) < 1.5 * len(own.getvalue())
