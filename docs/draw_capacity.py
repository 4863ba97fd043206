"""Draw the charts of why-plans-fail, does-speculation-pay and choose-a-scaling-signal (`make docs`).

All with plan-capacity's own code; the scaling chart is of the demand in plan-capacity.md. With the capacity.json of
decide-on-int4's plan as an argument, its chart is drawn instead (`make docs PLAN=FILE`): it needs evaluated engines.
"""

from __future__ import annotations

import sys
from datetime import date
from pathlib import Path
from typing import Any

from engines.files import Document, MadeBy, read_json, validate
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest, payoff_of
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.yaml_text import parse_yaml
from loadtest.capacity.autoscaling import compare_laws
from loadtest.capacity.inputs.demand import Demand
from loadtest.capacity.output.accuracy import accuracy_chart
from loadtest.capacity.output.charts import Series, chart
from loadtest.capacity.output.page_figures import payoff_chart
from loadtest.capacity.output.scaling_page import scaling_chart
from loadtest.capacity.parallel import ResultCache, Workers
from loadtest.capacity.payoff import SpeculationPayoff
from loadtest.capacity.recommendation import full_batch_per_s, load_curve_task
from loadtest.capacity.scaling import scaling_input
from loadtest.capacity.schema import CapacityPlan
from loadtest.capacity.search import SearchOptions, cheapest_sized, run_tasks, search
from loadtest.capacity.sensitivity import Contender
from loadtest.capacity.simulation.length_profile import shape_of
from loadtest.capacity.simulation.load_bench import WINDOWS, LoadBench, Task
from loadtest.capacity.simulation.rate_result import RateResult
from loadtest.capacity.simulation.replica import NONE

IMAGES = Path(__file__).parent / "images"
DEMAND = Path(__file__).parent / "how-to" / "plan-capacity.md"
HEAD = Document(made_by=MadeBy(command="make docs", version="0"))
# The page's colours are its style sheet's; a chart alone brings them along.
STYLE = """<style>
svg { background: #fff } text { fill: #1f2933; font: 12px system-ui, sans-serif } .small { font-size: 11px }
.title { font-size: 14px; font-weight: 650 } .grid { stroke: #e1e5ea } .axis, .tick { stroke: #5f6c7b }
.line { fill: none; stroke-width: 2 } .limit { stroke: #aa3377; stroke-dasharray: 2 3 }
.line.tone0 { stroke: #0072b2 } .line.tone1 { stroke: #d55e00 } .line.tone2 { stroke: #009e73 }
.line.tone3 { stroke: #cc79a7 } .line.tone4 { stroke: #e69f00 } .line.tone5 { stroke: #616e7c }
.dot.tone0 { fill: #0072b2 } .dot.tone1 { fill: #d55e00 } .dot.tone2 { fill: #009e73 }
.dot.tone3 { fill: #cc79a7 } .dot.tone4 { fill: #e69f00 } .dot.tone5 { fill: #616e7c }
.mark { fill: none; stroke: #1f2933; stroke-width: 2 }
</style>"""


def main() -> None:
    """Write the charts."""
    charts = (
        {"accuracy-and-cost": accuracy(Path(sys.argv[1]))}
        if len(sys.argv) > 1
        else {
            "plans-bursts": bursts(),
            "plans-thinkers": thinkers(),
            "speculation-payoff": speculation(),
            "scaling-signals": scaling(),
        }
    )
    for name, drawn in charts.items():
        head, body = drawn.split(">", 1)
        text = f'{head} xmlns="http://www.w3.org/2000/svg">{STYLE}{body}\n'
        (IMAGES / f"{name}.svg").write_text(text, encoding="utf-8")


def bursts() -> str:
    """Draw TTFT against load for traffic that is more and less bursty."""
    manifest = planned(isl=1000, osl=200)
    rates = (5.0, 10.0, 15.0, 20.0, 25.0)
    series = [
        Series(
            f"gaps vary by {burstiness:g}",
            [(rate, ttft_ms(seen(manifest, rate, burstiness=burstiness))) for rate in rates],
            tone,
            "both",
        )
        for tone, burstiness in enumerate((1.0, 2.0, 4.0))
    ]
    return chart(
        "The same load in bursts (predicted)", series, x="requests a second on a replica", y="TTFT p95, ms", y_log=True
    )


def thinkers() -> str:
    """Draw TTFT against load where replies are alike, and where one in twenty is very long; the mean is the same."""
    mixes: dict[str, Any] = {
        "replies of 400": {"lengths": {"isl": 1000, "osl": 400}},
        "one in twenty of 6,000": {
            "classes": [
                {"name": "short", "weight": 19, "lengths": {"isl": 1000, "osl": 105}},
                {"name": "thinks", "weight": 1, "lengths": {"isl": 1000, "osl": 6000}},
            ]
        },
    }
    manifest = planned(isl=1000, osl=6000, blocks=3500)
    rates = (2.0, 4.0, 6.0, 8.0, 10.0)
    series = [
        Series(name, [(rate, ttft_ms(seen(manifest, rate, **mix))) for rate in rates], tone, "both")
        for tone, (name, mix) in enumerate(mixes.items())
    ]
    return chart(
        "The same mean reply, where the KV cache is small (predicted)",
        series,
        x="requests a second on a replica",
        y="TTFT p95, ms",
        y_log=True,
    )


def speculation() -> str:
    """Draw the speed-up of two drafts an EAGLE-3 step against the batch size."""
    keys = {
        "model": "qwen3-8b",
        "backend": "pytorch",
        "engine_profile": "sglang",
        "kv_cache.format": "16bit",
        "limits.max_batch_size": 128,
        "limits.max_num_tokens": 8192,
        "speculative.mode": "eagle3",
        "speculative.draft_model": "Tengyunw/qwen3_8b_eagle3",
        "speculative.max_draft_len": 2,
    }
    resolved = resolve_recipe(None, keys)
    payoff = payoff_of(emulated_manifest(make_plan(resolved, head=HEAD), resolved.recipe), isl=233, osl=221)
    assert payoff is not None
    return payoff_chart([SpeculationPayoff(name="eagle3", rows=(), payoff=payoff)])


def accuracy(plan: Path) -> str:
    """Draw the cost of each row of a plan against the accuracy that it loses."""
    return accuracy_chart(read_json(plan, CapacityPlan))[0]


def scaling() -> str:
    """Draw every control law over the day of plan-capacity.md's demand, on the engine that its plan recommends.

    That engine alone is planned: with all candidates the plan takes longer and the laws are the same.
    """
    text = DEMAND.read_text(encoding="utf-8").split("```yaml\n", 1)[1].split("```", 1)[0]
    values = parse_yaml(text, where=str(DEMAND)) | {
        "limits": {"gpus": ["h100-sxm-80gb"], "precisions": ["fp8"]},
        "candidates": {
            "max_batch_size": [768], "max_num_tokens": [8192], "scheduler_policy": "guaranteed_no_evict",
        },
    }  # fmt: skip
    demand = validate(values, Demand, where=str(DEMAND))
    options = SearchOptions(ResultCache(None), Workers(1), lambda _: None)
    searched, options = search(demand, Path(), HEAD, options, today=date(2026, 11, 29))
    best = cheapest_sized(searched, options)
    assert best is not None
    candidate = searched.candidate(best.name)
    (curve,) = run_tasks([load_curve_task(searched, Contender(row=best, candidate=candidate))], options)
    full_per_s = full_batch_per_s(searched, candidate, candidate.interval.slow)
    of = scaling_input(searched, best, curve.swept, full_per_s=full_per_s)
    assert of is not None
    return str(scaling_chart(compare_laws(of)[0])[0])


def planned(*, isl: int, osl: int, blocks: int | None = None) -> EngineManifest:
    """Return the plan of Llama-3-8B FP8 on an H100; with fewer KV blocks where that is asked."""
    flags = {
        "model": "llama-3-8b",
        "limits.max_batch_size": 128,
        "limits.max_num_tokens": 2048,
        "workload.longest_isl": isl,
        "workload.longest_osl": osl,
    }
    resolved = resolve_recipe(None, flags)
    manifest = emulated_manifest(make_plan(resolved, head=HEAD), resolved.recipe)
    if blocks is None:
        return manifest
    return manifest.model_copy(update={"kv_cache": manifest.kv_cache.model_copy(update={"blocks": blocks})})


def seen(manifest: EngineManifest, rate_per_s: float, *, burstiness: float = 1.0, **mix: Any) -> RateResult:
    """Simulate one load."""
    traffic = {"process": "described", "rate_by_hour_per_s": [rate_per_s], "burstiness": burstiness}
    traffic |= mix or {"lengths": {"isl": 1000, "osl": 200}}
    demand = Demand.model_validate({"name": "drawn", "traffic": traffic, "objectives": {"ttft_s": {"p95": 1.0}}})
    task = Task("drawn", manifest, demand, Path(), shape_of(demand, Path()))
    return LoadBench(task).verdict(rate_per_s, NONE, min_windows=WINDOWS)


def ttft_ms(found: RateResult) -> float:
    """Return the 95th percentile of TTFT in milliseconds."""
    return 0.0 if found.level.ttft_s is None else found.level.ttft_s.p95 * 1e3


if __name__ == "__main__":
    main()
