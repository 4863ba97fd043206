"""Many engines in one command: what is built, what is refused, and the one table that compares them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from engines.cli.build_engine import build_engine
from engines.planning.matrix import Combination, combinations_of


def run(*arguments: str) -> Result:
    """Run build-engine in this process."""
    return CliRunner().invoke(build_engine, list(arguments))


def test_lists_multiply() -> None:
    """Two precisions on two GPUs are four engines; what is not given is one default."""
    flags = {"recipe_name": None, "precision": "fp8, bf16", "gpu": "h100,a100"}
    combinations = combinations_of(flags)
    assert len(combinations) == 4
    assert combinations[1] == Combination(None, "fp8", "a100")


def test_a_matrix_builds_what_can_be_and_says_why_the_rest_cannot(tmp_path: Path) -> None:
    """FP8 on an A100 is a row with its reason; the three others stand as folders with a manifest each."""
    done = run(
        "--precision", "fp8,int8_sq", "--gpu", "h100-sxm-80gb,a100-sxm-80gb", "--emulate", "--json",
        "--out", str(tmp_path / "engines"),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    rows = {(row["precision"], row["gpu"]): row for row in json.loads(done.stdout)["rows"]}
    refused = rows["fp8", "a100-sxm-80gb"]
    assert refused["verdict_refused"]
    assert "int8_sq works there" in refused["verdict"]
    built = [row for row in rows.values() if not row["verdict_refused"]]
    assert len(built) == 3
    for row in built:
        assert (Path(row["built"]) / "manifest.json").is_file()
        assert row["predicted_single_itl_s"] < row["predicted_itl_s"]
        assert row["kv_tokens"] > row["max_batch_size"]
    assert rows["int8_sq", "h100-sxm-80gb"]["verdict"] == "unlisted upstream"


def test_a_latency_and_a_throughput_engine_of_one_checkpoint(tmp_path: Path) -> None:
    """Two recipes make two folders, and the throughput engine has the larger batch."""
    out = tmp_path / "engines"
    done = run("--recipe", "latency,throughput", "--precision", "fp8", "--emulate", "--out", str(out))
    assert done.exit_code == 0, done.output
    limits = {
        folder.name.rsplit("-", 1)[1]: json.loads((folder / "manifest.json").read_text())["limits"]
        for folder in out.iterdir()
        if not folder.name.startswith(".")
    }
    assert limits["throughput"]["max_batch_size"] > limits["latency"]["max_batch_size"]


def test_a_matrix_in_which_nothing_can_be_built_is_a_no(tmp_path: Path) -> None:
    """The table is printed, and the command ends with status 3."""
    done = CliRunner().invoke(
        build_engine,
        ["--precision", "fp8,nvfp4", "--gpu", "a100-sxm-80gb", "--dry-run", "--out", str(tmp_path / "e")],
    )
    assert done.exit_code == 3
    assert "none of these engines can be built" in done.stderr
    assert done.stdout.count("not built: ") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--dry-run", "--explain"])
def test_looking_touches_nothing(tmp_path: Path, flag: str) -> None:
    """A dry run and an explanation write no file."""
    done = run("--precision", "fp8", flag, "--out", str(tmp_path / "engine"))
    assert done.exit_code == 0, done.output
    assert list(tmp_path.iterdir()) == []
    assert "limits.max_batch_size" in done.stdout


def test_an_explanation_is_one_json_document_where_asked() -> None:
    """Each value has its origin, and those with neighbours the cost of both."""
    done = run("--precision", "fp8", "--explain", "--json")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["limits.max_batch_size"]["origin"] == "derived"
    assert "tokens/s" in rows["limits.max_batch_size"]["lower"]["cost"]
    assert rows["precision"]["origin"] == "flag"
