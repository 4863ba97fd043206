"""Engine profiles: how TensorRT-LLM behind Triton, vLLM and others batch, and their overhead above the kernels.

A profile is a prior for a deployment without measurements, fitted to published deployments of that engine, with the
spread between them. A calibration replaces it.
"""

from __future__ import annotations

import difflib
from functools import cache
from typing import Annotated, Literal

from pydantic import Field

from engines.errors import UserError
from engines.files import Strict, validate
from engines.names import spec_data
from engines.spec.attention_waves import waves_on
from engines.spec.deployment import Factors, Host
from engines.spec.placed_model import PlacedModel

DEFAULT_ENGINE_PROFILE = "trtllm-1.x-triton"
Kernels = Literal["trtllm", "trtllm-16bit-prompts", "vllm"]
WIDE_PROMPTS: Kernels = "trtllm-16bit-prompts"  # TensorRT-LLM's, with 16-bit attention of prompts beside any cache
Deviation = Annotated[float, Field(gt=0)]


class Batching(Strict):
    """How an engine batches; None: the recipe's own value applies.

    Attributes:
        chunked_context: A prompt may be computed over several iterations.
        max_num_tokens: Tokens per iteration; `max_batch_size`: sequences per iteration.
        scheduler_policy: `max_utilization` starts all that fits now and evicts when blocks run out, as vLLM and SGLang
            do; `guaranteed_no_evict` reserves a request's whole length.
        new_token_ratio: With `max_utilization`: initial share of a running request's `max_tokens` that it is expected
            to need, see `emulator.admission`; None: a prompt starts as soon as it fits itself.
        prompts_apart: An iteration computes prompts or decodes, prompts first, as SGLang does; false: both together.
        memory_fraction: Share of the memory left after the weights that becomes KV cache.
    """

    chunked_context: bool | None = None
    max_num_tokens: int | None = None
    max_batch_size: int | None = None
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] | None = None
    new_token_ratio: Annotated[float, Field(gt=0, le=1)] | None = None
    prompts_apart: bool = False
    memory_fraction: float | None = None


class Spread(Strict):
    """Spread of deployments of an engine around its profile.

    Attributes:
        precision: Precision of the weights; `any` if there are too few deployments to distinguish.
        load: `served` through a server, or `engine`: all requests queued at once, without a server.
        step_log_sd: Standard deviation of ln(true / predicted) step times, each deployment predicted from the others.
        host_log_sd: The same for host times.
        deployments: Number of deployments.
        of: The profile whose deployments they are, if it is another one.
        source: Which ones, and by which command.
    """

    precision: str
    load: Literal["served", "engine"]
    step_log_sd: Deviation
    host_log_sd: Deviation
    deployments: Annotated[int, Field(ge=1)]
    of: str | None = None
    source: str


class EngineProfile(Strict):
    """Expected behaviour of an engine before it is measured.

    Attributes:
        kernels: Framework whose measured kernels the engine runs, where step times come from measured kernels.
        factors: On the step-time source, for the engine alone; `factors_on` has those that depend on GPU and model.
        unsplit_attention: Decode attention comes in waves of thread blocks, which depend on the GPU and the model.
        groups_share_reads_from: Compute capability (90 for 9.0) from which an attention kernel that takes prompts and
            decoding sequences together reads a KV head once for its group of query heads; None: always.
        host: What the server adds; omitted if the engine runs alone.
        spreads: By precision and load; the first match is used.
        fitted_to: Deployments that the numbers come from.
        source: Where each number was read or how it was fitted.
    """

    name: str
    description: str
    aliases: tuple[str, ...] = ()
    batching: Batching = Batching()
    kernels: Kernels = "trtllm"
    factors: Factors = Factors()
    unsplit_attention: bool = False
    groups_share_reads_from: int | None = None
    host: Host = Host()
    spreads: Annotated[tuple[Spread, ...], Field(min_length=1)]
    fitted_to: tuple[str, ...]
    source: str

    def factors_on(self, placed: PlacedModel) -> Factors:
        """Return the factors for a model on a GPU: an older one may read the cache more often, or in other waves.

        >>> from engines.spec.gpu import gpu_named
        >>> from engines.spec.model import model_named
        >>> placed = PlacedModel(model_named("qwen3-14b"), gpu_named("a100-sxm-80gb"), "bf16", "16bit")
        >>> engine_profile_named("vllm-v1").factors_on(placed).mixed_kv_reads
        5.0
        >>> engine_profile_named("nim-2024").factors_on(placed).wave_sequences
        2.7
        """
        gpu, model, shared_from = placed.gpu, placed.model, self.groups_share_reads_from
        changed: dict[str, float] = {}
        if gpu.device == "cpu":
            return self.factors
        if self.unsplit_attention:
            changed = waves_on(placed).factors
        if shared_from is not None and gpu.sm < shared_from:
            changed["mixed_kv_reads"] = model.attention_heads / model.kv_heads
        return self.factors.model_copy(update=changed) if changed else self.factors

    def spread(self, *, precision: str, load: Literal["served", "engine"]) -> Spread:
        """Return the spread for a precision and a load, or the nearest available."""
        matches = [each for each in self.spreads if each.load == load] or list(self.spreads)
        exact = [each for each in matches if each.precision == precision]
        any_precision = [each for each in matches if each.precision == "any"]
        return (exact or any_precision or matches)[0]


class _ProfileFile(Strict):
    profiles: tuple[EngineProfile, ...]


@cache
def _library() -> dict[str, EngineProfile]:
    loaded = validate(spec_data("engine_profiles"), _ProfileFile, where="engine_profiles.yaml")
    return {profile.name: profile for profile in loaded.profiles}


def engine_profiles() -> dict[str, EngineProfile]:
    """Return all profiles of the data file, by name."""
    return dict(_library())


def engine_profile_named(name: str) -> EngineProfile:
    """Return a profile by name, case-insensitively.

    Raises:
        UserError: The profile does not exist; the nearest name is suggested.

    >>> engine_profile_named("vllm-v1").batching.scheduler_policy
    'max_utilization'
    """
    profiles = _library()
    names = {alias.lower(): each.name for each in profiles.values() for alias in (each.name, *each.aliases)}
    found = names.get(name.lower())
    if found is None:
        close = difflib.get_close_matches(name.lower(), names, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(profiles)}"
        raise UserError(f"unknown engine profile '{name}'", hint=hint)
    return profiles[found]
