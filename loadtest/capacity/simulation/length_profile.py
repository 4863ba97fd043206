"""Mean and longest lengths of a demand's requests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engines.errors import UserError
from loadtest.capacity.inputs import Demand, Scale
from loadtest.capacity.simulation.demand_requests import requests_of_trace, sampler_of, scenario_of, turns_of
from loadtest.scenario import Kind, Scenario, Trace
from loadtest.traffic import SAMPLED_CONVERSATIONS


class LengthProfile(NamedTuple):
    """Lengths of a demand's requests, in tokens.

    Attributes:
        max_tokens: The largest `max_tokens` of any request.
    """

    mean_isl: float
    mean_osl: float
    longest_isl: int
    longest_osl: int
    max_tokens: int


def shape_of(demand: Demand, folder: Path) -> LengthProfile:
    """Return the mean and longest lengths of a demand's requests.

    Raises:
        UserError: A length has no upper bound, but an engine needs one.
    """
    if isinstance(demand.traffic, Trace):
        requests = requests_of_trace(demand.traffic, folder)
        isl, osl = (np.array(values) for values in zip(*((each.isl, each.osl) for each in requests), strict=True))
        longest = int(isl.max()), int(osl.max())
        largest = demand.traffic.max_tokens or demand.max_tokens_for(longest[1])
        return _scaled_shape(LengthProfile(float(isl.mean()), float(osl.mean()), *longest, largest), demand.scale)
    scenario = scenario_of(demand.traffic, demand.seed, folder)
    sampler = sampler_of(scenario.model_dump_json())
    drawn = [request for number in range(SAMPLED_CONVERSATIONS) for request in turns_of(sampler.begin(number), None)]
    isl, osl = np.array([each.isl for each in drawn]), np.array([each.osl for each in drawn])
    bounds = [_bounds(kind, int(isl.max()), int(osl.max())) for kind in scenario.kinds]
    longest_isl, longest_osl = (max(values) for values in zip(*bounds, strict=True))
    largest = max(_max_tokens(kind, demand, bound[1]) for kind, bound in zip(scenario.kinds, bounds, strict=True))
    means = float(isl.mean()), float(osl.mean())
    return _scaled_shape(LengthProfile(*means, longest_isl, longest_osl, largest), demand.scale)


def _max_tokens(kind: Kind, demand: Demand, longest_osl: int) -> int:
    """Return the `max_tokens` of a class's requests: its own, or the demand's default."""
    return kind.lengths.max_tokens or demand.max_tokens_for(longest_osl)


def _scaled_shape(shape: LengthProfile, scale: Scale) -> LengthProfile:
    return LengthProfile(
        shape.mean_isl * scale.isl,
        shape.mean_osl * scale.osl,
        scaled_tokens(shape.longest_isl, scale.isl),
        scaled_tokens(shape.longest_osl, scale.osl),
        scaled_tokens(shape.max_tokens, max(1.0, scale.osl)),
    )


def scaled_tokens(tokens: int, ratio: float) -> int:
    """Return a number of tokens scaled and rounded, at least 1."""
    return max(1, round(tokens * ratio))


def _bounds(kind: Kind, drawn_isl: int, drawn_osl: int) -> tuple[int, int]:
    """Return the longest prompt and reply of a class; lengths that grow with turns are taken from the draws."""
    prefix = kind.prefixes.tokens if kind.prefixes else 0
    if kind.lengths.pairs is not None and not kind.conversation:
        longest_isl, longest_osl = (max(column) for column in zip(*kind.lengths.pairs.rows, strict=True))
        return longest_isl + prefix, longest_osl
    found = []
    for name, spread, added, drawn in (
        ("isl", kind.isl, prefix, drawn_isl),
        ("osl", kind.osl, 0, drawn_osl),
    ):
        if kind.lengths.pairs is not None or spread is None or (name == "isl" and kind.conversation):
            found.append(drawn)
        elif spread.longest is None:
            raise UserError(
                f"traffic: {kind.name or 'lengths'}: {name} has no upper bound, but the engine limits sequences",
                hint="lognormal(mean=1024, cv=0.8, max=8192)",
            )
        else:
            found.append(spread.longest + added)
    return found[0], found[1]


@cache
def _longest_osl_of(scenario_json: str) -> int:
    return sampler_of(scenario_json).lengths_of(range(256)).longest_osl


def max_tokens_by_class(demand: Demand, scenario: Scenario) -> tuple[tuple[str, int], ...]:
    """Return the `max_tokens` of each class's requests."""
    longest = _longest_osl_of(scenario.model_dump_json())
    return tuple((kind.name or "", _max_tokens(kind, demand, _bounds(kind, 1, longest)[1])) for kind in scenario.kinds)
