"""Power priors: what a GPU draws while it serves, before it is measured, with the spread between deployments."""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field

from engines.files import Strict, validate
from engines.names import spec_data

DEFAULT_POWER_PRIOR = "vllm-steady-batch"
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class PowerSpread(Strict):
    """Spread of measured power about a prior.

    Attributes:
        gpus: Names of the GPUs that it holds for; empty: every other GPU.
        log_sd: Standard deviation of ln(measured / predicted) watts.
        source: How it was found.
    """

    gpus: tuple[str, ...]
    log_sd: Positive
    source: str


class PowerPrior(Strict):
    """Energy of serving, as constants that hold for GPUs of different size.

    An iteration of T seconds takes ``base_ratio * board_power * T``, plus `byte_j` for each byte of weights and KV
    cache that it reads, plus ``arithmetic_ratio * board_power`` for each second that its operations take at the GPU's
    peak rate, plus the energy of `token_flops` such operations for each token that it produces; at most
    ``max_ratio * board_power * T``.

    Attributes:
        base_ratio: Share of the board power that a GPU draws with its clocks up and no work.
        max_ratio: Share of the board power that it holds when it reaches its limit.
        byte_j: Joules to read one byte from memory to the multiprocessors.
        arithmetic_ratio: Share of the board power that matrix products at the peak rate add.
        token_flops: Sampling and small kernels of one produced token, as 16-bit operations that take as much energy.
        spreads: The first one that names the GPU, or names none, is used.
        fitted_to: Folders with the measured points.
        source: How each constant was found.
    """

    name: str
    description: str
    base_ratio: Share
    max_ratio: Share
    byte_j: Positive
    arithmetic_ratio: Share
    token_flops: Positive
    spreads: Annotated[tuple[PowerSpread, ...], Field(min_length=1)]
    fitted_to: tuple[str, ...]
    source: str

    def spread(self, gpu: str) -> PowerSpread:
        """Return the spread that holds for a GPU.

        >>> power_prior().spread("h100-sxm-80gb").log_sd < power_prior().spread("a100-sxm-80gb").log_sd
        True
        """
        return next(each for each in self.spreads if not each.gpus or gpu in each.gpus)


class _PriorFile(Strict):
    priors: Annotated[tuple[PowerPrior, ...], Field(min_length=1)]


@cache
def power_prior(name: str = DEFAULT_POWER_PRIOR) -> PowerPrior:
    """Return a prior of the data file.

    Raises:
        KeyError: There is none of this name.
    """
    loaded = validate(spec_data("power"), _PriorFile, where="power.yaml")
    return {each.name: each for each in loaded.priors}[name]
