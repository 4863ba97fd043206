"""TODO."""

from loadtest.scenario.arrivals import Constant, Gamma, Poisson, Process, Steps, arrivals_of, draw_times_s, lasting
from loadtest.scenario.distributions import even
from loadtest.scenario.schema import (
    DEFAULT_OSL,
    GENERATED_PROMPTS,
    Conversations,
    Kind,
    Lengths,
    Prefixes,
    ProtocolName,
    Scenario,
    TrafficClass,
    ValidityLimits,
    inputs_of,
    read_scenario,
)
from loadtest.scenario.slo import Goodput, Objectives, Verdict
from loadtest.scenario.traces import HASH_BLOCK_TOKENS, Arrival, NotNegative, Positive, Trace, read_trace

__all__ = [
    "DEFAULT_OSL",
    "GENERATED_PROMPTS",
    "HASH_BLOCK_TOKENS",
    "Arrival",
    "Constant",
    "Conversations",
    "Gamma",
    "Goodput",
    "Kind",
    "Lengths",
    "NotNegative",
    "Objectives",
    "Poisson",
    "Positive",
    "Prefixes",
    "Process",
    "ProtocolName",
    "Scenario",
    "Steps",
    "Trace",
    "TrafficClass",
    "ValidityLimits",
    "Verdict",
    "arrivals_of",
    "draw_times_s",
    "even",
    "inputs_of",
    "lasting",
    "read_scenario",
    "read_trace",
]
