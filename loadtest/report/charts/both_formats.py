"""One pass over a figure that draws it as SVG and as PNG.

Matplotlib draws a figure once for each format, and so places every tick and lays out every text twice. Here one pass
draws with both of its renderers. The layout is the PNG's, which has the pixels of Matplotlib's own file; an SVG's text
is set by the reader's program, in the reader's font.
"""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backend_bases import GraphicsContextBase, RendererBase
from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.transforms import Affine2D, TransformedBbox, TransformedPath

from loadtest.report.charts.png import png_of

PNG_DPI, SVG_DPI = 150, 72
_TO_SVG = Affine2D().scale(SVG_DPI / PNG_DPI)
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw_both(figure: Any) -> tuple[str, bytes]:
    """Return a figure as SVG and as an opaque PNG."""
    svg = io.StringIO()
    figure.set_dpi(PNG_DPI)
    renderer = _BothRenderers(figure, svg)
    figure.draw(renderer)
    return renderer.finished(svg)


class _BothRenderers(RendererBase):
    """Draws in pixels of the PNG, and the same in points as SVG: paths, markers and text; charts have no images."""

    def __init__(self, figure: Any, svg: io.StringIO) -> None:
        super().__init__()
        inches = figure.get_size_inches()
        self._png = RendererAgg(*(inches * PNG_DPI), PNG_DPI)
        self._svg = RendererSVG(*(inches * SVG_DPI), svg, metadata=_NO_METADATA)

    def finished(self, svg: io.StringIO) -> tuple[str, bytes]:
        """Return what was drawn; nothing can be added, and the figure, which refers to this, keeps no pixels."""
        self._svg.finalize()
        png = png_of(np.asarray(self._png.buffer_rgba()), dpi=PNG_DPI)
        del self._svg, self._png
        return svg.getvalue(), png

    def open_group(self, *args: Any, **kwargs: Any) -> None:
        """Begin a part of the SVG."""
        self._svg.open_group(*args, **kwargs)

    def close_group(self, *args: Any, **kwargs: Any) -> None:
        """End it."""
        self._svg.close_group(*args, **kwargs)

    def draw_path(self, gc: Any, path: Any, transform: Any, *face: Any, **named: Any) -> None:
        """Draw a line or an area."""
        self._png.draw_path(gc, path, transform, *face, **named)
        self._svg.draw_path(_scaled(gc), path, transform + _TO_SVG, *face, **named)

    def draw_markers(
        self, gc: Any, marker_path: Any, marker_trans: Any, path: Any, trans: Any, *face: Any, **named: Any
    ) -> None:
        """Draw a marker at each point of a path."""
        self._png.draw_markers(gc, marker_path, marker_trans, path, trans, *face, **named)
        self._svg.draw_markers(_scaled(gc), marker_path, marker_trans + _TO_SVG, path, trans + _TO_SVG, *face, **named)

    def draw_path_collection(
        self,
        gc: Any,
        master_transform: Any,
        paths: Any,
        all_transforms: Any,
        offsets: Any,
        offset_trans: Any,
        *styles: Any,
        **named: Any,
    ) -> None:
        """Draw many paths."""
        path_of_each = (paths, all_transforms, offsets)
        self._png.draw_path_collection(gc, master_transform, *path_of_each, offset_trans, *styles, **named)
        self._svg.draw_path_collection(
            _scaled(gc), master_transform + _TO_SVG, *path_of_each, offset_trans + _TO_SVG, *styles, **named
        )

    def draw_text(
        self, gc: Any, x: float, y: float, s: str, prop: Any, angle: float, ismath: Any = False, mtext: Any = None
    ) -> None:
        """Draw one line of text at its left end."""
        self._png.draw_text(gc, x, y, s, prop, angle, ismath, mtext)
        ratio = SVG_DPI / PNG_DPI
        anchored = None if mtext is None else _ScaledText(mtext)
        self._svg.draw_text(_scaled(gc), x * ratio, y * ratio, s, prop, angle, ismath, anchored)

    def get_canvas_width_height(self) -> tuple[float, float]:
        """Return the image's size in pixels."""
        return self._png.width, self._png.height

    def get_text_width_height_descent(self, s: str, prop: Any, ismath: Any) -> tuple[float, float, float]:
        """Return the size of a line of text in pixels."""
        return _text_size(s, prop, ismath, mpl.rcParams["text.hinting"])

    def points_to_pixels(self, points: Any) -> Any:
        """Return a length in pixels."""
        return self._png.points_to_pixels(points)


@lru_cache(maxsize=4096)
def _text_size(text: str, font: Any, is_math: Any, hinting: str) -> tuple[float, float, float]:  # noqa: ARG001 (of the key)
    """Return width, height and descent of a line of text in pixels; the charts of a report share many words."""
    found: tuple[float, float, float] = RendererAgg(1, 1, PNG_DPI).get_text_width_height_descent(text, font, is_math)
    return found


class _ScaledText:
    """A text as the SVG's renderer reads it, which anchors text where the figure does: in points."""

    def __init__(self, text: Any) -> None:
        self._text = text

    def get_transform(self) -> Any:
        """Return the transform of the text's place."""
        return self._text.get_transform() + _TO_SVG

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)


def _scaled(gc: Any) -> Any:
    """Return the properties of a line with its clipping in points."""
    scaled: Any = GraphicsContextBase()
    scaled.copy_properties(gc)
    box, (path, transform) = gc.get_clip_rectangle(), gc.get_clip_path()
    if box is not None:
        scaled.set_clip_rectangle(TransformedBbox(box, _TO_SVG))
    if path is not None:
        scaled.set_clip_path(TransformedPath(path, transform + _TO_SVG))
    return scaled
