"""Charts of a capacity plan as SVG. Colours come from the page's style, for light mode, dark mode and print."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

WIDTH, HEIGHT = 720, 320
TONES = 6  # colours of the page
LEFT, RIGHT, TOP, BOTTOM = 64, 18, 44, 44
_CHAR = 6.3  # approximate width of a character, used to keep labels apart
_STEP = 4  # between the positions at which a label is held against what is drawn
_MANY = 1000
MIN_TICKS = 4  # a logarithmic axis with fewer ticks at 1, 2 and 5 gets evenly spaced ones


class Mark(NamedTuple):
    """A labelled point."""

    x: float
    y: float
    label: str


class Series(NamedTuple):
    """Points of one colour.

    Attributes:
        tone: Index of the page's colour, below `TONES`.
        kind: A line, a stepped line, dots, or dots on a line.
    """

    label: str
    points: Sequence[tuple[float, float]]
    tone: int = 0
    kind: str = "line"
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to positions on the page."""

    low: float
    high: float
    begin: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high, at = self.low, self.high, value
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        return self.begin + (self.end - self.begin) * (at - low) / ((high - low) or 1.0)

    def ticks(self) -> list[float]:
        """Return round values within the range."""
        if self.is_log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            found = [base * 10**power for power in range(first, last + 1) for base in (1, 2, 5)]
            inside = [value for value in found if self.low <= value <= self.high]
            if len(inside) >= MIN_TICKS:
                return inside
        raw = (self.high - self.low) / 5 or 1.0
        power = 10 ** math.floor(math.log10(raw))
        step = next(power * base for base in (1, 2, 2.5, 5, 10) if power * base >= raw)
        begin = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(begin, math.floor(self.high / step + 1e-9) + 1)]


def chart(
    title: str,
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    marks: Sequence[Mark] = (),
    limits: Sequence[tuple[float, str]] = (),
    x_log: bool = False,
    y_log: bool = False,
) -> str:
    """Return a chart of lines and dots as SVG.

    Args:
        x: Label of the x axis; `y` of the y axis.
        marks: Points to label.
        limits: Horizontal lines, each with its label.
    """
    points = [point for each in series for point in each.points]
    across = _scale([px for px, _ in points], (LEFT, WIDTH - RIGHT), is_log=x_log, with_zero=not x_log)
    ups = [py for _, py in points] + [level for level, _ in limits] + [mark.y for mark in marks]
    up = _scale(ups, (HEIGHT - BOTTOM, TOP), is_log=y_log, with_zero=not y_log)
    parts = [_frame(title, across, up, x, y)]
    parts += [
        f'<line class="limit" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(level):.1f}" y2="{up(level):.1f}"/>'
        for level, _ in limits
    ]
    parts += [_drawn(each, across, up) for each in series]
    parts += [
        f'<text class="small limit-name" x="{LEFT + 6}" y="{up(level) - 4:.1f}">{html.escape(name)}</text>'
        for level, name in limits
    ]
    drawn = [place for each in series for place in _places(each, across, up)]
    drawn += [(float(at), up(level)) for level, _ in limits for at in range(LEFT, WIDTH - RIGHT, _STEP)]
    drawn += [
        (LEFT + 6 + at, up(level) - 8) for level, name in limits for at in range(0, int(len(name) * _CHAR), _STEP)
    ]
    parts += [_marked(mark, across, up, drawn) for mark in marks]
    parts.append(_legend(series))
    return _svg(title, parts, HEIGHT)


def tornado(
    title: str, bars: Sequence[tuple[str, float | None, float | None, str, str]], base: float, *, x: str
) -> str:
    """Return a tornado chart: bars on both sides of a base value.

    Args:
        bars: Name, value at the lower and at the upper setting (None: not possible), and the two settings' labels.
    """
    values = [value for _, low, high, _, _ in bars for value in (low, high) if value is not None]
    left, row = 226, 34
    height = TOP + row * len(bars) + BOTTOM
    across = _scale([*values, base], (left, WIDTH - 60), with_zero=False, margin=0.35)
    parts = [f'<text class="title" x="{LEFT - 44}" y="18">{html.escape(title)}</text>']
    for tick in across.ticks():
        at = across(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
        parts.append(
            f'<text class="small" x="{at:.1f}" y="{height - BOTTOM + 16}" text-anchor="middle">{_text(tick)}</text>'
        )
    for place, (name, low, high, low_name, high_name) in enumerate(bars):
        top = TOP + place * row + 6
        parts.append(f'<text x="{left - 10}" y="{top + 15}" text-anchor="end">{html.escape(name)}</text>')
        parts.append(_bar(across, base, low, low_name, top, 0))
        parts.append(_bar(across, base, high, high_name, top, 1))
    at = across(base)
    parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>')
    parts.append(
        f'<text class="small" x="{(left + WIDTH) / 2}" y="{height - 8}" text-anchor="middle">{html.escape(x)}</text>'
    )
    return _svg(title, parts, height)


def _bar(across: Scale, base: float, value: float | None, name: str, top: float, side: int) -> str:
    if value is None:
        where = across(across.high) if side else across(across.low)
        anchor = "end" if side else "start"
        text = f"{html.escape(name)}: not possible"
        return f'<text class="small" x="{where:.1f}" y="{top + 15}" text-anchor="{anchor}">{text}</text>'
    begin, end = sorted((across(base), across(value)))
    is_right = value > base or (value == base and side == 1)
    at, anchor = (end + 5, "start") if is_right else (begin - 5, "end")
    return (
        f'<rect class="fill{side}" x="{begin:.1f}" width="{max(end - begin, 1):.1f}" y="{top}" height="22" rx="2"/>'
        f'<text class="small" x="{at:.1f}" y="{top + 15}" text-anchor="{anchor}">{html.escape(name)}</text>'
    )


def _scale(
    values: Iterable[float],
    span: tuple[float, float],
    *,
    is_log: bool = False,
    with_zero: bool = True,
    margin: float = 0.06,
) -> Scale:
    found = [value for value in values if math.isfinite(value) and (value > 0 or not is_log)] or [1.0]
    low, high = min(found), max(found)
    if is_log:
        return Scale(low / 1.25, high * 1.25, *span, is_log=True)
    low = 0.0 if with_zero and low >= 0 else low - margin * (high - low or 1.0)
    return Scale(low, high + margin * (high - low or 1.0), *span)


def _frame(title: str, across: Scale, up: Scale, x: str, y: str) -> str:
    parts = [f'<text class="title" x="{LEFT - 44}" y="18">{html.escape(title)}</text>']
    for tick in up.ticks():
        at = up(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text class="small" x="{LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{_text(tick)}</text>')
    for tick in _apart(across.ticks(), across):
        at = across(tick)
        parts.append(
            f'<line class="tick" x1="{at:.1f}" x2="{at:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
        )
        parts.append(
            f'<text class="small" x="{at:.1f}" y="{HEIGHT - BOTTOM + 17}" text-anchor="middle">{_text(tick)}</text>'
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text class="small" x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{html.escape(x)}</text>')
    tall = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text class="small" x="16" y="{tall}" text-anchor="middle" transform="rotate(-90 16 {tall})">'
        f"{html.escape(y)}</text>"
    )
    return "".join(parts)


def _apart(ticks: list[float], across: Callable[[float], float]) -> list[float]:
    """Leave out ticks whose labels would overlap."""
    kept: list[float] = []
    for tick in ticks:
        if not kept or across(tick) - across(kept[-1]) > _CHAR * (len(_text(tick)) + 2):
            kept.append(tick)
    return kept


def _drawn(series: Series, across: Scale, up: Scale) -> str:
    places = [(across(px), up(py)) for px, py in series.points]
    parts = []
    if series.kind != "dots" and places:
        steps = series.kind == "steps"
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        for px, py in places[1:]:
            path += f"H{px:.1f}V{py:.1f}" if steps else f"L{px:.1f} {py:.1f}"
        dashed = ' stroke-dasharray="5 4"' if series.is_dashed else ""
        parts.append(f'<path class="line tone{series.tone}" d="{path}"{dashed}/>')
    if series.kind in ("dots", "both"):
        parts += [f'<circle class="dot tone{series.tone}" cx="{px:.1f}" cy="{py:.1f}" r="3.6"/>' for px, py in places]
    return "".join(parts)


def _places(series: Series, across: Scale, up: Scale) -> Iterator[tuple[float, float]]:
    """Yield positions along a series, close enough together that no label fits between two of them."""
    places = [(across(px), up(py)) for px, py in series.points]
    yield from places
    for (at, high), (to, low) in pairwise(places if series.kind != "dots" else ()):
        corner = (to, high) if series.kind == "steps" else None
        for (ax, ay), (bx, by) in pairwise([(at, high), *([corner] if corner else []), (to, low)]):
            count = int(max(abs(bx - ax), abs(by - ay)) // _STEP)
            yield from ((ax + (bx - ax) * k / count, ay + (by - ay) * k / count) for k in range(1, count))


def _marked(mark: Mark, across: Scale, up: Scale, drawn: Sequence[tuple[float, float]]) -> str:
    """Return a ring with its label at the place, of those around it, that hides the least of what is drawn."""
    at, high, width = across(mark.x), up(mark.y), len(mark.label) * _CHAR

    def hidden(place: tuple[float, float]) -> float:
        left, base = place
        if left < LEFT or left + width > WIDTH - RIGHT or not TOP + 10 <= base <= HEIGHT - BOTTOM - 4:
            return math.inf
        return sum(left - 7 < px < left + width + 7 and base - 15 < py < base + 8 for px, py in drawn)

    sides = (at + 10, at - 10 - width, at - width / 2)
    left, base = min(((side, high + lift) for lift in (-9, 20, -24, 34, -44, 54) for side in sides), key=hidden)
    return (
        f'<circle class="mark" cx="{at:.1f}" cy="{high:.1f}" r="6.5"/>'
        f'<text class="small strong" x="{left:.1f}" y="{base:.1f}">'
        f"{html.escape(mark.label)}</text>"
    )


def _legend(series: Sequence[Series]) -> str:
    at, parts = float(WIDTH - RIGHT), []
    for each in reversed([one for one in series if one.label]):
        at -= len(each.label) * _CHAR + 26
        parts.append(
            f'<line class="line tone{each.tone}" x1="{at:.1f}" x2="{at + 14:.1f}" y1="34" y2="34"'
            + (' stroke-dasharray="5 4"' if each.is_dashed else "")
            + f'/><text class="small" x="{at + 18:.1f}" y="38">{html.escape(each.label)}</text>'
        )
    return "".join(parts)


def _svg(title: str, parts: Iterable[str], height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(title, quote=True)}">'
        f"{''.join(parts)}</svg>"
    )


def _text(value: float) -> str:
    if abs(value) >= _MANY:
        return f"{value:,.0f}"
    return f"{value:.10g}" if value == round(value) else f"{value:.3g}"
