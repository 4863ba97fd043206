"""Files of a plan for other commands: a recipe to build, serving settings, scenarios to verify and calibrate it."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import yaml

from engines.autoscaling import AutoscalingFile, simulated_engine
from engines.files import to_json
from engines.manifest import EngineManifest
from engines.spec import is_accelerator_file, is_checkpoint_folder, resolve_gpu
from loadtest.capacity.autoscaling import ScalingComparison
from loadtest.capacity.inputs import Demand, Described
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.simulation import LEAD_RATIO, busiest_window, mean_turns, requests_needed
from loadtest.scenario import Trace

RECIPE_NAME, SERVING_NAME, SCENARIO_NAME = "recipe.yaml", "serving.yaml", "verify.yaml"
PAGE_NAME = "capacity.html"
CALIBRATE_NAME = "calibrate.yaml"
AUTOSCALING_NAME = "autoscaling.json"
CALIBRATION_LEVELS = 6  # levels of the calibration scenario: the minimum that a fit needs
WARMUP_RATIO = 0.2


def write_deployment_files(plan: CapacityPlan, folder: Path, target: Path) -> dict[str, str]:
    """Return the files of a plan as text, by name; none without a recommendation.

    Args:
        folder: Where the demand's relative paths start.
        target: Folder that the files go to; a trace's path in the scenario starts there.
    """
    chosen = plan.chosen
    if chosen is None or plan.operating_per_s is None:
        return {}
    files = {SCENARIO_NAME: _scenario(plan, folder, target)}
    if plan.engine is not None:
        files |= {RECIPE_NAME: _recipe(plan), SERVING_NAME: _serving(plan), CALIBRATE_NAME: _calibration(plan)}
        if plan.scaling is not None:
            files[AUTOSCALING_NAME] = to_json(_autoscaling(plan, plan.scaling, plan.engine))
    return files


def _recipe(plan: CapacityPlan) -> str:
    engine = plan.engine
    assert engine is not None
    traffic = plan.traffic
    values = {
        "model": plan.demand.model if is_checkpoint_folder(plan.demand.model) else engine.model.name,
        "precision": engine.precision.name,
        "gpu": _accelerator(plan, engine.gpu.name),
        "parallel": {"tensor": engine.parallel.tensor, "pipeline": engine.parallel.pipeline},
        "workload": {
            "isl": max(1, round(traffic.mean_isl)),
            "osl": max(1, round(traffic.mean_osl)),
            "longest_isl": traffic.longest_isl,
            "longest_osl": max(traffic.longest_osl, traffic.max_tokens),
        },
        "scheduler_policy": engine.runtime.scheduler_policy,
        "limits": {
            "max_batch_size": engine.limits.max_batch_size,
            "max_num_tokens": engine.limits.max_num_tokens,
            "max_seq_len": engine.limits.max_seq_len,
        },
        "kv_cache": {
            "format": engine.precision.kv_cache,
            "tokens_per_block": engine.kv_cache.tokens_per_block,
            "free_gpu_mem_fraction": engine.kv_cache.free_gpu_mem_fraction,
        },
        **_speculative(plan, engine),
    }
    return f"# The engine that {plan.demand.name} was planned with: build-engine --recipe {RECIPE_NAME}\n" + _yaml(
        values
    )


def _speculative(plan: CapacityPlan, engine: EngineManifest) -> dict[str, Any]:
    """Return the recipe's keys of the chosen engine's speculation; none without."""
    found = engine.speculative
    if found is None:
        return {}
    of_server = None if engine.llm_api is None else engine.llm_api.speculation
    if of_server is None:  # built into an engine: the sizes are the demand's
        entries = (each for each in plan.demand.candidates.speculative if each != "none")
        values = next(
            each.model_dump(mode="json", exclude_defaults=True) for each in entries if each.mode == found.method
        )
    else:
        values = of_server.model_dump(mode="json", exclude={"method"}, exclude_none=True) | {"mode": of_server.method}
    return {"backend": engine.backend, "speculative": values | {"acceptance": list(found.acceptance)}}


def _autoscaling(plan: CapacityPlan, scaling: ScalingComparison, engine: EngineManifest) -> AutoscalingFile:
    """Return the recommended control law, for `build-deployment --autoscaling`."""
    chosen = scaling.chosen
    return AutoscalingFile(
        made_by=plan.made_by,
        made_from=plan.made_from,
        law=chosen.law,
        cold_start=scaling.cold_start,
        engine=simulated_engine(engine),
        row=plan.recommended or "",
        simulated_minutes=scaling.minutes,
        missed_minutes=chosen.day_missed_minutes,
        gpu_hours=chosen.gpu_hours,
        seeds=scaling.seeds,
    )


def _accelerator(plan: CapacityPlan, name: str) -> str:
    """Return what a recipe calls an accelerator: a known GPU's name, or the file of one of the user's own."""
    files = [gpu for gpu in plan.demand.limits.gpu_names if is_accelerator_file(gpu)]
    return next((gpu for gpu in files if resolve_gpu(gpu).name == name), name)


def _serving(plan: CapacityPlan) -> str:
    """Return serving settings, with the queue limit and the longest reply that the fleets were simulated with.

    The OpenAI front gives a chat without `max_tokens` the whole of `max_output_tokens`: without it, such a request
    would reserve the rest of the engine's sequence, more than was planned.
    """
    chosen, engine = plan.chosen, plan.engine
    assert chosen is not None
    assert engine is not None
    values: dict[str, Any] = {"scheduling": {"policy": engine.runtime.scheduler_policy}}
    values["limits"] = {"max_output_tokens": min(plan.traffic.max_tokens, engine.limits.max_seq_len)}
    comment = "# The demand has no limit on TTFT, so no request is refused because of waiting.\n"
    if plan.max_queue_size:
        values["queue"] = {"max_queue_size": plan.max_queue_size}
        refused = max((each.refused for each in plan.fleets if each.what == "peak"), default=0.0)
        is_lower_bound = chosen.middle is None or chosen.middle.is_lower_bound
        middle = "a full batch" if is_lower_bound else f"{chosen.middle_rate_per_s or 0:.3g} requests/s"
        comment = (
            f"# max_queue_size: what the middle of the prediction, {middle}, serves within the longest TTFT\n"
            f"# allowed. The fleets were simulated with it: {refused:.2%} of requests refused at the peak.\n"
        )
    comment += (
        "# max_output_tokens: the demand's max_tokens. Requests for more are refused; a chat without its own gets it.\n"
    )
    return f"# {plan.recommended}\n{comment}" + _yaml(values)


def _calibration(plan: CapacityPlan) -> str:
    """Return a closed loop with the demand's mean lengths, from one user to above a replica's highest concurrency."""
    chosen, at = plan.chosen, plan.operating
    assert chosen is not None
    rates = [each.rate_per_s for each in chosen.sizes if each.rate_per_s is not None]
    in_flight = 1.0 if at is None else at.in_flight * max(rates, default=at.rate_per_s) / max(at.rate_per_s, 1e-9)
    largest = max(CALIBRATION_LEVELS, min(chosen.max_batch_size or 256, math.ceil(1.5 * in_flight)))
    steps = [round(largest ** (place / (CALIBRATION_LEVELS - 1))) for place in range(CALIBRATION_LEVELS)]
    users = sorted({max(step, place + 1) for place, step in enumerate(steps)})
    traffic = plan.traffic
    values = {
        "name": f"calibrate-{plan.demand.name}",
        "concurrency": users,
        "lengths": {"isl": max(1, round(traffic.mean_isl)), "osl": max(1, round(traffic.mean_osl))},
        "prompts": "random",
        "requests": 64,
        "requests_per_user": 4,
    }
    return (
        f"# run-load --url URL --scenario {CALIBRATE_NAME} --out RUN, against one replica, then:\n"
        "# plan-capacity --plan capacity.json --calibrate-from RUN\n"
    ) + _yaml(values)


def _scenario(plan: CapacityPlan, folder: Path, target: Path) -> str:
    demand = plan.demand
    rate_per_s = plan.operating_per_s
    assert rate_per_s is not None
    if isinstance(demand.traffic, Described):
        values = _described(demand, demand.traffic, rate_per_s, folder, target)
        how = f"{rate_per_s:.4g} requests/s: one replica's share of the peak with the spares lost"
    else:
        values, how = _replayed(plan, demand.traffic, rate_per_s, folder, target)
    command = f"run-load --url URL --scenario {SCENARIO_NAME} --out RUN"
    verify = f"plan-capacity --verify RUN --plan {target / 'capacity.json'}"
    reserved = plan.traffic.max_tokens > plan.traffic.longest_osl
    note = "# Replies have exactly the requested length: reservations of max_tokens beyond it are not exercised.\n"
    return (note if reserved else "") + f"# {how}.\n# {command}, against one replica, then: {verify}\n" + _yaml(values)


def _described(demand: Demand, traffic: Described, rate_per_s: float, folder: Path, target: Path) -> dict[str, Any]:
    scenario = traffic.scenario(demand.seed).moved(lambda path: os.path.relpath(folder / path, target))
    values = scenario.model_dump(mode="json", exclude_defaults=True)
    for lengths in (values.get("lengths"), *(each.get("lengths") for each in values.get("classes", ()))):
        if lengths is not None:
            lengths.pop("max_tokens", None)  # it would let the model end its replies, which random prompts do not make
    turns = mean_turns(traffic, demand.seed, folder)
    requests = requests_needed(demand, slots=1)
    process = {
        "process": "gamma",
        "rate_per_s": rate_per_s / turns,
        "burstiness": traffic.burstiness,
        "duration_s": math.ceil(requests / rate_per_s / (1 - WARMUP_RATIO)),
    }
    return {
        "name": f"verify-{demand.name}",
        "arrivals": process,
        **values,
        "warmup_ratio": WARMUP_RATIO,
        "objectives": measured_objectives(demand),
    }


def _replayed(
    plan: CapacityPlan, trace: Trace, rate_per_s: float, folder: Path, target: Path
) -> tuple[dict[str, Any], str]:
    """Return the trace's busiest window at the speed that gives one replica its share."""
    begin_s, window_s = busiest_window(plan.demand, folder)
    lead_s = min(begin_s, LEAD_RATIO * window_s)
    begin_s += trace.from_s
    speed_up = rate_per_s / plan.traffic.peak_per_s * trace.speed_up
    arrivals = trace.model_copy(
        update={
            "path": os.path.relpath(folder / trace.path, target),
            "from_s": round(begin_s - lead_s, 3),
            "to_s": round(begin_s + window_s, 3),
            "speed_up": speed_up,
            "max_tokens": None,
        }
    )
    values = {
        "name": f"verify-{plan.demand.name}",
        "arrivals": arrivals.model_dump(mode="json"),
        "warmup_ratio": round(lead_s / (lead_s + window_s), 3),
        "objectives": measured_objectives(plan.demand),
    }
    how = (
        f"The trace's busiest {window_s:g} s at {speed_up:.4g} times its speed, {rate_per_s:.4g} requests/s: one "
        "replica's share of the peak with the spares lost"
    )
    return values, how


def measured_objectives(demand: Demand) -> dict[str, Any]:
    """Return the objectives that a load test measures."""
    return demand.objectives.model_dump(
        mode="json", exclude_defaults=True, exclude_none=True, exclude={"max_accuracy_loss"}
    )


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110)
