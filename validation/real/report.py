"""The page of one run of the chain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.calibration import Calibration


def page_of(
    *,
    title: str,
    context: dict[str, Any],
    disturbance: list[str],
    calibration: Calibration,
    table: str,
    verdicts: list[str],
    knee: str,
    plan: str,
) -> str:
    """Return the page as Markdown; every latency and rate in it was measured, or is said to be predicted."""
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items())
    errors = ", ".join(f"{name} {100 * value:.1f} %" for name, value in calibration.log_error.items())
    drift = ", ".join(f"{name} {100 * value:.1f} %" for name, value in calibration.drift.items()) or "not measured"
    parameters = "\n".join(
        f"| `{each.name}` | {each.value:.3g} | {each.low:.3g} to {each.high:.3g} | "
        f"{'points' if each.identified else 'expectation'} |"
        for each in calibration.parameters
    )
    return f"""## {title}

{context["began"]}; {context["machine"]}; {context["system"]}; {context["cores"]}. {versions}. Kind: measured.

**Do server and load disturb each other?** {" ".join(disturbance)}

**Goals, on loads the calibration has not seen:**

{chr(10).join(f"- {each}" for each in verdicts)}
- {knee}
- {plan}

{table}
![Predicted against measured](measured.svg)

Calibrated on {len(calibration.points)} levels; standard error ({calibration.log_error_of}, drift included): {errors}. \
Drift between repeated levels: {drift}.

| parameter | value | 95 % interval | decided by |
| --- | --- | --- | --- |
{parameters}
"""


def plan_sentence(plan: Path, verification: Path) -> str:
    """Return what was planned, and whether it held when it was served."""
    planned = json.loads(plan.read_text(encoding="utf-8"))
    found = json.loads(verification.read_text(encoding="utf-8"))
    held = "held" if found["held"] else f"not held: {', '.join((*found['missed'], *found['validity_issues']))}"
    figures = "; ".join(_figure(each) for each in found["figures"])
    return (
        f"Plan: {planned['sentence']} Served with its settings at {found['found_per_s']:.3g} requests/s: {held} "
        f"({figures})."
    )


def _figure(figure: dict[str, Any]) -> str:
    """Return one figure of a verification in milliseconds: the middle of the prediction, and what was measured."""
    planned, found = (None if figure[key] is None else 1e3 * figure[key] for key in ("middle", "found"))
    name = figure["name"].removesuffix("_s").replace("_", " ").upper().replace("MEAN", "mean").replace(" P", " p")
    texts = ["-" if each is None else f"{each:.3g}" for each in (planned, found)]
    return f"{name} {texts[0]} ms predicted, {texts[1]} measured"
