"""Several engines in one command: the requested combinations, and a table that compares them."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from engines.console import say, show
from engines.errors import CommandError, UserError
from engines.files import Document, Strict
from engines.manifest import EngineManifest
from engines.planning.build_plan import BuildPlan
from engines.spec import gib, milliseconds


class Combination(NamedTuple):
    """One engine of the matrix as requested; None: the default."""

    recipe: str | None
    precision: str | None
    gpu: str | None

    @property
    def recipe_word(self) -> str:
        """The recipe's name without folder and suffix: part of an engine's name."""
        return Path(self.recipe or "default").stem


class Row(Strict):
    """One engine in the comparison; predictions come from the step-time model.

    Attributes:
        verdict: Whether upstream supports it, or why it cannot be built.
        verdict_refused: Whether it cannot be built.
        built: Folder of the finished engine; None if it was only planned.
    """

    recipe: str
    precision: str
    gpu: str
    verdict: str
    verdict_refused: bool
    weights_bytes: int | None = None
    kv_tokens: int | None = None
    max_batch_size: int | None = None
    predicted_single_itl_s: float | None = None
    predicted_itl_s: float | None = None
    predicted_tokens_per_s: float | None = None
    built: str | None = None
    manifest: EngineManifest | None = None


class Comparison(Document):
    """The engines of one command, side by side."""

    rows: list[Row]


def listed(text: str) -> tuple[str, ...]:
    """Return the words of a comma-separated list.

    >>> listed("fp8, int8_sq")
    ('fp8', 'int8_sq')
    """
    return tuple(word.strip() for word in text.split(",") if word.strip())


def combinations_of(flags: dict[str, Any]) -> list[Combination]:
    """Return every combination of the recipes, precisions and GPUs on a command line; the GPU varies fastest.

    Raises:
        UserError: A list is empty.
    """
    axes = [listed(flags[key]) if flags[key] else (None,) for key in ("recipe_name", "precision", "gpu")]
    found = [Combination(*words) for words in product(*axes)]
    if not found:
        raise UserError("--recipe, --precision or --gpu lists no name", hint="as in --precision fp8,bf16")
    return found


def planned_row(combination: Combination, plan: BuildPlan, built: EngineManifest | None, out: Path) -> Row:
    """Return the row of a planned engine, which is finished if `built` is its manifest."""
    return Row(
        recipe=combination.recipe_word,
        precision=plan.precision,
        gpu=plan.gpu.name,
        verdict=plan.verdict.status,
        verdict_refused=False,
        weights_bytes=plan.memory.weights_bytes,
        kv_tokens=plan.memory.kv_tokens,
        max_batch_size=plan.sizing.max_batch_size,
        predicted_single_itl_s=plan.predicted.single_itl_s,
        predicted_itl_s=plan.predicted.itl_s,
        predicted_tokens_per_s=plan.predicted.tokens_per_s,
        built=None if built is None else str(out),
        manifest=built,
    )


def refused_row(combination: Combination, refused: CommandError) -> Row:
    """Return the row of a combination that cannot be built, with the reason and an alternative."""
    hint = f" ({refused.hint})" if refused.hint else ""
    return Row(
        recipe=combination.recipe_word,
        precision=combination.precision or "default",
        gpu=combination.gpu or "default",
        verdict=f"{refused.message}{hint}",
        verdict_refused=True,
    )


def show_comparison(comparison: Comparison) -> None:
    """Print the table and below it the reasons for combinations that cannot be built."""
    from rich.table import Table  # noqa: PLC0415 (slow to import; most plans are not shown)

    from engines.terminal_tables import table_console  # noqa: PLC0415 (as above)

    table = Table(title="weights and KV cache by the memory plan; times predicted, not measured", title_justify="left")
    table.add_column("GPU")
    table.add_column("precision")
    several = len({row.recipe for row in comparison.rows}) > 1
    if several:
        table.add_column("recipe")
    for heading in ("weights", "KV tokens", "batch", "ITL at 1, ms", "ITL at batch, ms", "tokens/s"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in comparison.rows:
        names = [row.gpu, row.precision, *([row.recipe] if several else [])]
        table.add_row(*names, *_figures(row), "impossible" if row.verdict_refused else row.verdict)
    table_console().print(table)
    for row in comparison.rows:
        if row.verdict_refused:
            say(f"not built: {row.verdict}")
        elif row.built is not None:
            show(f"wrote {row.built}")


def _figures(row: Row) -> list[str]:
    if row.weights_bytes is None or row.kv_tokens is None or row.predicted_itl_s is None:
        return [""] * 6
    return [
        gib(row.weights_bytes),
        f"{row.kv_tokens:,}",
        str(row.max_batch_size),
        milliseconds(row.predicted_single_itl_s or 0),
        milliseconds(row.predicted_itl_s),
        f"{row.predicted_tokens_per_s or 0:,.0f}",
    ]
