"""Commands start fast: --help loads no schema and no numerics, and what it says is what the rooms hold."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest

from engines import names
from engines.console import LAST_GROUPS
from engines.spec import LLM_API_VERSIONS, PRECISIONS, engine_profiles, known_gpus, known_models
from loadtest.cli import find_knee, target_options
from loadtest.cli.load_flags import library_names
from loadtest.client import PROTOCOLS
from loadtest.knee import UNITS, Span
from loadtest.scenario.reading import scenario_names

ROOT = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SLOW_TO_IMPORT = ("pydantic", "numpy", "rich", "jinja2", "tokenizers", "torch", "matplotlib", "scipy", "locust", "grpc")
_START = """
import importlib, sys
module, _, name = sys.argv.pop(1).partition(":")
command = getattr(importlib.import_module(module), name)
try:
    command()
except SystemExit as ended:
    print("status", ended.code)
print("loaded", *sorted({name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["--no-such-flag"]])
@pytest.mark.parametrize("target", SCRIPTS.values(), ids=SCRIPTS)
def test_help_and_usage_errors_load_nothing_slow(target: str, arguments: list[str]) -> None:
    """--help, --version and an unknown flag need click and the options alone."""
    done = subprocess.run(
        [sys.executable, "-c", _START, target, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *_, status, loaded = done.stdout.splitlines()
    assert status == f"status {2 if arguments == ['--no-such-flag'] else 0}"
    assert not set(SLOW_TO_IMPORT) & set(loaded.split())


@pytest.mark.parametrize(("command", "status"), [(("serve_repo", "--stop"), 2), (("check_repo",), 2)])
def test_repositories_are_checked_and_stopped_without_numerics(
    tmp_path: Path, command: tuple[str, ...], status: int
) -> None:
    """The commands of a repository read Triton's own configuration, without gRPC and NumPy."""
    name, *flags = command
    argv = [sys.executable, "-c", _START, f"triton_repo.cli.start:{name}", str(tmp_path), *flags]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True)
    *_, ended, loaded = done.stdout.splitlines()
    assert ended == f"status {status}", done.stderr
    assert "google" in loaded.split()
    assert not {"grpc", "numpy", "torch", "matplotlib"} & set(loaded.split())


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("run-load --concurrency 0", "--concurrency 0: expected whole numbers of at least 1"),
        ("run-load --rate -1", "--rate -1: expected numbers above 0"),
        ("predict-load --concurrency 4 --rate 2", "a load is either a closed loop or an open loop"),
        ("run-load --master", "--master needs --expect-workers"),
        ("report-load", "no run folder was given"),
        ("plan-capacity", "no demand file was given"),
        ("plan-capacity demand.yaml --plan capacity.json", "take the demand from the plan"),
        ("plan-capacity --verify run", "--plan is required"),
        ("plan-capacity --plan capacity.json", "--plan alone does nothing"),
        ("predict-load --gpu h99", "unknown GPU 'h99'"),
        ("predict-load --gpu h100-sxm-80gb --precision fp9", "unknown precision 'fp9'"),
        ("build-engine --model qwen3-8", "unknown model 'qwen3-8'"),
        ("build-engine --gpu h100-sxm-80", "did you mean 'h100-sxm-80gb'?"),
        ("compare-models --precision fp8,int4_awk", "did you mean 'int4_awq'?"),
        ("find-knee", "no objectives were given"),
    ],
)
def test_what_the_flags_alone_show_to_be_wrong_is_refused_at_once(line: str, error: str) -> None:
    """Status 2, the error, and nothing slow loaded."""
    name, *arguments = line.split()
    done = subprocess.run(
        [sys.executable, "-c", _START, SCRIPTS[name], *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    status, loaded = done.stdout.splitlines()
    assert (status, error in done.stderr) == ("status 2", True)
    assert not set(SLOW_TO_IMPORT) & set(loaded.split())


def test_figures_do_not_depend_on_the_number_of_cores() -> None:
    """Numpy has one thread in the commands that compute figures."""
    count = """
from loadtest.cli import start
try:
    start.report_load(["--no-such-flag"])
except SystemExit:
    import os, numpy
    print(len(os.listdir("/proc/self/task")))
"""
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", count], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_help_names_what_is_known() -> None:
    """The names in --help are those of the data sheets and of the code, in the same order."""
    assert names.gpu_names() == tuple(known_gpus())
    assert names.model_names() == tuple(known_models())
    assert set(names.engine_profile_names()) == {profile.name for profile in engine_profiles().values()}
    assert library_names() == scenario_names()
    assert tuple(PRECISIONS) == names.PRECISION_NAMES
    assert LLM_API_VERSIONS == names.LLM_API_VERSION_NAMES


def test_options_offer_what_the_rooms_accept() -> None:
    """Choices and defaults that options state are those of the schemas behind them."""
    assert target_options.PROTOCOLS == PROTOCOLS
    assert tuple(UNITS) == find_knee.AXES
    assert Span().limit == find_knee.MAX_REQUESTS


@pytest.mark.parametrize("target", SCRIPTS.values(), ids=SCRIPTS)
def test_help_is_in_groups_and_ends_with_an_example(target: str) -> None:
    """Each flag is shown once, below a heading that names flags the command has; the example's flags exist."""
    module, _, name = target.partition(":")
    command = getattr(importlib.import_module(module), name).loaded()
    context = click.Context(command, info_name=command.name)
    flags = [each.opts[-1] for each in command.get_params(context) if isinstance(each, click.Option)]
    grouped = [flag for group in command.groups.values() for flag in group]
    assert set(grouped) <= set(flags)
    assert len(grouped) == len(set(grouped))
    ungrouped = set(flags) - set(grouped) - {flag for group in LAST_GROUPS.values() for flag in group}
    assert len(ungrouped) <= 6, "too many options without a heading"
    text = command.get_help(context)
    options = re.split(r"\n\n(?=[A-Z][^\n]*:\n)", text, maxsplit=1)[1].partition("\n\n  ")[0]
    for flag in flags:
        assert len(re.findall(rf"^  (?:-\w, )?{flag}(?![\w-])", options, re.MULTILINE)) == 1, flag
    *_, last = text.strip().splitlines()
    assert last.startswith(f"Example: {command.name}")
    words = shlex.split(last.removeprefix("Example: "))
    assert {word for word in words if word.startswith("--")} <= {*flags, "--url"}


@pytest.mark.parametrize("target", SCRIPTS.values(), ids=SCRIPTS)
def test_defaults_are_written_in_one_way(target: str) -> None:
    """As `[default: X]`, which is how click writes those it knows, and not as a sentence or in parentheses."""
    module, _, name = target.partition(":")
    command = getattr(importlib.import_module(module), name).loaded()
    options = [each for each in command.params if isinstance(each, click.Option)]
    assert not [each.opts[0] for each in options if re.search(r"Default: |\(default|; the default", each.help or "")]
