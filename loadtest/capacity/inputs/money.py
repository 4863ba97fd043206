"""Inputs of a plan's money: GPUs that are owned, and spot machines. Nothing here has a default price."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from engines.files import Strict
from loadtest.scenario import NotNegative, Positive

Text = Annotated[str, Field(min_length=1, max_length=500)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Owned(Strict):
    """GPUs bought instead of rented; every price is the user's.

    Attributes:
        usd_per_gpu: Price of one GPU with its share of server, network and installation.
        amortisation_months: After which it is written off.
        resale_ratio: Share of the price that it is sold for then.
        usd_per_kwh: Price of electricity.
        pue: Power usage effectiveness: power of the data centre divided by that of its servers, at least 1.
        other_w_per_gpu: Power of the server beside its GPUs, for each GPU: CPUs, memory, fans, network.
        hosting_usd_per_gpu_month: Space, network, staff, spare parts and maintenance.
        source: Where these figures are from.
    """

    usd_per_gpu: Positive
    amortisation_months: Positive
    resale_ratio: Share = 0.0
    usd_per_kwh: Positive
    pue: Annotated[float, Field(ge=1, le=3)]
    other_w_per_gpu: NotNegative
    hosting_usd_per_gpu_month: NotNegative
    source: Text


class Spot(Strict):
    """Machines that their owner can withdraw at any time.

    Attributes:
        usd_per_gpu_h: Price of one GPU hour.
        interruptions_per_month: Of one machine, mean; the times between them are exponential.
        notice_s: Between the notice and the withdrawal: AWS states 120 s, Google Cloud and Azure 30 s. The replica
            takes no more requests and finishes what it can; the rest is sent again elsewhere.
        wait_s: From the notice until another machine is granted; then it takes `autoscaling.start_up_s`.
        at_once: Replicas that are withdrawn together.
        max_short_ratio: Share of the time with fewer replicas than the peak needs that is accepted.
        source: Where rate and price are from.
    """

    usd_per_gpu_h: Positive
    interruptions_per_month: Positive
    notice_s: NotNegative
    wait_s: NotNegative = 0.0
    at_once: Annotated[int, Field(ge=1)] = 1
    max_short_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.001
    source: Text
