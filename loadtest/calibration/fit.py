"""Fits a deployment's parameters to its measured points.

A point is predicted by the batcher on a virtual clock. The sequence of iterations depends little on the parameters, and
for given iterations every duration is linear in the factors. One simulation therefore yields a point's figures and, by
pricing the same iterations part by part, their derivatives by each factor. Derivatives of nonlinear parameters (host
times, usable KV cache) are finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engines.calibration import LoadGenerator
from engines.emulator import Batcher, BatcherSettings, Iteration
from engines.errors import MissingError
from engines.spec import EngineProfile, Factors, GpuSpec, Host, loaded
from engines.steptime import Calibrated, StepTime
from loadtest.calibration.measured_points import SERVED, Point
from loadtest.simulate import TURNAROUND_S, Arrivals, Contents, Ended, Traffic, Users, VirtualServer
from loadtest.traffic import ClosedLoop, always, turn_of

Array = npt.NDArray[np.float64]

# Assumed measurement noise of tokens/s, ITL and TTFT, as standard deviations of the logarithm.
SIGMA = (0.03, 0.03, 0.12)
OPEN_REQUESTS = 500  # number of requests drawn for an open loop whose arrivals were not recorded
OPEN_SEED = 20261128
WINDOW_S = 10.0  # longest simulation of a point whose measurement took longer: the load is periodic
MOVED_RATIO = 0.1  # of the prior's spread: differences are computed again after a parameter has moved this far
TOLERANCE = 1e-4  # relative change of the misfit at which a fit stops
# Step of a finite difference in ln(parameter): large enough to average over the granularity of iterations.
DIFFERENCE = 0.05
MOST_STDDEVS = 4.0  # standard deviations from the prior's mean; beyond this is not physical
POOL_TOUCHED_RATIO = 0.8  # of the KV cache: once all users together need more than this share, its size has an effect
UNIDENTIFIED_RATIO = 0.7  # posterior spread over prior spread at which a parameter counts as not identified


class Parameter(NamedTuple):
    """A positive parameter, fitted in its logarithm.

    Attributes:
        expected: Prior value, before any point is seen; `spread` is the prior standard deviation of the logarithm.
        step: Whether durations are linear in the parameter.
    """

    name: str
    expected: float
    spread: float
    step: bool
    meaning: str


class Waves(NamedTuple):
    """How decode attention fills the GPU; see `Factors`."""

    sequences: float
    tail: float
    reads: float


SPLIT = Waves(1.0, 0.0, 1.0)  # split along the context: no waves

PARAMETERS = (
    Parameter("weights_ratio", 1.05, 0.2, True, "time to read the weights, relative to the step-time source"),
    Parameter("gemm_ratio", 1.05, 0.2, True, "matrix arithmetic and activations, relative to the step-time source"),
    Parameter("kv_ratio", 1.0, 0.8, True, "time to read the KV cache while decoding, relative to the step-time source"),
    Parameter("attention_ratio", 1.0, 0.4, True, "attention of prompts, relative to the step-time source"),
    Parameter("iteration_s", 2e-4, 1.0, True, "host time per iteration, seconds"),
    Parameter("sequence_s", 1e-5, 1.0, True, "host time per sequence of an iteration, seconds"),
    Parameter("prompt_s", 4e-4, 1.0, True, "host time per prompt of an iteration, seconds"),
    Parameter("request_s", 1e-3, 1.0, False, "serial host time per request before the engine, seconds"),
    Parameter("latency_s", 2e-3, 1.0, False, "parallel latency per request, in addition, seconds"),
    Parameter("stream_token_s", 2e-5, 1.0, False, "minimum time between output tokens, over all replies, seconds"),
    Parameter("usable_kv_ratio", 1.0, 0.05, False, "effective KV cache size, relative to the planned size"),
)
STEP_COUNT = sum(parameter.step for parameter in PARAMETERS)


class Prior(NamedTuple):
    """Prior of the parameters: means and standard deviations of their logarithms."""

    expected: Array
    spread: Array


PRIOR = Prior(
    np.log([parameter.expected for parameter in PARAMETERS]), np.array([parameter.spread for parameter in PARAMETERS])
)
PROFILE_SPREAD = 0.7  # largest spread of a profile's values: deployments of one engine differ less than any two


# On a CPU the server's own processes share the cores with the arithmetic, so its host times differ from those that
# profiles were fitted to on GPU servers. Expected values, and standard deviations of their logarithms, set on early
# calibrations. On one core of a 2.6 GHz EPYC, two later ones found 4.0 and 5.4 ms per vLLM step and 0.7 and 0.8 ms per
# sequence, in addition to the measured products (docs/measurements/real-server.md). Factors on products measured with
# the engine's own library are near 1.
CPU_HOST = {"iteration_s": 3e-3, "sequence_s": 3e-4, "prompt_s": 2e-3}
CPU_HOST_SPREAD, CPU_RATIO_SPREAD, MEASURED_RATIO_SPREAD = 1.0, 0.6, 0.1


def prior_of(profile: EngineProfile | None, *, gpu: GpuSpec | None = None) -> Prior:
    """Return the prior of an engine profile and its server; parameters it does not state keep the general prior.

    Args:
        gpu: What the server runs on; a CPU has a prior of its own for the engine's steps.
    """
    prior = _prior_of_profile(profile)
    if gpu is None or gpu.device == "gpu":
        return prior
    expected, spread = prior.expected.copy(), prior.spread.copy()
    for place, parameter in enumerate(PARAMETERS):
        if parameter.name in CPU_HOST:
            expected[place], spread[place] = math.log(CPU_HOST[parameter.name]), CPU_HOST_SPREAD
        elif parameter.name in {"weights_ratio", "gemm_ratio"} and gpu.products:
            expected[place], spread[place] = 0.0, MEASURED_RATIO_SPREAD
        elif parameter.step:
            spread[place] = max(spread[place], CPU_RATIO_SPREAD)
    return Prior(expected, spread)


def _prior_of_profile(profile: EngineProfile | None) -> Prior:
    if profile is None:
        return PRIOR
    said = loaded(profile.factors, profile.host).model_dump() | profile.host.model_dump(
        include={"request_s", "latency_s", "stream_token_s"}
    )
    expected, spread = PRIOR.expected.copy(), PRIOR.spread.copy()
    for place, parameter in enumerate(PARAMETERS):
        value = said.get(parameter.name, 0.0)
        if value > 0:
            expected[place] = math.log(value)
            spread[place] = min(spread[place], PROFILE_SPREAD)
    return Prior(expected, spread)


@dataclass(frozen=True, slots=True)
class FitContext:
    """The fixed inputs of a prediction.

    Attributes:
        settings: Limits of the engine, with the whole KV cache.
        waves: How decode attention fills the GPU.
        mixed_kv_reads: As the engine's profile has it; see `Factors`.
    """

    settings: BatcherSettings
    source: StepTime
    generator: LoadGenerator
    waves: Waves = SPLIT
    prior: Prior = PRIOR
    mixed_kv_reads: float = 1.0

    @property
    def kv_tokens(self) -> int:
        """Capacity of the whole KV cache, in tokens."""
        return self.settings.kv_blocks * self.settings.tokens_per_block


class Fitted(NamedTuple):
    """The result of a fit.

    Attributes:
        logs: Logarithms of the parameters; shape (P,).
        covariance: Covariance of `logs`; shape (P, P).
        cost: Half the sum of squared residuals, with large ones damped.
        seen: Logarithms of the points' predicted tokens/s, ITL and TTFT; shape (points, 3).
    """

    logs: Array
    covariance: Array
    cost: float
    seen: Array


def factors_of(logs: Array, waves: Waves, mixed_kv_reads: float = 1.0) -> Factors:
    """Return the factors encoded in a parameter vector."""
    values = {parameter.name: math.exp(x) for parameter, x in zip(PARAMETERS, logs, strict=True) if parameter.step}
    values |= {"wave_sequences": waves.sequences, "wave_tail": waves.tail, "wave_reads": waves.reads}
    return Factors(**values, mixed_kv_reads=mixed_kv_reads)


def host_of(logs: Array) -> Host:
    """Return the host times encoded in a parameter vector."""
    by_name = {parameter.name: math.exp(x) for parameter, x in zip(PARAMETERS, logs, strict=True)}
    return Host(**{name: by_name[name] for name in ("request_s", "latency_s", "stream_token_s")})


def observe(context: FitContext, point: Point, logs: Array) -> Array:
    """Return ln of a point's predicted tokens/s, mean ITL and mean TTFT; shape (3,)."""
    return _Trial(context, point, logs).logs()


def fit(context: FitContext, points: Sequence[Point], *, trials: int = 15, start: Array | None = None) -> Fitted:
    """Find the parameters that explain the points best.

    Args:
        start: Starting point. None: the prior's mean.
        trials: Maximum number of parameter vectors.

    Raises:
        MissingError: SciPy is not installed.
    """
    try:
        from scipy.optimize import least_squares  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise MissingError("calibration needs scipy", hint="pip install 'engine-to-capacity[load]'") from error
    work, prior = _Work(context, points), context.prior
    found = least_squares(
        work.residuals,
        prior.expected if start is None else start,
        jac=work.jacobian,
        bounds=(prior.expected - MOST_STDDEVS * prior.spread, prior.expected + MOST_STDDEVS * prior.spread),
        x_scale=prior.spread,
        loss="soft_l1",
        max_nfev=trials,
        ftol=TOLERANCE,
        xtol=TOLERANCE,
    )
    slope = work.jacobian(found.x)
    covariance = np.asarray(np.linalg.inv(slope.T @ slope), dtype=np.float64) * max(1.0, work.misfit(found.x))
    return Fitted(found.x, covariance, float(found.cost), work.seen(found.x))


@dataclass(slots=True)
class _Work:
    """Residuals of points and prior; each parameter vector is simulated once."""

    context: FitContext
    points: Sequence[Point]
    _seen: dict[bytes, tuple[Array, Array]] = field(default_factory=dict)
    _slopes: dict[bytes, Array] = field(default_factory=dict)
    _latest: tuple[Array, Array] | None = None

    def residuals(self, logs: Array) -> Array:
        """Return residuals in standard deviations: of the points, then of the prior."""
        return np.concatenate([self._of_points(logs), (logs - self.context.prior.expected) / self.context.prior.spread])

    def jacobian(self, logs: Array) -> Array:
        """Return the residuals' derivatives."""
        key = logs.tobytes()
        if key not in self._slopes:
            slopes = self._linear(logs) + self._differenced(logs)
            self._slopes[key] = np.nan_to_num(self._mask()[:, :, None] * slopes / np.array(SIGMA)[:, None])
        return np.concatenate([self._slopes[key].reshape(-1, len(logs)), np.diag(1 / self.context.prior.spread)])

    def seen(self, logs: Array) -> Array:
        """Return the points' predictions; shape (points, 3)."""
        return self._trials(logs)[0]

    def _trials(self, logs: Array) -> tuple[Array, Array]:
        """Return the points' predictions and their derivatives by the step factors, from one simulation."""
        key = logs.tobytes()
        if key not in self._seen:
            trials = (_Trial(self.context, point, logs, keep_steps=True) for point in self.points)
            pairs = [(trial.logs(), trial.slopes()) for trial in trials]
            self._seen[key] = np.array([logs for logs, _ in pairs]), np.array([slopes for _, slopes in pairs])
        return self._seen[key]

    def _linear(self, logs: Array) -> Array:
        slopes = self._trials(logs)[1]
        return np.concatenate([slopes, np.zeros((*slopes.shape[:2], len(PARAMETERS) - STEP_COUNT))], axis=2)

    def _differenced(self, logs: Array) -> Array:
        """Return the derivatives by finite differences; cached until the parameters have moved enough."""
        if self._latest is None or np.any(np.abs(logs - self._latest[0]) > MOVED_RATIO * self.context.prior.spread):
            seen = self.seen(logs)
            rows = [
                differences_of(self.context, point, logs, here) for point, here in zip(self.points, seen, strict=True)
            ]
            self._latest = logs.copy(), np.array(rows)
        return self._latest[1]

    def misfit(self, logs: Array) -> float:
        """Return the mean squared residual of the points, with large ones damped."""
        squares = self._of_points(logs) ** 2
        return float(np.sum(2 * (np.sqrt(1 + squares) - 1)) / max(1, np.count_nonzero(squares)))

    def _of_points(self, logs: Array) -> Array:
        wanted = np.array([point.logs for point in self.points])
        return np.asarray(np.nan_to_num((self.seen(logs) - wanted) / np.array(SIGMA)).ravel())

    def _mask(self) -> Array:
        return np.where(np.isnan([point.logs for point in self.points]), 0.0, 1.0)


@dataclass(slots=True)
class _Trial:
    """One simulation of one point."""

    context: FitContext
    point: Point
    parameters: Array
    keep_steps: bool = False
    server: VirtualServer = field(init=False)
    ended: list[Ended] = field(init=False)

    def __post_init__(self) -> None:
        """Run the simulation."""
        served = self.point.load in SERVED
        self.server = VirtualServer(
            Batcher(
                self._settings(),
                Calibrated(
                    self.context.source, factors_of(self.parameters, self.context.waves, self.context.mixed_kv_reads)
                ),
            ),
            self._traffic(),
            host_of(self.parameters) if served else Host(),
            keep_steps=self.keep_steps,
        )
        self.ended = [
            ended for ended in self.server.run() if ended.outcome == "ok" and ended.sent.turn.phase == "measure"
        ]

    def _traffic(self) -> Traffic:
        point, generator = self.point, self.context.generator
        if point.load == "request_rate":
            contents, lengths = Contents(), always(point.isl, point.osl)
            sent = (
                contents.sent(turn_of(lengths(number), number, "measure"), at_s)
                for number, at_s in enumerate(_arrivals_s(point))
            )
            return Arrivals(sent)
        closed = point.load == "concurrency"
        return Users(
            ClosedLoop(
                point.concurrency,
                always(point.isl, point.osl),
                generator.rounds * point.concurrency if closed else point.concurrency,
                1 if closed else 0,
                first_id=0,
                window_s=min(WINDOW_S, generator.window_s) if closed else 0.0,
                staggered=generator.start == "staggered",
            )
        )

    def times(self) -> tuple[Array, Array, Array]:
        """Return the times at which measured requests were sent, got their first token and got their last token."""
        sent = np.array([ended.sent.sent_s for ended in self.ended])
        first, last = np.array([self.server.first_and_last_s(ended) for ended in self.ended]).T
        return sent, first, last

    def logs(self) -> Array:
        """Return the logarithms of tokens/s, ITL and TTFT."""
        return np.asarray(np.log(self._figures()[0]))

    def slopes(self) -> Array:
        """Return the derivatives of `logs` by the logarithms of the factors; shape (3, factors).

        The sequence of iterations is held fixed and each is priced part by part. A request starts to wait at the end of
        the run of iterations during which it was sent.
        """
        (_, itl_s, ttft_s), cycle_s = self._figures()
        features, last_index, ends_s = self._features()
        spans = np.array([(ended.spans[0][0], ended.spans[-1][1]) for ended in self.ended])
        to_first, to_last = (features[np.searchsorted(last_index, spans[:, side]) + 1] for side in (0, 1))
        from_sent = features[np.searchsorted(ends_s, [ended.sent.sent_s for ended in self.ended], side="right")]
        waiting = (to_first - from_sent).mean(axis=0)
        decoding = (to_last - to_first).mean(axis=0)
        weights = np.exp(self.parameters[:STEP_COUNT])
        gaps = max(1, self.point.osl - 1)
        of_cycle = (waiting + decoding) / cycle_s if self.point.load != "max_load" else features[-1] / ends_s[-1]
        if self.point.load == "request_rate":
            of_cycle = np.zeros_like(of_cycle)
        return np.asarray(weights * np.array([-of_cycle, decoding / gaps / max(itl_s, 1e-12), waiting / ttft_s]))

    def _figures(self) -> tuple[tuple[float, float, float], float]:
        """Return (tokens/s, ITL, TTFT), and the seconds in which every user gets one reply."""
        sent, first, last = self.times()
        point = self.point
        ttft_s = float((first - sent).mean())
        itl_s = float((last - first).mean()) / max(1, point.osl - 1)
        if point.load == "request_rate":
            cycle_s = 1 / point.rate_per_s
            return (point.rate_per_s * point.osl, max(itl_s, 1e-12), ttft_s), cycle_s
        if point.load == "max_load":
            cycle_s = float(last.max() - sent.min())
        else:
            cycle_s = float((last - sent).mean()) + (TURNAROUND_S if point.load == "concurrency" else 0.0)
        return (point.concurrency * point.osl / cycle_s, max(itl_s, 1e-12), ttft_s), cycle_s

    def _features(self) -> tuple[Array, Array, Array]:
        """Return the unweighted cumulative seconds by factor after each run of iterations; its last index and end.

        Shapes (runs + 1, factors), (runs,), (runs,).
        """
        steps = self.server.steps
        step_time = self.server.batcher.step_time
        if not isinstance(step_time, Calibrated):
            raise TypeError(f"a trial prices by Calibrated, not {type(step_time).__name__}")
        each = np.array([_features_of(step_time, step) for step in steps])
        last_index = np.array([step.first_index + step.repeats - 1 for step in steps])
        ends_s = self.server.left_s[last_index]
        return np.concatenate([np.zeros((1, STEP_COUNT)), np.cumsum(each, axis=0)]), last_index, ends_s

    def _settings(self) -> BatcherSettings:
        """Return the engine's limits, raised for a static batch to its whole size and for the longest request."""
        context, point = self.context, self.point
        settings = context.settings
        usable = math.exp(self.parameters[-1])
        blocks = max(1, round(settings.kv_blocks * usable))
        longest = max(settings.max_seq_len, point.isl + point.osl)
        tokens = settings.max_num_tokens
        most = settings.max_batch_size
        if point.load == "static_batch":
            tokens, most = max(tokens, point.isl * point.concurrency), max(most, point.concurrency)
            blocks = max(blocks, -(-(point.isl + point.osl) // settings.tokens_per_block) * point.concurrency)
        return replace(
            settings,
            kv_blocks=blocks,
            max_seq_len=longest,
            max_input_len=longest - 1,
            max_num_tokens=tokens,
            max_batch_size=most,
        )


def slopes_of(context: FitContext, point: Point, logs: Array) -> Array:
    """Return the derivatives of a point's logarithms by those of all parameters; shape (3, P)."""
    trial = _Trial(context, point, logs, keep_steps=True)
    slopes = np.concatenate([trial.slopes(), np.zeros((3, len(PARAMETERS) - STEP_COUNT))], axis=1)
    return slopes + differences_of(context, point, logs, trial.logs())


def differences_of(context: FitContext, point: Point, logs: Array, here: Array) -> Array:
    """Return the derivatives by parameters in which durations are not linear; zero for all others; shape (3, P)."""
    found = np.zeros((3, len(PARAMETERS)))
    for place, parameter in enumerate(PARAMETERS):
        if parameter.name == "latency_s" and point.load in SERVED:
            found[:, place] = _by_latency(point, math.exp(logs[place]), here)
        elif not parameter.step and _matters(context, point, parameter):
            moved = logs.copy()
            moved[place] += DIFFERENCE
            found[:, place] = (observe(context, point, moved) - here) / DIFFERENCE
    return found


def _by_latency(point: Point, latency_s: float, here: Array) -> Array:
    """Return the derivatives of a point's logarithms by that of a latency added to every request."""
    tokens_per_s, itl_s, ttft_s = np.exp(here)
    cycle_s = point.concurrency * point.osl / tokens_per_s
    of_cycle = 0.0 if point.load == "request_rate" else latency_s / cycle_s
    return np.array([-of_cycle, 0.0 * itl_s, latency_s / ttft_s])


def _matters(context: FitContext, point: Point, parameter: Parameter) -> bool:
    """Whether a point depends on a parameter in which durations are not linear."""
    if parameter.name == "usable_kv_ratio":
        tokens_in_flight = point.concurrency * (point.isl + point.osl)
        return point.load != "static_batch" and tokens_in_flight > POOL_TOUCHED_RATIO * context.kv_tokens
    return point.load in SERVED


def _arrivals_s(point: Point) -> Array:
    """Return the send times of an open loop's requests: as recorded, or drawn as Poisson at the stated rate."""
    if point.arrivals_s:
        return np.array(point.arrivals_s)
    drawn = np.cumsum(np.random.default_rng(OPEN_SEED).exponential(1 / point.rate_per_s, OPEN_REQUESTS))
    return np.asarray(drawn * OPEN_REQUESTS / point.rate_per_s / drawn[-1])


def _features_of(step_time: Calibrated, step: Iteration) -> list[float]:
    """Return the seconds of a run of iterations by factor, with every factor at 1."""
    shape, repeats = step.shape, step.repeats
    parts = step_time.parts(shape)
    sequences = shape.decode_sequences + shape.prefill_sequences
    kv_s = repeats * parts.kv_read_s
    if repeats > 1:
        line = step_time.kv_line(shape.decode_sequences, shape.decode_context_tokens)
        kv_s += line.per_token_s * shape.decode_sequences * repeats * (repeats - 1) / 2
    linear: list[Any] = [parts.weights_s, parts.gemm_s + parts.activations_s]
    return (
        [repeats * value for value in linear]
        + [kv_s]
        + [repeats * value for value in (parts.attention_s, 1.0, sequences, shape.prefill_sequences)]
    )
