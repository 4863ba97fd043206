"""One command over all others."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from engines.cli.e2c import e2c

ROOT = Path(__file__).parents[4]
SCRIPTS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]) - {"e2c"}


def _run(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        e2c(list(arguments), prog_name="e2c")
    return ended.value.code


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_it_lists_every_command(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Without a command as with --help, by the stages of the pipeline."""
    assert _run(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.strip()} >= SCRIPTS
    order = [lines.index(heading) for heading in ("Engines:", "Serving on Triton:", "Load tests and capacity:")]
    assert order == sorted(order)


def test_a_command_runs_as_under_its_own_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same errors, same status; documents quote the command without the umbrella."""
    monkeypatch.setattr(sys, "argv", ["e2c", "report-load", "--no-such-flag"])
    assert _run("report-load", "--no-such-flag") == 2
    assert capsys.readouterr().err.startswith("report-load: error: ")
    assert sys.argv == ["report-load", "--no-such-flag"]


@pytest.mark.parametrize(
    ("typed", "hint"), [("run-laod", "did you mean 'run-load'?"), ("frobnicate", "e2c --help lists every command")]
)
def test_an_unknown_command_is_a_usage_error(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, status 2, and the nearest command."""
    assert _run(typed) == 2
    assert capsys.readouterr().err == f"e2c: error: no such command '{typed}'\nhint: {hint}\n"


@pytest.mark.parametrize(
    ("typed", "word", "found"),
    [
        ([], "run", {"run-load"}),
        (["run-load"], "--conc", {"--concurrency"}),
        (["run-load", "--protocol"], "triton", {"triton-http", "triton-grpc"}),
        (["run-load", "--scenario"], "s", {"soak", "spike", "summarize", "sweep"}),
        (["build-engine", "--precision"], "fp8,bf", {"fp8,bf16"}),
        (["build-engine", "--gpu"], "h200", {"h200-sxm-141gb"}),
        (["build-engine", "--recipe"], "l", {"latency"}),
        (["predict-load", "--engine-profile"], "vllm-v1-", {"vllm-v1-async"}),
    ],
)
def test_the_shell_completes_commands_flags_and_values(typed: list[str], word: str, found: set[str]) -> None:
    """What click's completion for bash and zsh offers."""
    offered = BashComplete(e2c, {}, "e2c", "_E2C_COMPLETE").get_completions(typed, word)
    assert {each.value for each in offered} == found


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_it_prints_the_completion_script(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the line that goes into ~/.bashrc or ~/.zshrc."""
    monkeypatch.setenv("_E2C_COMPLETE", f"{shell}_source")
    assert _run() == 0
    assert "_e2c_completion" in capsys.readouterr().out
