"""What a service has promised: limits on latency percentiles, and goodput, the share of requests that keep them all."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self, TypeAlias

from pydantic import Field, model_validator

from engines.files import Strict

Statistic = Literal["mean", "p50", "p90", "p95", "p99", "p999", "max"]
Quantity = Literal["ttft_s", "itl_s", "tpot_s", "e2e_s"]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Limits: TypeAlias = dict[Statistic, Seconds]


class Goodput(Strict):
    """Limits that each request keeps or misses as a whole, and the share of requests that must keep all of them.

    Attributes:
        share: Of measured requests that must keep all limits.
        ttft_s: Time to first token.
        e2e_s: From sending to the end of the reply.
        tpot_s: Mean gap between a request's tokens; `itl_s` is the longest of its gaps.
    """

    share: Ratio = 0.99
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    itl_s: Seconds | None = None
    e2e_s: Seconds | None = None


class Objectives(Strict):
    """Limits in engine seconds, by statistic; a quantity without an entry has none.

    Attributes:
        ttft_s: Of times to first token, as in `{p95: 0.5}`; also mean, p50, p90, p99, p999, max.
        e2e_s: Of times from sending to the end of the reply.
        goodput: Limits that one request keeps as a whole.
        itl_s: Of all gaps between tokens, pooled over requests.
        tpot_s: Of each request's mean gap.
        errors_ratio: Measured requests that may fail.
    """

    ttft_s: Limits = Field(default_factory=dict)
    itl_s: Limits = Field(default_factory=dict)
    tpot_s: Limits = Field(default_factory=dict)
    e2e_s: Limits = Field(default_factory=dict)
    goodput: Goodput | None = None
    errors_ratio: Ratio = 0.0

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if not (self.ttft_s or self.itl_s or self.tpot_s or self.e2e_s or self.goodput):
            raise ValueError("no limit is stated: give ttft_s, itl_s, tpot_s, e2e_s or goodput")
        return self


class Verdict(NamedTuple):
    """One objective against what was found.

    Attributes:
        objective: As in `ttft_s p95`, `goodput` or `errors_ratio`.
        found: None where nothing was measured; such an objective is missed.
    """

    objective: str
    limit: float
    found: float | None
    met: bool
