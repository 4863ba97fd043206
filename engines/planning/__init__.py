"""From a recipe to a resolved plan: limits, neighbours, matrices; imports `checkpoint`, `emulator` and `steptime`."""

from engines.planning.explain import Explanation, Neighbour, explain
from engines.planning.limits import Engine, Outlook, outlook
from engines.planning.matrix import (
    Combination,
    Comparison,
    combinations_of,
    listed,
    planned_row,
    refused_row,
    show_comparison,
)
from engines.planning.plan import BuildPlan, make_plan
from engines.planning.recipe import Recipe, ResolvedRecipe, Workload, ask, recipe_path

__all__ = [
    "BuildPlan",
    "Combination",
    "Comparison",
    "Engine",
    "Explanation",
    "Neighbour",
    "Outlook",
    "Recipe",
    "ResolvedRecipe",
    "Workload",
    "ask",
    "combinations_of",
    "explain",
    "listed",
    "make_plan",
    "outlook",
    "planned_row",
    "recipe_path",
    "refused_row",
    "show_comparison",
]
