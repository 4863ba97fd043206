"""Service level objectives and their evaluation: limits on latencies, goodput and errors.

Latencies that start with a request (TTFT, end to end) count from when it was due in an open loop, and from when it was
sent in a closed loop: `clock_start_s`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple, Protocol, Self, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from engines.files import Strict
from engines.units import MS_PER_S

Statistic = Literal["mean", "p50", "p90", "p95", "p99", "p999", "max"]
Quantity = Literal["ttft_s", "itl_s", "tpot_s", "e2e_s"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Limits: TypeAlias = dict[Statistic, Seconds]


def share_of(statistic: str) -> float | None:
    """Return the share of values that a percentile is not below, by its name; None for `mean`, `min`, `max` and others.

    >>> share_of("p95"), share_of("p999"), share_of("max")
    (0.95, 0.999, None)
    """
    digits = statistic.removeprefix("p")
    return float(f"0.{digits}") if statistic == f"p{digits}" and digits.isdecimal() else None


class Goodput(Strict):
    """Limits that each request meets or misses as a whole, and the share of requests that must meet all of them.

    Attributes:
        share: Share of measured requests that must meet all limits.
        ttft_s: Time to first token.
        e2e_s: From sending to the end of the reply.
        tpot_s: Mean gap between a request's tokens; `itl_s` is the longest of its gaps.
    """

    share: Ratio = 0.99
    ttft_s: Seconds | None = None
    tpot_s: Seconds | None = None
    itl_s: Seconds | None = None
    e2e_s: Seconds | None = None

    def is_met_by(self, *, ttft_s: Any, tpot_s: Any, longest_gap_s: Any, e2e_s: Any) -> npt.NDArray[np.bool_]:
        """Return whether each request is within every limit, given its latencies in engine seconds; shape (requests,).

        A request of one token has no gap: both of its gap values count as 0.
        """
        met = np.ones(np.shape(ttft_s), dtype=np.bool_)
        pairs = ((self.ttft_s, ttft_s), (self.tpot_s, tpot_s), (self.itl_s, longest_gap_s), (self.e2e_s, e2e_s))
        for limit, values in pairs:
            if limit is not None:
                met = met & (np.asarray(values) <= limit)
        return met


class Objectives(Strict):
    """Limits in engine seconds, by statistic; a quantity without an entry has no limit.

    Attributes:
        ttft_s: Time to first token, as in `{p95: 0.5}`; also mean, p50, p90, p99, p999, max.
        e2e_s: Time from when a request was due (open loop) or sent (closed loop) to the end of the reply.
        goodput: Limits that one request must meet together.
        itl_s: All gaps between tokens, pooled over requests.
        tpot_s: Each request's mean gap.
        errors_ratio: Share of measured requests that may fail.
    """

    ttft_s: Limits = Field(default_factory=dict)
    itl_s: Limits = Field(default_factory=dict)
    tpot_s: Limits = Field(default_factory=dict)
    e2e_s: Limits = Field(default_factory=dict)
    goodput: Goodput | None = None
    errors_ratio: Ratio = 0.0

    @property
    def has_limit(self) -> bool:
        """Whether any limit is stated beside that on errors."""
        return bool(self.ttft_s or self.itl_s or self.tpot_s or self.e2e_s or self.goodput)

    @model_validator(mode="after")
    def _some_limit(self) -> Self:
        if not self.has_limit:
            raise ValueError("no limit is stated: give ttft_s, itl_s, tpot_s, e2e_s or goodput")
        return self


# Longer limits than any service states; a number of milliseconds is above them.
_LIKELY_LIMITS_S = {"ttft_s": 60.0, "itl_s": 5.0, "tpot_s": 5.0, "e2e_s": 3600.0}


def unlikely_limits(objectives: Objectives) -> list[str]:
    """Return limits that look like milliseconds, each with its number in seconds, were it one.

    >>> unlikely_limits(Objectives(ttft_s={"p95": 150}))
    ['ttft_s p95: 150 s; limits are in seconds, and 150 ms is 0.15']
    """
    limits = [
        (f"{quantity} {statistic}", limit, likely_s)
        for quantity, likely_s in _LIKELY_LIMITS_S.items()
        for statistic, limit in getattr(objectives, quantity).items()
    ]
    if objectives.goodput is not None:
        parts = ((name, getattr(objectives.goodput, name), likely_s) for name, likely_s in _LIKELY_LIMITS_S.items())
        limits += [(f"goodput {name}", limit, likely_s) for name, limit, likely_s in parts if limit is not None]
    return [
        f"{name}: {limit:g} s; limits are in seconds, and {limit:g} ms is {limit / MS_PER_S:g}"
        for name, limit, likely_s in limits
        if limit > likely_s
    ]


_SHORT = {"ttft_s": "TTFT", "itl_s": "ITL", "tpot_s": "TPOT", "e2e_s": "E2E"}


def objectives_text(objectives: Objectives) -> str:
    """Return every limit with its unit; that on errors too, which applies whether stated or not.

    >>> objectives_text(Objectives(ttft_s={"p95": 200}, itl_s={"p99": 0.05}))
    'TTFT p95 at most 200 s, ITL p99 at most 50 ms, no failed request'
    """
    parts = [
        f"{_SHORT[quantity]} {statistic} at most {_time_text(limit_s)}"
        for quantity in QUANTITIES
        for statistic, limit_s in getattr(objectives, quantity).items()
    ]
    if (goodput := objectives.goodput) is not None:
        own = {name: getattr(goodput, quantity) for quantity, name in _SHORT.items()}
        limits = [f"{name} {_time_text(limit_s)}" for name, limit_s in own.items() if limit_s is not None]
        parts.append(f"{goodput.share * 100:g} % of requests within {' and '.join(limits) or 'no limit'}")
    ratio = objectives.errors_ratio
    parts.append(f"at most {ratio * 100:g} % failed requests" if ratio else "no failed request")
    return ", ".join(parts)


def _time_text(seconds: float) -> str:
    return f"{seconds:,g} s" if seconds >= 1 else f"{seconds * MS_PER_S:g} ms"


class Verdict(NamedTuple):
    """The result of one objective.

    Attributes:
        objective: As in `ttft_s p95`, `goodput` or `errors_ratio`.
        found: None if nothing was measured; such an objective is missed.
    """

    objective: str
    limit: float
    found: float | None
    met: bool


class ObjectiveScope(NamedTuple):
    """Objectives and their scope: one class of a mix, or all requests."""

    objectives: Objectives
    class_name: str | None = None

    def label(self, objective: str) -> str:
        """Return an objective's name, prefixed with its class."""
        return objective if self.class_name is None else f"{self.class_name}: {objective}"


def evaluate(objectives: Objectives, figure: Callable[[str], float | None]) -> list[Verdict]:
    """Return each objective's verdict; an objective without a measurement is missed. The only place that decides it.

    Args:
        figure: Returns a figure in engine seconds by its name, as in `ttft_s p95`; also `goodput`, `errors_ratio`.
    """
    verdicts: list[Verdict] = []
    for quantity in QUANTITIES:
        for statistic, limit in getattr(objectives, quantity).items():
            name = f"{quantity} {statistic}"
            found = figure(name)
            verdicts.append(Verdict(name, limit, found, found is not None and found <= limit))
    if objectives.goodput is not None:
        share, found = objectives.goodput.share, figure("goodput")
        verdicts.append(Verdict("goodput", share, found, found is not None and found >= share))
    errors = figure("errors_ratio")
    is_met = errors is not None and errors <= objectives.errors_ratio
    verdicts.append(Verdict("errors_ratio", objectives.errors_ratio, errors, is_met))
    return verdicts


_TimeT_co = TypeVar("_TimeT_co", covariant=True)


class _Sent(Protocol[_TimeT_co]):
    """A request record, or columns of them."""

    @property
    def scheduled_s(self) -> _TimeT_co:
        """When it was due."""
        ...

    @property
    def sent_s(self) -> _TimeT_co:
        """When it was sent."""
        ...


def clock_start_s(requests: _Sent[_TimeT_co], *, is_open: bool) -> _TimeT_co:
    """Return the reference time of latencies: when the request was due (open loop) or sent (closed loop).

    An open loop's user does not wait for the load generator: a delay in sending is part of the latency.
    """
    return requests.scheduled_s if is_open else requests.sent_s
