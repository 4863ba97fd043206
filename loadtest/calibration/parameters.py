"""The parameters of a fit, what is expected of them before any point is seen, and what a vector of them stands for."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engines.spec import SPLIT, EngineProfile, Factors, GpuSpec, Host, Waves, loaded

Array = npt.NDArray[np.float64]

UNIDENTIFIED_RATIO = 0.7  # posterior spread over prior spread at which a parameter counts as not identified


class Parameter(NamedTuple):
    """A positive parameter, fitted in its logarithm.

    Attributes:
        upper: Upper limit.
        expected: Prior value, before any point is seen; `spread` is the prior standard deviation of the logarithm.
        step: Whether durations are linear in the parameter, for given iterations.
    """

    name: str
    expected: float
    spread: float
    step: bool
    meaning: str
    upper: float = math.inf


PARAMETERS = (
    Parameter("weights_ratio", 1.05, 0.2, True, "time to read the weights, relative to the step-time source"),
    Parameter("gemm_ratio", 1.05, 0.2, True, "matrix arithmetic and activations, relative to the step-time source"),
    Parameter("kv_ratio", 1.0, 0.8, True, "time to read the KV cache while decoding, relative to the step-time source"),
    Parameter("attention_ratio", 1.0, 0.4, True, "attention of prompts, relative to the step-time source"),
    Parameter("iteration_s", 2e-4, 1.0, True, "host time per iteration, seconds"),
    Parameter("sequence_s", 1e-5, 1.0, True, "host time per sequence of an iteration, seconds"),
    Parameter("prompt_s", 4e-4, 1.0, True, "host time per prompt of an iteration, seconds"),
    # The last wave is half full on average; a deployment's blocks may end together (1) or fill up evenly (0).
    Parameter("wave_tail", 0.5, 1.0, True, "nearly empty waves of decode attention at the end of a step", upper=1.0),
    Parameter("request_s", 1e-3, 1.0, False, "serial host time per request before the engine, seconds"),
    Parameter("latency_s", 2e-3, 1.0, False, "parallel latency per request, in addition, seconds"),
    Parameter("stream_token_s", 2e-5, 1.0, False, "minimum time between output tokens, over all replies, seconds"),
    # From p95 and mean TTFT of the served Llama-3-8B tables; fitted to each alone: 13 (H100), 9 (A100).
    Parameter(
        "measured_rounds", 12.0, 0.7, False, "replies of each user that a table's means cover, its first included"
    ),
    Parameter("usable_kv_ratio", 1.0, 0.05, False, "effective KV cache size, relative to the planned size"),
)
PLACE = {parameter.name: place for place, parameter in enumerate(PARAMETERS)}
STEP_COUNT = sum(parameter.step for parameter in PARAMETERS)


class Prior(NamedTuple):
    """Prior of the parameters: means and standard deviations of their logarithms."""

    expected: Array
    spread: Array


PRIOR = Prior(
    np.log([parameter.expected for parameter in PARAMETERS]), np.array([parameter.spread for parameter in PARAMETERS])
)
PROFILE_SPREAD = 0.7  # largest spread of a profile's values: deployments of one engine differ less than any two
# Spread of `kv_ratio` between kernels that read the cache equally often: engines whose attention is split along the
# context need 0.95 to 1.03 of the source's time (engine_profiles.yaml). In waves, the query heads of a group each read
# the cache, side by side, and the L2 cache serves some of them: one read or all of them, or any number between.
KV_SPREAD = 0.3
# Spreads where the source is measured kernels, in a format that several frameworks have. On one GPU, prompts' matrix
# products of SGLang and vLLM take exp(+-0.064) of TensorRT-LLM's time, their attention exp(+-0.26) (root mean squares
# over aiconfigurator-core 0.12's tables of five GPUs in BF16 and FP8; tests/integration/loadtest/calibration has the
# arithmetic). In a running engine products differ by another 0.05 between GPUs (`SUSTAINED` of the source), and
# activations, which `gemm_ratio` covers too, are in one framework's tables only. So prompts tell the two apart:
# products are known well, attention is not.
KERNEL_SPREADS = {"gemm_ratio": 0.1, "attention_ratio": 0.26}
COMPARED_PRECISIONS = {"bf16", "fp16", "fp8"}
# Engines whose decode attention comes in waves are TensorRT-LLM's of 2024. Fitted to its static batches (0.9, Mistral
# 7B, without a server; H100, H200, L40S, A100), `weights_ratio` is 1.10, 1.12, 1.30, 1.01, and `sequence_s` 10.0, 6.3,
# 11.7, 15.3 us: blocks begin and end in every wave. A server adds some 6 us to the latter, as Triton's does, with the
# spread of any host time. Expected values, and standard deviations of the logarithm; the factor is on measured kernels.
IN_WAVES = {"weights_ratio": (1.13, 0.1), "sequence_s": (1.8e-5, 0.5)}


# On a CPU the server's own processes share the cores with the arithmetic, so its host times differ from those that
# profiles were fitted to on GPU servers. Expected values, and standard deviations of their logarithms, set on early
# calibrations. On one core of a 2.6 GHz EPYC, two later ones found 4.0 and 5.4 ms per vLLM step and 0.7 and 0.8 ms per
# sequence, in addition to the measured products (docs/measurements/real-server.md). Factors on products measured with
# the engine's own library are near 1.
CPU_HOST = {"iteration_s": 3e-3, "sequence_s": 3e-4, "prompt_s": 2e-3}
CPU_HOST_SPREAD, CPU_RATIO_SPREAD, MEASURED_RATIO_SPREAD = 1.0, 0.6, 0.1


def prior_of(
    profile: EngineProfile | None, waves: Waves, *, gpu: GpuSpec, source: str = "roofline", precision: str = ""
) -> Prior:
    """Return the prior of an engine profile and its server; parameters it does not state keep the general prior.

    Args:
        waves: How decode attention fills the GPU.
        gpu: What the server runs on; a CPU has a prior of its own for the engine's steps.
        source: Of the step times: `silicon` are measured kernels.
        precision: Of the weights.
    """
    expected, spread = PRIOR.expected.copy(), PRIOR.spread.copy()
    if source == "silicon" and precision in COMPARED_PRECISIONS:
        for name, each in KERNEL_SPREADS.items():
            spread[PLACE[name]] = each
    if gpu.device == "gpu":
        of_reads = math.log(waves.reads)  # one to all of them, each number of them as likely
        expected[PLACE["kv_ratio"]] = -of_reads / 2
        spread[PLACE["kv_ratio"]] = math.hypot(KV_SPREAD, of_reads / math.sqrt(12))
    prior = _of_profile(profile, Prior(expected, spread))
    if gpu.device != "gpu":
        return _on_cpu(prior, gpu)
    return prior if waves == SPLIT else _in_waves(prior, source, alone=profile is None)


def _in_waves(prior: Prior, source: str, *, alone: bool) -> Prior:
    """Return the prior with what static batches say, alone or, if it is an engine's, together with it.

    The two are independent: their logarithms are averaged, weighted by their certainty.
    """
    expected, spread = prior.expected.copy(), prior.spread.copy()
    for name, (value, deviation) in IN_WAVES.items():
        if name == "weights_ratio" and source != "silicon":
            continue
        place, weight = PLACE[name], deviation**-2
        other = 0.0 if alone else spread[place] ** -2
        expected[place] = (weight * math.log(value) + other * expected[place]) / (weight + other)
        spread[place] = (weight + other) ** -0.5
    return Prior(expected, spread)


def _of_profile(profile: EngineProfile | None, prior: Prior) -> Prior:
    if profile is None:
        return prior
    said = loaded(profile.factors, profile.host).model_dump() | profile.host.model_dump(
        include={"request_s", "latency_s", "stream_token_s"}
    )
    expected, spread = prior.expected.copy(), prior.spread.copy()
    for place, parameter in enumerate(PARAMETERS):
        value = said.get(parameter.name, 0.0)
        if value > 0 and parameter.name != "wave_tail":  # two GPUs with one engine end their waves differently
            expected[place] = math.log(value)
            spread[place] = min(spread[place], PROFILE_SPREAD)
    return Prior(expected, spread)


def _on_cpu(prior: Prior, cpu: GpuSpec) -> Prior:
    expected, spread = prior.expected.copy(), prior.spread.copy()
    for place, parameter in enumerate(PARAMETERS):
        if parameter.name in CPU_HOST:
            expected[place], spread[place] = math.log(CPU_HOST[parameter.name]), CPU_HOST_SPREAD
        elif parameter.name in {"weights_ratio", "gemm_ratio"} and cpu.products:
            expected[place], spread[place] = 0.0, MEASURED_RATIO_SPREAD
        elif parameter.step:
            spread[place] = max(spread[place], CPU_RATIO_SPREAD)
    return Prior(expected, spread)


def factors_of(logs: Array, waves: Waves, mixed_kv_reads: float = 1.0) -> Factors:
    """Return the factors encoded in a parameter vector."""
    values = {parameter.name: math.exp(x) for parameter, x in zip(PARAMETERS, logs, strict=True) if parameter.step}
    values |= waves.factors
    if waves == SPLIT:
        values["wave_tail"] = 0.0
    else:
        values["wave_alone"] = wave_alone_of(values["wave_tail"])
    return Factors(**values, mixed_kv_reads=mixed_kv_reads)


def wave_alone_of(tail: float) -> float:
    """Return the share of a full wave's time that a block alone takes, by the tail of the last waves.

    A last wave of any part of the blocks takes that part of a full wave's time, but no less than the share: on average
    over all parts half the share's square longer, which is the tail.
    """
    return min(1.0, math.sqrt(2 * tail))


def host_of(logs: Array) -> Host:
    """Return the host times encoded in a parameter vector."""
    by_name = {parameter.name: math.exp(x) for parameter, x in zip(PARAMETERS, logs, strict=True)}
    return Host(**{name: by_name[name] for name in ("request_s", "latency_s", "stream_token_s")})
