"""The command `evaluate-engine`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines.console import DATA_VARIABLE, Command, common_flags

GROUPS = {
    "What to evaluate": ("--url", "--model", "--tokenizer", "--concurrency"),
    "Questions": (
        "--tasks",
        "--data",
        "--task-folder",
        "--limit",
        "--few-shot",
        "--max-tokens",
        "--chat",
        "--run-code",
    ),
}
EVALUATE_HELP = f"""Measure the accuracy of an engine with lm-evaluation-harness, and write it into its manifest.

ENGINE is a folder from build-engine with an exported checkpoint, whose quantized weights run on this CPU. With --url, a
server of the OpenAI API is evaluated instead; ENGINE is then optional, and its manifest gets the results. Perplexity on
held-out text is also measured, unless the server returns no log probabilities.

Data sets are neither included nor downloaded. Put each in the folder of --data under its name on the hub:

\b
  hf download --repo-type dataset openai/gsm8k --local-dir DATA/openai/gsm8k

Without --tasks, these run if their data set is in the folder: gsm8k, mmlu, hellaswag, arc_easy, arc_challenge, and with
--run-code humaneval. --data may also be set as {DATA_VARIABLE}.
"""


@click.command(
    "evaluate-engine",
    cls=Command,
    groups=GROUPS,
    example="evaluate-engine artifacts/engine --tasks hellaswag,arc_easy --data data --limit 500",
    help=EVALUATE_HELP,
)
@click.argument("engine", required=False, type=click.Path(path_type=Path))
@click.option("--url", metavar="URL", help="Server of the OpenAI API, as in http://127.0.0.1:8000.")
@click.option("--model", metavar="NAME", help="Name of the model at --url.  [default: the only one it serves]")
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Folder of the served model's tokenizer.  [default: the engine's]",
)
@click.option(
    "--concurrency", type=click.IntRange(1, 512), default=8, show_default=True, help="Requests in flight at --url."
)
@click.option("--tasks", metavar="NAME,...", help="Tasks of lm-evaluation-harness.  [default: see above]")
@click.option("--data", type=click.Path(path_type=Path), envvar=DATA_VARIABLE, help="Folder of data sets.")
@click.option("--task-folder", type=click.Path(path_type=Path), help="Folder of your own task files.")
@click.option("--limit", type=click.IntRange(min=1), help="Questions of each data set.  [default: all]")
@click.option("--few-shot", type=click.IntRange(0, 64), help="Solved examples in the prompt.  [default: the task's]")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest reply.  [default: the task's, or 256]")
@click.option("--chat", is_flag=True, help="Put questions through the tokenizer's chat template.")
@click.option("--run-code", is_flag=True, help="Run code that the model wrote, as humaneval needs.")
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    help="Engine folder with results on the same questions: also print the accuracy loss against it. Without a task to "
    "run, only compare.",
)
@click.option(
    "--max-accuracy-loss",
    type=click.FloatRange(0, 1),
    metavar="RATIO",
    help="With --against: exit with status 3 unless every task's loss is within it (0.01 is one point) with 95 % "
    "confidence.",
)
@common_flags
def evaluate_engine(**flags: Any) -> None:
    """Measure the accuracy of an engine, and write it into the engine's manifest."""
    from engines.cli.actions.evaluate_engine import run

    run(**flags)
