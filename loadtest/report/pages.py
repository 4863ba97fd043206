"""HTML pages from templates: one stylesheet for light mode, dark mode and print, self-contained, all text escaped."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from loadtest.report.theme import theme_css

NONE = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table; all texts are escaped.

    Attributes:
        text: The text.
        note: Small text beside it.
        below: Small text on its own line.
        tone: `met`, `error` or `weak`: the text's colour.
        title: Tooltip.
        code: Whether the text is set as code.
        strong: Whether the text is bold.
        flag: A red word after the text.
    """

    text: str
    note: str = ""
    below: str = ""
    tone: str = ""
    title: str = ""
    code: bool = False
    strong: bool = False
    flag: str = ""


class Table(NamedTuple):
    """A table of a page.

    Attributes:
        heads: One per column.
        rows: Each as long as `heads`; a string is a cell with text only.
        text_columns: Number of leading text columns, left-aligned.
        groups: A first row of headings: (text, columns it spans); may be empty.
        text_at: Further text columns, counted from 0.
        strong: Highlighted rows, counted from 0.
        notes: Text below each row over its whole width; empty ones are omitted.
    """

    heads: tuple[Cell | str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    text_columns: int = 1
    groups: tuple[tuple[str, int], ...] = ()
    text_at: Collection[int] = ()
    strong: Collection[int] = ()
    notes: Sequence[str] = ()


def table(
    heads: Iterable[Cell | str],
    rows: Iterable[Iterable[Cell | str]],
    *,
    text_columns: int = 1,
    **more: Any,
) -> Table:
    """Return a table; rows may be any iterables.

    Args:
        more: The further attributes of `Table`.
    """
    return Table(tuple(heads), tuple(tuple(row) for row in rows), text_columns, **more)


def inline_svg(svg: str, name: str) -> Markup:
    """Return a chart's SVG element only, its ids prefixed with `name`, scaled to the page's width."""
    element = svg[svg.index("<svg") :]
    for before in (' id="', 'href="#', "url(#"):
        element = element.replace(before, f"{before}{name}-")
    head, rest = element.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return Markup(head.replace("<svg", f'<svg role="img" aria-label="{name.replace("_", " ")}"', 1) + ">" + rest)


def render_page(template: str, *, package: str = "loadtest.report", **values: Any) -> str:
    """Return a page.

    Args:
        template: A file of the package's `templates/`; it may extend `base.html.j2` of this room.
        package: Package of the template.
        values: Values for the template. Strings are escaped; charts come through `inline_svg`.

    Raises:
        jinja2.UndefinedError: The template uses an undefined value.
    """
    loaders = [jinja2.PackageLoader(package), jinja2.PackageLoader("loadtest.report")]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["thousands"] = "{:,}".format
    chart_colours = {"light": Markup(theme_css(dark=False)), "dark": Markup(theme_css(dark=True))}
    return environment.get_template(template).render(chart_colours=chart_colours, none=NONE, **values)
