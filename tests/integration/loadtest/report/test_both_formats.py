"""A figure drawn once as SVG and PNG, compared with Matplotlib's own file of each format."""

from __future__ import annotations

import io
import re
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from PIL import Image

from loadtest.report.charts.style import drawing_of, new_figure, style
from loadtest.report.charts.ticks import draw_ticks

POINTS = 0.5  # of difference: the texts of the two formats are measured at their own resolutions
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_ID = re.compile(r"#?[pmC][0-9a-z_]*[0-9a-f]{10}")


def _figure(figure: Any) -> Any:
    """Fill a figure with all that charts draw: lines, markers, areas, bars, many points, texts, clipped and not."""
    left, right = figure.subplots(1, 2)
    left.plot([1, 2, 4], [3, 1, 2], "--o", label="a line")
    left.fill_between([1, 2, 4], [2, 1, 1], [3, 2, 2], alpha=0.3)
    left.axvspan(1.5, 2, hatch="/")
    left.set_ylabel("turned")
    left.set_title("left", loc="left")
    right.scatter(np.linspace(0, 1, 40), np.linspace(1, 0, 40), s=np.arange(40.0), c=np.arange(40.0))
    right.bar([0.2, 0.5], [0.4, 0.1])
    right.set_yscale("symlog")
    right.plot([0, 1], [0, 1])[0].set_clip_path(Circle((0.5, 0.5), 0.3, transform=right.transData))
    right.annotate("here", (0.5, 0.5), xytext=(4, 4), textcoords="offset points", ha="center", bbox={"pad": 2})
    right.text(0.1, 0.9, "$x^2$ & <y>", transform=right.transAxes, rotation=30)
    figure.legend(loc="upper right")
    return figure


def _parts(svg: str) -> list[tuple[str, str, list[float]]]:
    """Return each element's name, its text and attributes without numbers and ids, and its numbers."""
    found = []
    for element in ElementTree.fromstring(svg).iter():
        words = " ".join(_ID.sub("", f"{key}={value}") for key, value in sorted(element.attrib.items()))
        numbers = [float(number) for number in _NUMBER.findall(words)]
        found.append((element.tag, f"{element.text} {_NUMBER.sub('', words)}", numbers))
    return found


def test_both_formats_equal_matplotlibs_own() -> None:
    """The PNG has the same pixels; the SVG, with the same ticks, has the same elements in the same places."""
    with style("test"):
        ours = drawing_of(_figure(new_figure()))
        figure = _figure(Figure(figsize=(14.0, 5.4)))
        own_svg, own_png = io.StringIO(), io.BytesIO()
        figure.set_dpi(150)
        FigureCanvasAgg(figure).print_png(own_png)
        figure = _figure(new_figure())
        for panel in figure.axes:
            draw_ticks(panel)
        figure.savefig(own_svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    with Image.open(io.BytesIO(ours.png)) as image, Image.open(own_png) as expected:
        assert np.array_equal(np.asarray(image), np.asarray(expected.convert("RGB")))
    parts, expected_parts = _parts(ours.svg), _parts(own_svg.getvalue())
    assert len(parts) > 100
    for (tag, words, numbers), (own_tag, own_words, own_numbers) in zip(parts, expected_parts, strict=True):
        assert (tag, words) == (own_tag, own_words)
        assert numbers == pytest.approx(own_numbers, abs=POINTS)


def test_a_drawing_is_reproducible() -> None:
    """The same figure gives the same bytes."""
    with style("test"):
        assert drawing_of(_figure(new_figure())) == drawing_of(_figure(new_figure()))


def test_an_image_is_refused() -> None:
    """What the two renderers would draw differently, a picture of pixels, is not left out silently."""
    with style("test"), mpl.rc_context({"image.composite_image": False}):
        figure = new_figure()
        figure.subplots().imshow(np.zeros((2, 2)))
        with pytest.raises(NotImplementedError):
            drawing_of(figure)
