"""The discrete choices of a fit: which there are, and which of them explains the points best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from engines.calibration import LoadGenerator
from engines.emulator import settings_of
from engines.manifest import EngineManifest, StepTimeChoice
from engines.spec import SPLIT, WIDE_PROMPTS, EngineProfile, Kernels, Waves, waves_on
from engines.steptime import step_time_for
from loadtest.calibration.fit import MAX_STDDEVS, Fitted, Known, fit, load_key, load_places
from loadtest.calibration.measured_points import Point
from loadtest.calibration.parameters import PLACE, Array, Prior, prior_of
from loadtest.calibration.trial import FitContext, observe

MANY_POINTS = 16  # with more points than this, structures are compared on those of every second load
TOKEN_BUDGETS = (8192, 16384, 32768)  # tried if the deployment's max_num_tokens is unknown
_OUTPUT_MOVED = 0.1  # logarithm by which a limit of the server's output is above what is expected, if it has an effect
_NEAR, _WHOLE = 5, 16  # maximum parameter vectors per fit: if only the token budget is new, and from the prior


@dataclass(frozen=True, slots=True)
class Request:
    """What to calibrate.

    Attributes:
        manifest: The planned engine, with the step-time source that the factors scale.
        max_num_tokens: Token budget of the deployment. None: the one of `TOKEN_BUDGETS` that explains the points best.
        measured_on: Kind of the points.
        profile: Whose numbers are expected before any point is seen; None: those of any engine.
    """

    manifest: EngineManifest
    points: tuple[Point, ...]
    generator: LoadGenerator
    max_num_tokens: int | None = None
    measured_on: str = "measured"
    profile: EngineProfile | None = None

    def prior(self, waves: Waves) -> Prior:
        """Return the prior of the deployment: its engine profile's, if it has one, on what the server runs on."""
        manifest = self.manifest
        return prior_of(
            self.profile, waves, gpu=manifest.gpu, source=manifest.step_time.source, precision=manifest.precision.name
        )

    @property
    def mixed_kv_reads(self) -> float:
        """As the engine profile has it; see `Factors`."""
        if self.profile is None:
            return 1.0
        return self.profile.factors_on(self.manifest.placed).mixed_kv_reads


class Structure(NamedTuple):
    """The discrete choices of a fit, as opposed to its continuous parameters."""

    max_num_tokens: int
    waves: Waves
    kernels: Kernels = "trtllm"

    @property
    def words(self) -> str:
        """The choices as one phrase."""
        waves = self.waves
        how = "split along the context" if waves == SPLIT else f"in waves of {waves.sequences:.1f} sequences"
        wide = ", 16-bit attention of prompts" if self.kernels == WIDE_PROMPTS else ""
        return f"max_num_tokens {self.max_num_tokens}, decode attention {how}{wide}"


def waves_of(manifest: EngineManifest, profile: EngineProfile | None = None) -> tuple[Waves, ...]:
    """Return the options for decode attention: split along the context; on a GPU also one thread block a query head.

    Args:
        profile: Its engine is known to do the one or the other.
    """
    if manifest.gpu.device == "cpu":
        return (SPLIT,)
    in_waves = waves_on(manifest.placed)
    if profile is None:
        return SPLIT, in_waves
    return (in_waves if profile.unsplit_attention else SPLIT,)


def kernels_of(manifest: EngineManifest, profile: EngineProfile | None = None) -> tuple[Kernels, ...]:
    """Return the options for the kernels: TensorRT-LLM with an FP8 cache has attention of prompts in FP8 or 16 bits.

    Args:
        profile: Its engine is known to do the one or the other.
    """
    choice = manifest.step_time
    if profile is not None:
        return (profile.kernels,)
    if choice.source != "silicon" or choice.kernels != "trtllm" or manifest.precision.kv_cache != "fp8":
        return (choice.kernels,)
    return "trtllm", WIDE_PROMPTS


def fit_context_of(request: Request, structure: Structure) -> FitContext:
    """Return the fixed inputs of a fit's predictions, for a given structure."""
    settings = replace(settings_of(request.manifest), max_num_tokens=structure.max_num_tokens)
    # Without the engine profile's factors and host times: they are part of the prior.
    choice = request.manifest.step_time
    bare = StepTimeChoice(source=choice.source, kernels=structure.kernels)
    source = step_time_for(request.manifest.model_copy(update={"step_time": bare}))
    prior = request.prior(structure.waves)
    return FitContext(settings, source, request.generator, structure.waves, prior, request.mixed_kv_reads)


def predicted_logs(request: Request, structure: Structure, logs: Array, points: Sequence[Point]) -> Array:
    """Return a fit's predictions for points: ln of tokens/s, ITL and TTFT; shape (points, 3)."""
    context = fit_context_of(request, structure)
    return np.array([observe(context, point, logs) for point in points])


def fit_best(request: Request, points: Sequence[Point]) -> tuple[Structure, Fitted, dict[Structure, Fitted]]:
    """Return the structure that explains the points best, its fit, and the comparison's fit of every structure.

    If there are many points, structures are compared on those of every second load; the best is then fitted to all.
    """
    if len(points) <= MANY_POINTS:
        best, tried = _compared(request, points)
        return best, tried[best], tried
    places = load_places(points)
    half = [point for point in points if places[load_key(point)] % 2 == 0]
    best, tried = _compared(request, half)
    known = Known(half, tried[best])
    whole = fit(fit_context_of(request, best), points, trials=_WHOLE, start=known.fitted.logs, known=known)
    return best, whole, tried


def _compared(request: Request, points: Sequence[Point]) -> tuple[Structure, dict[Structure, Fitted]]:
    """Return the structure that explains points best, and the fit of every structure.

    First is decided, at the largest token budget, whether the server's output is a bottleneck: nothing depends on it
    below that limit, so no fit that starts there finds it. Then attention is chosen, then the budget, which starts from
    the best result so far. What cannot become the best is left early.
    """
    waves = waves_of(request.manifest, request.profile)
    budgets = (request.max_num_tokens,) if request.max_num_tokens else TOKEN_BUDGETS
    kernels = kernels_of(request.manifest, request.profile)
    best = Structure(budgets[-1], waves[-1], kernels[-1])
    tried = {best: fit(fit_context_of(request, best), points, trials=_WHOLE)}
    prior = request.prior(best.waves)
    is_limited, start = False, _at_the_output_limit(prior, points)
    if start is not None:
        limited = fit(fit_context_of(request, best), points, trials=_WHOLE, start=start, cost_to_beat=tried[best].cost)
        moved = limited.logs - prior.expected  # what has no effect returns to what is expected
        is_limited = limited.cost < tried[best].cost and moved[PLACE["stream_token_s"]] > _OUTPUT_MOVED
        if is_limited:
            tried[best] = limited
    changes: list[dict[str, Any]] = [{"waves": each} for each in waves[:-1]]
    changes += [{"kernels": each} for each in kernels[:-1]]
    changes += [{"max_num_tokens": each} for each in budgets[:-1]]
    for change in changes:
        structure, found = best._replace(**change), tried[best]
        context = fit_context_of(request, structure)
        if structure.waves == best.waves:
            other = fit(context, points, trials=_NEAR, start=found.logs, cost_to_beat=found.cost)
        else:  # the optimum of another kernel can be a poor starting point
            start = _at_the_output_limit(request.prior(structure.waves), points) if is_limited else None
            other = fit(context, points, trials=_WHOLE, start=start, cost_to_beat=found.cost)
        tried[structure] = other
        if other.cost < found.cost:
            best = structure
    return best, tried


def _at_the_output_limit(prior: Prior, points: Sequence[Point]) -> Array | None:
    """Return what is expected, but with tokens that leave no faster than users received them; None if that is absurd.

    With ITL t for n users, tokens arrive t / n apart if all users decode. The load with the shortest such time is the
    one that may have reached the limit.
    """
    itls_s = [(point.itl_s, point.concurrency) for point in points if point.load == "concurrency"]
    apart_s = min((itl_s / users for itl_s, users in itls_s if itl_s is not None), default=math.inf)
    place = PLACE["stream_token_s"]
    start = prior.expected.copy()
    start[place] = math.log(apart_s)
    is_absurd = abs(start[place] - prior.expected[place]) > MAX_STDDEVS * prior.spread[place]
    return None if is_absurd else start
