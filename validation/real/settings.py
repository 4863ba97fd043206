"""What is served and how it is loaded; every number of the chain that somebody chose."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
OUT = Path("artifacts/real")
VLLM_FOLDER = Path(".venv/opt/vllm")
ENGINE_PROFILE, PRECISION = "vllm-v1", "fp32"

LAYERS = 4  # of SmolLM2-135M's 30: steps a fifth as long, so that minutes give statistics
CUT_NAME, WHOLE_NAME = f"smollm2-135m-{LAYERS}-layers", "smollm2-135m"


class Limits(NamedTuple):
    """The server's own limits."""

    max_batch_size: int = 8
    max_num_tokens: int = 512
    max_seq_len: int = 512


LIMITS = Limits()


class Shape(NamedTuple):
    """Tokens of a prompt and of its reply."""

    isl: int
    osl: int


class CalibrationRun(NamedTuple):
    """One run to calibrate on: a shape in a closed loop, then in an open one at a share of the capacity."""

    shape: Shape
    users: int
    share: float


# Four shapes of two levels: without any one of them, six points are left, which is what a fit needs.
CALIBRATION_RUNS = (
    CalibrationRun(Shape(32, 32), 8, 0.6),
    CalibrationRun(Shape(128, 48), 6, 0.4),
    CalibrationRun(Shape(256, 32), 3, 0.7),
    CalibrationRun(Shape(64, 64), 1, 0.5),
)
CALIBRATION_SECONDS = 20.0  # of an open loop
CLOSED_REQUESTS = 24  # measured in a closed loop; at least ROUNDS of each user
ROUNDS = 3  # as the load generator of a calibration is simulated: engines.calibration.LoadGenerator


class UnseenLoad(NamedTuple):
    """A workload that the calibration has not seen.

    Attributes:
        points: Users of a closed loop, or shares of the capacity of an open one, each with its shape.
        isl: Distribution of the prompts' lengths, where they vary; `osl` of the replies'.
    """

    name: str
    load: str
    points: tuple[tuple[float, Shape], ...]
    isl: str | None = None
    osl: str | None = None


MIXED_ISL, MIXED_OSL = "lognormal(mean=120, cv=0.7, max=384)", "lognormal(mean=40, cv=0.5, max=96)"
UNSEEN_LOADS = (
    UnseenLoad(
        "closed-fp32",
        "closed_loop",
        (
            (1, Shape(96, 40)),
            (3, Shape(96, 40)),
            (6, Shape(96, 40)),
            (12, Shape(96, 40)),  # more users than the batch has places: they wait
            (5, Shape(200, 24)),
        ),
    ),
    UnseenLoad("open-fp32", "open_loop", ((0.35, Shape(160, 40)), (0.65, Shape(48, 56)))),
    UnseenLoad("mixed-fp32", "closed_loop", ((4, Shape(120, 40)),), MIXED_ISL, MIXED_OSL),
    UnseenLoad("bursts-fp32", "trace", ((0.5, Shape(120, 40)),), MIXED_ISL, MIXED_OSL),
)
UNSEEN_REQUESTS = 48
BURST_SECONDS, BURST_CV, BURST_SEED = 45.0, 2.5, 20261129

GOALS = {"tokens_per_s": 5.0, "itl": 8.0, "ttft": 15.0}  # mean absolute errors in percent, of medians for latencies
COVERAGE = (0.85, 0.95)  # of nominal 90 % intervals

# Its objective: TTFT p50 of at most so many times a lone user's. ITL hardly depends on the users here: a step reads
# every weight, for one sequence as for eight; past eight users, requests wait for a place in the batch.
KNEE_SHAPE, KNEE_SLOWER = Shape(96, 40), 4.0
KNEE_MOST_USERS, KNEE_MOST_REQUESTS, KNEE_TOLERANCE = 16, 96, 0.2
PLAN_SHAPE, PLAN_SHARE = Shape(96, 40), 0.45  # the demand to plan for, as a share of the capacity
PLAN_TTFT_SLOWER, PLAN_TPOT_SLOWER = 4.0, 3.0  # its objectives at p90: so many times what a lone user sees
VERIFY_SECONDS = 90.0
