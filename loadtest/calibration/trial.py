"""One simulation of one measured point: its figures, and their derivatives by the parameters.

A point is predicted by the batcher on a virtual clock. The sequence of iterations depends little on the parameters, and
for given iterations every duration is linear in the factors. One simulation therefore yields a point's figures and, by
pricing the same iterations part by part, their derivatives by each factor. Three parameters change which iterations
there are (serial host time per request, a streaming limit that is reached, size of the KV cache): their derivatives are
finite differences. Along the first of them figures change in stairs, since requests enter the engine in whole groups;
a fit sees the mean over a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.calibration import LoadGenerator
from engines.emulator import Batcher, BatcherSettings, Iteration
from engines.spec import SPLIT, Host, Waves
from engines.steptime import Calibrated, StepTime
from loadtest.calibration.first_wave import share_of_first_wave, unfinished_s, weights_of
from loadtest.calibration.measured_points import SERVED, Point
from loadtest.calibration.parameters import (
    PARAMETERS,
    PLACE,
    PRIOR,
    STEP_COUNT,
    Array,
    Prior,
    factors_of,
    host_of,
    wave_alone_of,
)
from loadtest.simulate import TURNAROUND_S, Arrivals, Contents, Ended, Traffic, Users, VirtualServer
from loadtest.traffic import ClosedLoop, always, turn_of

Indices = npt.NDArray[np.int64]

OPEN_REQUESTS = 500  # number of requests drawn for an open loop whose arrivals were not recorded
OPEN_SEED = 20261128
WINDOW_S = 10.0  # longest simulation of a point whose measurement took longer: the load is periodic
# Step of a finite difference in ln(parameter): large enough to average over the granularity of iterations.
DIFFERENCE = 0.05
# Range of ln(request_s), on either side, over which figures are averaged. Between 1.5 and 2.7 ms, the H100's published
# points of 5 to 25 users have three stairs or four, which move TTFT by up to 1.3 times its assumed noise.
STAIRS = 0.3
# Share of the time in which tokens stream out. Below it, an iteration's tokens have left before the next one's are
# made, and a slightly slower stream delays nobody.
STREAM_BUSY_RATIO = 0.5
TAIL_DIFFERENCE = 1e-3  # in ln(wave_tail), on either side: its expected value is where `wave_alone_of` has a kink
POOL_TOUCHED_RATIO = 0.8  # of the KV cache: once all users together need more than this share, its size has an effect


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


def observe(context: FitContext, point: Point, logs: Array) -> Array:
    """Return ln of a point's predicted tokens/s, mean ITL and mean TTFT; shape (3,)."""
    return Trial(context, point, logs).logs()


@dataclass(slots=True)
class Trial:
    """One simulation of one point.

    Attributes:
        ended: The measured requests; of a closed loop whose users start together, then those of its first wave.
        weights: Of each of them in the means.
        first_wave: Number of the latter.
        spans: First and last iteration of each of them; two of shape (requests,).
        times: When each of them was sent, and when its first and its last token left; three of shape (requests,).
        later_ends_s: If there is a first wave: when each reply after it ended, measured or not, in order.
        figures: Tokens/s, ITL and TTFT.
        cycle_s: Seconds in which every user gets one reply.
        unfinished_s: Part of them that replies in progress at the end took.
    """

    context: FitContext
    point: Point
    parameters: Array
    keep_steps: bool = False
    server: VirtualServer = field(init=False)
    ended: list[Ended] = field(init=False)
    weights: Array = field(init=False)
    first_wave: int = field(init=False)
    spans: tuple[Indices, Indices] = field(init=False)
    times: tuple[Array, Array, Array] = field(init=False)
    figures: tuple[float, float, float] = field(init=False)
    cycle_s: float = field(init=False)
    unfinished_s: float = 0.0
    later_ends_s: Array = field(init=False)

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
        done = [ended for ended in self.server.run() if ended.outcome == "ok"]
        steady = [ended for ended in done if ended.sent.turn.phase == "measure"]
        begin_s = self.server.begin_s
        first = [ended for ended in done if ended.sent.sent_s == begin_s] if self._has_first_wave() else []
        later = [ended for ended in done if ended.sent.sent_s > begin_s] if first else []
        self.ended, self.first_wave = steady + first, len(first)
        self.weights = weights_of(len(steady), len(first), self._share())
        self.spans = (
            _whole(ended.spans[0][0] for ended in self.ended),
            _whole(ended.spans[-1][1] for ended in self.ended),
        )
        sent_s, left_s = np.array([ended.sent.sent_s for ended in self.ended]), self.server.left_s
        self.later_ends_s = np.sort(left_s[_whole(ended.spans[-1][1] for ended in later)])
        self.times = sent_s, left_s[self.spans[0]], left_s[self.spans[1]]
        self.figures, self.cycle_s = self._figures()

    def _has_first_wave(self) -> bool:
        return self.point.load == "concurrency" and self.context.generator.start == "together"

    def _share(self) -> float:
        """Return the share of the first wave in the means."""
        rounds = math.exp(self.parameters[PLACE["measured_rounds"]])
        return share_of_first_wave(rounds) if self._has_first_wave() else 0.0

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

    def logs(self) -> Array:
        """Return the logarithms of tokens/s, ITL and TTFT."""
        return np.asarray(np.log(self.figures))

    def slopes(self) -> Array:
        """Return the derivatives of `logs` by all parameters for these same iterations; shape (3, P).

        Zero for the parameters that change the iterations; see `observe_smoothed`.
        """
        found = np.zeros((3, len(PARAMETERS)))
        found[:, :STEP_COUNT] = self._slopes_by_factors()
        if self.point.load in SERVED:
            found[:, PLACE["latency_s"]] = self._slopes_by_latency()
        if self.first_wave:
            found[:, PLACE["measured_rounds"]] = self._slopes_by_rounds()
        return found

    def _slopes_by_factors(self) -> Array:
        """Return the derivatives of `logs` by the logarithms of the factors; shape (3, factors).

        Each iteration is priced part by part. A request starts to wait at the end of the run of iterations during which
        it was sent.
        """
        _, itl_s, ttft_s = self.figures
        features, last_index, ends_s = self._features()
        to_first, to_last = (features[np.searchsorted(last_index, indices) + 1] for indices in self.spans)
        from_sent = features[np.searchsorted(ends_s, self.times[0], side="right")]
        waiting = self.weights @ (to_first - from_sent)
        decoding = self.weights @ (to_last - to_first)
        weights = np.exp(self.parameters[:STEP_COUNT])
        gaps = max(1, self.point.osl - 1)
        replies_s = self.cycle_s - self.unfinished_s  # what is unfinished grows in proportion
        of_cycle = (waiting + decoding) / replies_s if self.point.load != "max_load" else features[-1] / ends_s[-1]
        if self.point.load == "request_rate":
            of_cycle = np.zeros_like(of_cycle)
        return np.asarray(weights * np.array([-of_cycle, decoding / gaps / max(itl_s, 1e-12), waiting / ttft_s]))

    def _slopes_by_latency(self) -> Array:
        """Return the derivatives by the logarithm of a latency added to every request; shape (3,)."""
        latency_s = math.exp(self.parameters[PLACE["latency_s"]])
        of_cycle = 0.0 if self.point.load == "request_rate" else latency_s / self.cycle_s
        return np.array([-of_cycle, 0.0, latency_s / self.figures[2]])

    def _slopes_by_rounds(self) -> Array:
        """Return the derivatives by the logarithm of the number of measured rounds; shape (3,)."""
        share = self._share()
        if share == 1.0:  # no less than one round
            return np.zeros(3)
        sent, first, last = self.times
        _, itl_s, ttft_s = self.figures
        waits_s, gaps_s = (_first_less_steady(each, self.first_wave) for each in (first - sent, last - first))
        gaps = max(1, self.point.osl - 1)
        of_cycle = (waits_s + gaps_s + self.unfinished_s / share) / self.cycle_s
        return share * np.array([of_cycle, -gaps_s / gaps / itl_s, -waits_s / ttft_s])

    def _figures(self) -> tuple[tuple[float, float, float], float]:
        """Return (tokens/s, ITL, TTFT), and the seconds in which every user gets one reply."""
        sent, first, last = self.times
        point = self.point
        ttft_s = float(self.weights @ (first - sent))
        itl_s = float(self.weights @ (last - first)) / max(1, point.osl - 1)
        if point.load == "request_rate":
            cycle_s = 1 / point.rate_per_s
            return (point.rate_per_s * point.osl, max(itl_s, 1e-12), ttft_s), cycle_s
        if point.load == "max_load":
            cycle_s = float(last.max() - sent.min())
        else:
            if self.first_wave:
                self.unfinished_s = self._share() * unfinished_s(self.later_ends_s, point.concurrency)
            cycle_s = float(self.weights @ (last - sent)) + self.unfinished_s
            cycle_s += TURNAROUND_S if point.load == "concurrency" else 0.0
        return (point.concurrency * point.osl / cycle_s, max(itl_s, 1e-12), ttft_s), cycle_s

    def _features(self) -> tuple[Array, Array, Array]:
        """Return the unweighted cumulative seconds by factor after each run of iterations; its last index and end.

        Shapes (runs + 1, factors), (runs,), (runs,).
        """
        steps = self.server.steps
        step_time = self.server.batcher.step_time
        if not isinstance(step_time, Calibrated):
            raise TypeError(f"a trial prices by Calibrated, not {type(step_time).__name__}")
        other_tails = _with_other_tails(step_time)
        each = np.array([_features_of(step_time, step, other_tails) for step in steps])
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
        largest = settings.max_batch_size
        if point.load == "static_batch":
            tokens, largest = max(tokens, point.isl * point.concurrency), max(largest, point.concurrency)
            blocks = max(blocks, -(-(point.isl + point.osl) // settings.tokens_per_block) * point.concurrency)
        return replace(
            settings,
            kv_blocks=blocks,
            max_seq_len=longest,
            max_input_len=longest - 1,
            max_num_tokens=tokens,
            max_batch_size=largest,
        )


def _whole(values: Iterable[int]) -> Indices:
    return np.array(list(values), dtype=np.int64)


def _first_less_steady(values: Array, first_wave: int) -> float:
    """Return by how much the mean of the first wave, which is last in the array, exceeds that of the steady state."""
    return float(values[-first_wave:].mean() - values[:-first_wave].mean())


class Observed(NamedTuple):
    """What a fit sees of a point.

    Attributes:
        logs: Logarithms of tokens/s, ITL and TTFT; shape (3,).
        slopes: Their derivatives by all parameters; shape (3, P).
    """

    logs: Array
    slopes: Array


def observe_smoothed(context: FitContext, point: Point, logs: Array) -> Observed:
    """Return a point's figures and derivatives, averaged over a range of the serial host time per request."""
    trial = Trial(context, point, logs, keep_steps=True)
    here, slopes = trial.logs(), trial.slopes()
    for name in _changing_iterations(context, point, logs, here):
        slopes[:, PLACE[name]] = (observe(context, point, _moved(logs, name, DIFFERENCE)) - here) / DIFFERENCE
    if point.load not in SERVED:
        return Observed(here, slopes)
    less, more = (observe(context, point, _moved(logs, "request_s", step)) for step in (-STAIRS, STAIRS))
    slopes[:, PLACE["request_s"]] = (more - less) / (2 * STAIRS)
    return Observed((less + here + more) / 3, slopes)


def _moved(logs: Array, name: str, step: float) -> Array:
    moved = logs.copy()
    moved[PLACE[name]] += step
    return moved


def _changing_iterations(context: FitContext, point: Point, logs: Array, here: Array) -> list[str]:
    """Return the parameters, in addition to `request_s`, by which a point's iterations become others."""
    found = []
    if point.load in SERVED and math.exp(here[0] + logs[PLACE["stream_token_s"]]) > STREAM_BUSY_RATIO:
        found.append("stream_token_s")
    requested_tokens = point.concurrency * (point.isl + point.osl)
    if point.load != "static_batch" and requested_tokens > POOL_TOUCHED_RATIO * context.kv_tokens:
        found.append("usable_kv_ratio")
    return found


def _arrivals_s(point: Point) -> Array:
    """Return the send times of an open loop's requests: as recorded, or drawn as Poisson at the stated rate."""
    if point.arrivals_s:
        return np.array(point.arrivals_s)
    drawn = np.cumsum(np.random.default_rng(OPEN_SEED).exponential(1 / point.rate_per_s, OPEN_REQUESTS))
    return np.asarray(drawn * OPEN_REQUESTS / point.rate_per_s / drawn[-1])


def _with_other_tails(step_time: Calibrated) -> tuple[Calibrated, ...]:
    """Return the same step time with a slightly smaller and larger tail; nothing if attention is not in waves."""
    factors = step_time.factors
    if factors.wave_sequences <= 1:
        return ()
    tails = (factors.wave_tail * math.exp(-TAIL_DIFFERENCE), factors.wave_tail * math.exp(TAIL_DIFFERENCE))
    return tuple(
        Calibrated(step_time.source, factors.model_copy(update={"wave_tail": tail, "wave_alone": wave_alone_of(tail)}))
        for tail in tails
    )


def _features_of(step_time: Calibrated, step: Iteration, other_tails: tuple[Calibrated, ...]) -> list[float]:
    """Return the seconds of a run of iterations by factor, with every factor at 1."""
    shape, repeats = step.shape, step.repeats
    parts = step_time.parts(shape)
    sequences = shape.decode_sequences + shape.prefill_sequences
    kv_s, tail_s = _kv_read_s(step_time, step, parts.kv_read_s), 0.0
    if other_tails and shape.decode_sequences:
        factors = step_time.factors
        less_s, more_s = (_kv_read_s(other, step, other.kv_read_s(shape, parts.kv_read_s)) for other in other_tails)
        tail_s = factors.kv_ratio / factors.wave_tail * (more_s - less_s) / (2 * TAIL_DIFFERENCE)
    return [
        repeats * parts.weights_s,
        repeats * (parts.gemm_s + parts.activations_s),
        kv_s,
        repeats * parts.attention_s,
        repeats,
        repeats * sequences,
        repeats * shape.prefill_sequences,
        tail_s,
    ]


def _kv_read_s(step_time: Calibrated, step: Iteration, first_s: float) -> float:
    """Return the seconds in which a run of iterations reads the cache, before the factor on them.

    Args:
        first_s: Of the first iteration.
    """
    shape, repeats = step.shape, step.repeats
    kv_s = repeats * first_s
    if repeats > 1:
        line = step_time.kv_line(shape.decode_sequences, shape.decode_context_tokens)
        kv_s += line.per_token_s * shape.decode_sequences * repeats * (repeats - 1) / 2
    return kv_s
