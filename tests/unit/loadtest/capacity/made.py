"""Engines and demands of the capacity tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from loadtest.capacity.inputs.demand import Demand
from loadtest.capacity.parallel import ResultCache, Workers
from loadtest.capacity.search import SearchOptions
from loadtest.capacity.simulation.traffic_sample import SampleSpec, TrafficSample, window_of

HEAD = Document(made_by=MadeBy(command="test", version="0"))
HERE = Path()


def engine(**flags: Any) -> EngineManifest:
    """Plan a Llama-3-8B engine."""
    asked = resolve_recipe(None, {"model": "llama-3-8b", **flags})
    return emulated_manifest(make_plan(asked, head=HEAD), asked.recipe)


def demand(**changed: Any) -> Demand:
    """Return a small demand: one GPU, one precision, short requests."""
    values: dict[str, Any] = {
        "name": "small",
        "model": "llama-3-8b",
        "traffic": {"process": "described", "rate_by_hour_per_s": [20.0], "lengths": {"isl": 256, "osl": 32}},
        "objectives": {"ttft_s": {"p90": 0.5}, "tpot_s": {"p90": 0.06}},
        "limits": {"gpus": ["h100-sxm-80gb"], "precisions": ["fp8"]},
        "candidates": {"max_batch_size": [32], "max_num_tokens": [2048]},
    }
    return Demand.model_validate(values | changed)


def means() -> SearchOptions:
    """Return work in this process, nothing kept, nothing said."""
    return SearchOptions(ResultCache(None), Workers(1), lambda _: None)


def window(rate_per_s: float, number: int = 0, *, is_varying: bool = False, **changed: Any) -> TrafficSample:
    """Draw a window of the small demand."""
    wanted = SampleSpec(rate_per_s, 60.0, 10.0, 5.0, window=number, windows=4, is_varying=is_varying)
    return window_of(demand(**changed), HERE, wanted)
