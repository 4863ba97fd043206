"""Tables printed by the commands of this room."""

from __future__ import annotations

import json

from rich.table import Table

from engines.console import say, show
from engines.files import to_json
from engines.manifest import EngineManifest
from engines.planning import BuildPlan, Explanation, Neighbour, explain
from engines.spec import PRECISIONS, known_gpus, verdict
from engines.terminal_tables import table_console

STEP_TIMES = {
    "roofline": "the roofline, from data sheets",
    "silicon": "tables of measured kernels, without overheads above the GPU",
}


def show_plan(plan: BuildPlan, *, as_json: bool) -> None:
    """Print a plan's values, each with its origin and reason."""
    if as_json:
        show(to_json(plan).rstrip())
        return
    table = Table(title=plan.name, title_justify="left")
    for heading in ("value", "", "origin", "why"):
        table.add_column(heading)
    for choice in plan.choices:
        table.add_row(choice.name, str(choice.value), choice.origin, choice.reason)
    table_console().print(table)


def show_explained(plan: BuildPlan, *, as_json: bool) -> None:
    """Print each value of a plan with the predicted effect of neighbouring values."""
    neighbours = {explanation.name: explanation for explanation in explain(plan)}
    if as_json:
        rows = [{**choice.model_dump(), **_neighbour_facts(neighbours.get(choice.name))} for choice in plan.choices]
        show(json.dumps(rows, indent=2))
        return
    say(f"{plan.name}: effects of other values are predicted by {STEP_TIMES[plan.step_time.source]}")
    for choice in plan.choices:
        say(f"\n{choice.name} = {choice.value}  ({choice.origin}: {choice.reason})")
        around = neighbours.get(choice.name)
        for label, side in (("down", _lower(around)), ("up", _upper(around))):
            if side is not None:
                say(f"    {label:<5}{side.value}: {side.cost}")


def _lower(around: Explanation | None) -> Neighbour | None:
    return None if around is None else around.lower


def _upper(around: Explanation | None) -> Neighbour | None:
    return None if around is None else around.upper


def _neighbour_facts(around: Explanation | None) -> dict[str, dict[str, str]]:
    sides = {"lower": _lower(around), "upper": _upper(around)}
    return {name: {"value": side.value, "cost": side.cost} for name, side in sides.items() if side is not None}


def show_stages(manifest: EngineManifest) -> None:
    """Print the stages that an earlier build had finished; the others were printed as they ended."""
    for stage in manifest.stages:
        if stage.reused:
            show(f"{stage.name}: {stage.seconds:.1f} s, from an earlier build")


def show_quality(manifest: EngineManifest) -> None:
    """Print the accuracy of a quantized checkpoint."""
    quality = manifest.quality
    if quality is None:
        return
    say(
        f"measured on {quality.tokens} held-out tokens: perplexity {quality.perplexity_source:.3f} -> "
        f"{quality.perplexity_quantized:.3f}, KL divergence {quality.kl_divergence_nats:.4f} nats, "
        f"top-1 agreement {quality.top1_agreement_ratio:.1%}"
    )


def show_pairs() -> None:
    """Print which precisions each GPU supports."""
    table = Table(title="TensorRT-LLM 1.2 engine path, dense Qwen3", title_justify="left")
    table.add_column("GPU")
    built = [precision for precision in PRECISIONS.values() if precision.arithmetic != "fp32"]
    for precision in built:
        table.add_column(precision.name)
    marks = {"supported upstream": "yes", "unlisted upstream": "unlisted", "impossible": "-"}
    for gpu in known_gpus().values():
        table.add_row(gpu.name, *(marks[verdict(p, gpu, "qwen3").status] for p in built))
    table_console().print(table)
    say("yes: supported upstream; unlisted: can be built, verify its accuracy; -: impossible")
