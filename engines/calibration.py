"""`calibration.json`: the fitted parameters of a deployment, with their uncertainty and their measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from engines.errors import UserError
from engines.files import Document, Strict, read_json
from engines.manifest import StepTimeChoice
from engines.spec import Factors, Host, Kernels, KvFormat

MAX_LOG_ERROR = 20.0  # a factor of 5e8: a file that states more is damaged

Quantity = Literal["ttft_s", "itl_s", "tokens_per_s"]
QUANTITIES: tuple[Quantity, ...] = ("tokens_per_s", "itl_s", "ttft_s")


class FittedParameter(Strict):
    """One fitted parameter.

    Attributes:
        value: The mean over all that the points leave possible, of a factor; otherwise the most probable value.
        low: Lower end of the 95 % confidence interval; `high` is the upper end.
        expected: Its most probable value before any point is seen.
        identified: Whether its value is determined by the points rather than by the prior.
    """

    name: str
    value: float
    low: float
    high: float
    expected: float
    identified: bool
    meaning: str


class PointResidual(Strict):
    """One measured point and the fitted model's prediction; ratios are predicted / measured - 1."""

    where: str
    load: str
    isl: int
    osl: int
    concurrency: int
    tokens_per_s_error: float | None
    itl_s_error: float | None
    ttft_s_error: float | None


class HeldOut(Strict):
    """Errors on one held-out combination of prompt and reply length: mean absolute; for TTFT the median."""

    isl: int
    osl: int
    points: int
    tokens_per_s: float | None
    itl_s: float | None
    ttft_s: float | None


class Alternative(Strict):
    """A structure that was tried, with its misfit; the structure with the smallest misfit is used."""

    max_num_tokens: int
    wave_sequences: float
    wave_tail: float
    wave_reads: float
    kernels: Kernels = "trtllm"
    cost: float


class EngineLimits(Strict):
    """The engine's limits used in the calibration.

    Attributes:
        usable_kv_ratio: Effective size of the KV cache, relative to the memory plan's.
    """

    max_batch_size: int
    max_num_tokens: int
    usable_kv_ratio: float = 1.0


class LoadGenerator(Strict):
    """Behaviour of the load generator that was used; predictions simulate the same.

    Attributes:
        start: `together`: all users start at once, and the means cover the first wave with a share that is fitted
            (`measured_rounds`); `staggered`: spread over the duration of a request, and it is not measured.
        window_s: Requests sent within this time are simulated as the steady state, and at least `rounds` of every user.
    """

    start: Literal["together", "staggered"] = "together"
    window_s: float = 30.0
    rounds: int = 3


class Calibration(Document):
    """`calibration.json`.

    Attributes:
        measured_on: `emulated` if the points come from an emulated engine: they are no evidence about a real one.
        log_error: By quantity, the standard deviation of ln(predicted / measured) on held-out shapes. With only one
            shape, or too few points, on the fitted points, but at least the noise that the fit assumes (3 % in tokens/s
            and ITL, 12 % in TTFT). In quadrature with `drift`, so that intervals cover it.
        log_error_of: Which of the two it is.
        drift: By quantity, the standard deviation of ln(later / earlier) between measurements of one and the same load:
            what the machine and its neighbours change while nobody changes the deployment. Empty: no load was repeated.
        kernels: Framework whose measured kernels `silicon` looked up.
        prior: The engine profile whose numbers were expected before any point was seen; None: those of any engine.
    """

    measured_on: Literal["measured", "emulated"]
    model: str
    gpu: str
    precision: str
    kv_cache: KvFormat
    tensor_parallel: int
    source: Literal["roofline", "silicon"]
    kernels: Kernels = "trtllm"
    engine: EngineLimits
    generator: LoadGenerator
    factors: Factors
    host: Host
    parameters: list[FittedParameter]
    log_error: dict[Quantity, Annotated[float, Field(ge=0, le=MAX_LOG_ERROR)]]
    log_error_of: Literal["held-out shapes", "fitted points"]
    drift: dict[Quantity, float] = Field(default_factory=dict)
    held_out: list[HeldOut]
    points: list[PointResidual]
    alternatives: list[Alternative]
    warnings: list[str]
    prior: str | None = None

    def step_time(self, sha256: str) -> StepTimeChoice:
        """Return the step-time model that this calibration describes; `sha256` is its file's."""
        return StepTimeChoice(
            source=self.source, kernels=self.kernels, factors=self.factors, host=self.host, calibration=sha256
        )


def read_calibration(path: Path) -> Calibration:
    """Read a calibration. Raises as `files.read_json` does."""
    return read_json(path, Calibration)


def require_match(calibration: Calibration, *, gpu: str, precision: str, tensor_parallel: int, path: Path) -> None:
    """Refuse a calibration for other hardware or another precision; a different model is allowed.

    Raises:
        UserError: GPU, precision or tensor parallelism differ.
    """
    found = (calibration.gpu, calibration.precision, calibration.tensor_parallel)
    if found != (gpu, precision, tensor_parallel):
        names = ("{} {} tensor parallel {}".format(*each) for each in (found, (gpu, precision, tensor_parallel)))
        of, given = names
        raise UserError(
            f"{path}: the calibration is for {of}, not for {given}",
            hint="run calibrate-engine on measurements of that deployment, or omit --calibration",
        )
