"""The knee by find-knee, predicted within the calibration's error and measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

from engines.calibration import read_calibration
from engines.files import Strict
from engines.steptime import Z_95
from validation.real.commands import ours
from validation.real.loads import Target
from validation.real.settings import KNEE_MOST_REQUESTS, KNEE_MOST_USERS, KNEE_SHAPE, KNEE_TOLERANCE


class Knee(Strict):
    """Users at which the objective is still met.

    Attributes:
        objective: As find-knee takes it.
        predicted: The knee of the calibrated engine; `low` and `high` those of an engine as slow and as fast as the
            calibration's error allows. None: even one user misses it, or the most users keep it.
        measured: The highest number of users that met it; `above` the next that was tried and missed.
    """

    objective: str
    low: float
    predicted: float
    high: float
    measured: float
    above: float | None

    @property
    def is_within(self) -> bool:
        """Whether the measured knee is within the predicted bracket."""
        return self.low <= self.measured <= self.high

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        verdict = "within" if self.is_within else "outside"
        return (
            f"Knee ({self.objective}): predicted {self.predicted:g} users ({self.low:g} to {self.high:g}), measured "
            f"{self.measured:g}; {verdict} the bracket."
        )


def find_knee(target: Target, engine: Path, calibration: Path, out: Path, *, ttft_p50_s: float) -> Knee:
    """Predict the knee with slow, expected and fast step times, then measure it.

    Users who send their next request at once have no time scale of their own: an engine that takes `r` times as long
    meets a limit where the engine meets a limit of `1 / r` times as much.
    """
    arguments: tuple[object, ...] = (
        "--by",
        "concurrency",
        "--isl",
        KNEE_SHAPE.isl,
        "--osl",
        KNEE_SHAPE.osl,
    )
    arguments += ("--to", KNEE_MOST_USERS, "--tolerance", KNEE_TOLERANCE, "--from", 1, "--force", "--json")
    error = Z_95 * read_calibration(calibration).log_error["itl_s"]
    ratios = {"slow": math.exp(error), "expected": 1.0, "fast": math.exp(-error)}
    found = {}
    for name, ratio in ratios.items():
        limit = ("--objective", _objective(ttft_p50_s / ratio))
        ran = ours("find-knee", engine, *limit, *arguments, "--out", out / name, also_fine=(3,))
        found[name] = json.loads(ran.stdout)
    ran = ours(
        "find-knee",
        *target.flags,
        "--objective",
        _objective(ttft_p50_s),
        *arguments,
        "--max-requests",
        KNEE_MOST_REQUESTS,
        "--out",
        out / "measured",
        core=target.core,
        also_fine=(3,),
    )
    seen = json.loads(ran.stdout)
    return Knee(
        objective=_objective(ttft_p50_s),
        low=found["slow"]["load"] or 0.0,
        predicted=found["expected"]["load"] or 0.0,
        high=found["fast"]["above"] or KNEE_MOST_USERS,
        measured=seen["load"] or 0.0,
        above=seen["above"],
    )


def _objective(ttft_p50_s: float) -> str:
    return f"ttft_s.p50={ttft_p50_s:.3f}"
