"""From a recipe to a resolved plan: limits, alternatives, matrices. May import `checkpoint`, `emulator`, `steptime`."""

from engines.planning.build_plan import BuildPlan
from engines.planning.engine_manifest import BUILD_TOOLS, Kind, emulated_manifest, manifest_of
from engines.planning.explain import Explanation, Neighbour, explain
from engines.planning.limits import Engine, Outlook, engine_of, outlook
from engines.planning.llm_api import PYTORCH_SPECULATION
from engines.planning.matrix import (
    Combination,
    Comparison,
    combinations_of,
    listed,
    planned_row,
    refused_row,
    show_comparison,
)
from engines.planning.payoff import Payoff, payoff_of
from engines.planning.plan import make_plan
from engines.planning.recipe import (
    Recipe,
    ResolvedRecipe,
    SpeculativeChoices,
    Workload,
    as_yaml,
    recipe_path,
    resolve_recipe,
)
from engines.planning.speculation import rates_of

__all__ = [
    "BUILD_TOOLS",
    "PYTORCH_SPECULATION",
    "BuildPlan",
    "Combination",
    "Comparison",
    "Engine",
    "Explanation",
    "Kind",
    "Neighbour",
    "Outlook",
    "Payoff",
    "Recipe",
    "ResolvedRecipe",
    "SpeculativeChoices",
    "Workload",
    "as_yaml",
    "combinations_of",
    "emulated_manifest",
    "engine_of",
    "explain",
    "listed",
    "make_plan",
    "manifest_of",
    "outlook",
    "payoff_of",
    "planned_row",
    "rates_of",
    "recipe_path",
    "refused_row",
    "resolve_recipe",
    "show_comparison",
]
