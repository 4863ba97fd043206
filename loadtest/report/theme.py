"""Colours of charts and pages, each with a counterpart for dark pages; without Matplotlib.

Files use the light ones, and `themed` makes an SVG inside a page follow the page.
"""

from __future__ import annotations

import re

INK, FAINT, AXIS, GRID, PAPER, ON_TAG = "#1f2933", "#616e7c", "#9aa5b1", "#e4e7eb", "#ffffff", "#fefefe"
# Okabe and Ito's palette, distinguishable for colour-blind readers: https://jfly.uni-koeln.de/color/
BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"
RUN_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, SKY, ORANGE)
# Levels by load: viridis, without its light end on white paper and its dark end on black
LEVEL_COLOURS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#7fb02e", "#c2a400")
KIND_COLOURS = {"measured": "#00805d", "emulated": "#b26a00", "predicted": "#7a5195"}
BAD = "#b00020"
DARK = {
    INK: "#e6e9ed",
    FAINT: "#a3adb8",
    AXIS: "#616e7c",
    GRID: "#2c343d",
    PAPER: "#171c22",
    BLUE: "#4aa8e0",
    VERMILION: "#ff8a4c",
    GREEN: "#3fc79f",
    PURPLE: "#e39ac4",
    SKY: "#8fd0f5",
    ORANGE: "#f2b84b",
    **dict(
        zip(
            LEVEL_COLOURS,
            ("#7e6bc4", "#6f8fd6", "#5aa9d6", "#44bcc0", "#43c8a0", "#6fd98a", "#a9dc5b", "#f0e04a"),
            strict=True,
        )
    ),
}


def themed(svg: str) -> str:
    """Return an SVG whose colours are the page's variables, so that it follows the page's theme; see `theme_css`."""
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: f"var(--c{found[0][1:]})" if found[0] in DARK else found[0], svg)


def theme_css(*, dark: bool) -> str:
    """Return the declarations of the variables that `themed` uses."""
    return " ".join(f"--c{light[1:]}: {shade if dark else light};" for light, shade in DARK.items())
