"""build-engine on a real, tiny checkpoint: what is redone, and what is left behind when a stage does not end.

Builds that quantize, but for one, run in children of a process that has imported ModelOpt: `warm_builds`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from warm_builds import LIMIT_S, Build, Signal, WarmBuilds

from engines.checkpoint import inspect_checkpoint, quantizing_memory_bytes
from tests.late import Late
from tests.tiny_checkpoints import VOCABULARY, write_random, write_tokenizer

Late("modelopt", "quantize")
BIN = Path(sys.executable).parent
WORDS, HIDDEN, INNER, LAYERS = VOCABULARY, 64, 128, 2
FLAGS = ("--precision", "fp8", "--gpu", "h100-sxm-80gb", "--max-seq-len", "64", "--isl", "16", "--osl", "16")
FLAGS += ("--calibration-samples", "4", "--calibration-tokens", "24")
FLAGS += ("--step-time", "roofline")  # of heads of 16, it would read the whole kernel tables: 0.5 s a build

# Stands in for TensorRT-LLM's builder: it takes the flags, and writes the config.json that the real one would.
FAKE_BUILDER = """#!{python}
import json, sys
argv = sys.argv[1:]
value = lambda flag: argv[argv.index(flag) + 1]
if {fails}:
    sys.exit("out of memory: 80.00 GiB")
print("Total time of building all engines: 00:00:01")
folder = value("--output_dir")
plugins = {{"tokens_per_block": int(value("--tokens_per_block"))}}
for flag in ("use_paged_context_fmha", "use_fp8_context_fmha"):
    plugins[flag] = value("--" + flag) == "enable"
plugins["use_paged_context_fmha"] = plugins["use_paged_context_fmha"] and not {downgrades}
build = {{key: int(value("--" + key)) for key in ("max_batch_size", "max_num_tokens", "max_seq_len", "max_beam_width")}}
config = {{"version": "1.2.1", "build_config": {{**build, "plugin_config": plugins}}, "pretrained_config": {{}}}}
open(folder + "/config.json", "w").write(json.dumps(config))
open(folder + "/rank0.engine", "w").write("engine")
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a random two-layer Llama with a word-level tokenizer."""
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": WORDS,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    write_random(folder, config, scale=0.15)
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write documents of words the tokenizer knows."""
    path = tmp_path_factory.mktemp("text") / "chats.jsonl"
    lines = [" ".join(f"w{(7 * line + 11 * word * word) % WORDS}" for word in range(40)) for line in range(120)]
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmBuilds]:
    """Start the process whose children build."""
    builds = WarmBuilds(tmp_path_factory.mktemp("builds"))
    yield builds
    builds.end()


WarmBuild = Callable[..., Build]
ColdBuild = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def build(warm: WarmBuilds, checkpoint: Path, text: Path) -> WarmBuild:
    """Run build-engine on the tiny checkpoint until it ends or stops; the arguments come last, so they win."""

    def run(
        out: Path,
        *more: str,
        source: Path = checkpoint,
        env: dict[str, str] | None = None,
        file_bytes: int | None = None,
        itself: Signal | None = None,
    ) -> Build:
        return warm.run(command_of(out, source, text, *more), env=env, file_bytes=file_bytes, itself=itself)

    return run


@pytest.fixture
def cold_build(checkpoint: Path, text: Path) -> ColdBuild:
    """Run build-engine as a shell does, in an interpreter of its own."""

    def run(
        out: Path, *more: str, source: Path = checkpoint, env: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return start(command_of(out, source, text, *more), env)

    return run


def start(argv: list[str], env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command line to its end."""
    full = {**os.environ, **(env or {})}
    return subprocess.run(argv, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=full)


def command_of(out: Path, source: Path, text: Path, *more: str) -> list[str]:
    """Return the command line of a build up to the verified checkpoint, unless told otherwise."""
    until = () if "--until" in more else ("--until", "checkpoint")
    paths = ("--checkpoint", str(source), "--calibration-text", str(text), "--out", str(out))
    return [str(BIN / "build-engine"), *FLAGS, *paths, *until, *more]


def stages_of(out: Path) -> dict[str, bool]:
    """Return which stages a manifest names, and whether each was taken from an earlier build."""
    manifest = json.loads((out / "manifest.json").read_text())
    return {stage["name"]: stage["reused"] for stage in manifest["stages"]}


@pytest.mark.parametrize(
    ("calibration", "held_out"), [(256, 256), (1, 256)], ids=["too few documents", "too few held out"]
)
def test_text_that_is_too_short_is_refused_before_anything_is_quantized(
    build: WarmBuild, tmp_path: Path, calibration: int, held_out: int
) -> None:
    """Not after ModelOpt is loaded, nor, of the text to verify with, after an hour of quantizing."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"calibration: {{samples: {calibration}, held_out_samples: {held_out}}}\n")
    done = build(tmp_path / "engine", "--recipe", str(recipe))
    assert done.returncode == 2
    assert " documents have at least " in done.stderr
    assert "quantize" not in done.stderr.partition("error:")[0].replace("to quantize", "")
    assert not (tmp_path / "engine").exists()


def test_only_what_depends_on_a_change_is_redone(build: WarmBuild, checkpoint: Path, tmp_path: Path) -> None:
    """The same build redoes nothing; other held-out text only verifies; another weight redoes it all."""
    out = tmp_path / "engine"
    first = build(out)
    assert first.returncode == 0, first.stderr
    assert stages_of(out) == {"inspect": False, "quantize": False, "verify": False}
    again = build(out, "--force", "--max-seq-len", "32")
    assert again.returncode == 0, again.stderr
    assert stages_of(out) == {"inspect": True, "quantize": True, "verify": True}
    assert "quantize: cached" in again.stderr
    other_cache = build(tmp_path / "other", "--kv-cache", "16bit")
    assert other_cache.returncode == 0, other_cache.stderr
    assert stages_of(tmp_path / "other") == {"inspect": True, "quantize": False, "verify": False}
    changed = tmp_path / "changed"
    shutil.copytree(checkpoint, changed)
    weights = changed / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    done = build(tmp_path / "third", source=changed)
    assert done.returncode == 0, done.stderr
    assert stages_of(tmp_path / "third") == {"inspect": False, "quantize": False, "verify": False}
    manifest = json.loads((out / "manifest.json").read_text())
    quantize = next(stage for stage in manifest["stages"] if stage["name"] == "quantize")
    assert quantize["seconds"] > 0
    assert 100e6 < quantize["peak_memory_bytes"] < quantizing_memory_bytes(inspect_checkpoint(checkpoint), "fp8")


def test_a_build_killed_in_any_stage_leaves_no_engine_and_goes_on(build: WarmBuild, tmp_path: Path) -> None:
    """After kill -9 nothing stands at --out; the same command goes on with the stage it was killed in."""
    out = tmp_path / "engine"
    order = ["inspect", "quantize", "verify"]
    for number, stage in enumerate(order):
        killed = build(out, itself=Signal(f"{stage} ...", signal.SIGKILL))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        reused = [name for name in order if f"{name}: cached (" in killed.stderr]
        assert reused == order[: max(0, number - 1)]  # what the builds before this one had finished
        assert not out.exists()
    last = build(out)
    assert last.returncode == 0, last.stderr
    assert stages_of(out) == {"inspect": True, "quantize": True, "verify": False}
    assert [path.name for path in tmp_path.glob(".*.part")] == []


def test_a_full_disk_is_one_clear_error_and_nothing_half_built(build: WarmBuild, tmp_path: Path) -> None:
    """Where files cannot grow past 64 KiB, the quantized checkpoint is refused and no folder appears."""
    out = tmp_path / "engine"
    done = build(out, file_bytes=64 * 1024)
    assert done.returncode == 1
    assert "no space left to write" in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()
    assert not list((tmp_path / ".stages").glob("quantize-*/"))
    assert build(out).returncode == 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [("shard", "model.safetensors"), ("tokenizer", "tokenizer.json"), ("config", "config.json")],
)
def test_a_damaged_checkpoint_is_refused_before_any_work(
    cold_build: ColdBuild, checkpoint: Path, tmp_path: Path, damage: str, message: str
) -> None:
    """A shard cut short, a missing tokenizer, a missing config: each is named, and nothing is written."""
    damaged = tmp_path / "damaged"
    shutil.copytree(checkpoint, damaged)
    if damage == "shard":
        with (damaged / "model.safetensors").open("r+b") as file:
            file.truncate(10_000)
    else:
        (damaged / message).unlink()
    done = cold_build(tmp_path / "engine", source=damaged)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "engine").exists()


def test_the_second_build_into_one_folder_is_told(build: WarmBuild, warm: WarmBuilds, tmp_path: Path) -> None:
    """While one build is at work on a folder, another is refused with one sentence; the first ends well."""
    out = tmp_path / "engine"
    first = build(out, itself=Signal("quantize ...", signal.SIGSTOP))
    assert first.returncode is None, first.stderr
    second = build(out)
    ended = warm.go_on(first)
    assert second.returncode == 2
    assert "another command is writing this folder" in second.stderr
    assert ended.returncode == 0, ended.stderr
    assert stages_of(out)["verify"] is False


@pytest.fixture(scope="module")
def quantized(checkpoint: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build up to the verified checkpoint once; return the folder of its finished stages."""
    folder = tmp_path_factory.mktemp("quantized")
    done = start(command_of(folder / "engine", checkpoint, text))
    assert done.returncode == 0, done.stderr
    return folder / ".stages"


@pytest.fixture
def workplace(quantized: Path, tmp_path: Path) -> Path:
    """Return a folder in which the checkpoint is quantized and verified already."""
    shutil.copytree(quantized, tmp_path / ".stages")
    return tmp_path


def fake_toolchain(folder: Path, *, fails: bool = False, downgrades: bool = False) -> dict[str, str]:
    """Write programs that stand in for TensorRT-LLM 1.2.1, and return the environment that finds them."""
    programs, examples, packages = folder / "bin", folder / "examples", folder / "packages"
    for made in (programs, examples, packages / "tensorrt_llm-1.2.1.dist-info"):
        made.mkdir(parents=True)
    builder = programs / "trtllm-build"
    builder.write_text(FAKE_BUILDER.format(python=sys.executable, fails=fails, downgrades=downgrades))
    builder.chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    (examples / "run.py").write_text('print("Output: Paris")\n')
    facts = "Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n"
    (packages / "tensorrt_llm-1.2.1.dist-info" / "METADATA").write_text(facts)
    paths = [str(packages), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": ":".join(paths)}


def test_an_engine_is_compiled_checked_and_smoked(cold_build: ColdBuild, workplace: Path) -> None:
    """With a stand-in for TensorRT-LLM: the last stages run once, their output is in build.log, and nothing twice."""
    env = fake_toolchain(workplace / "tools")
    done = cold_build(workplace / "engine", "--until", "engine", env=env)
    assert done.returncode == 0, done.stderr
    kept = dict.fromkeys(["inspect", "quantize", "verify"], True)
    assert stages_of(workplace / "engine") == {**kept, "compile": False, "smoke": False}
    assert (workplace / "engine" / "engine" / "rank0.engine").is_file()
    log = (workplace / "engine" / "build.log").read_text()
    assert "Total time of building all engines" in log
    assert "Output: Paris" in log
    again = cold_build(workplace / "engine", "--until", "engine", "--force", env=env)
    assert set(stages_of(workplace / "engine").values()) == {True}, again.stderr


def test_a_failed_compile_keeps_the_checkpoint_and_shows_the_last_lines(build: WarmBuild, tmp_path: Path) -> None:
    """The builder's last words are in the error, its log stays, and the next try does not quantize again."""
    failing = fake_toolchain(tmp_path / "failing", fails=True)
    failed = build(tmp_path / "engine", "--until", "engine", env=failing)
    assert failed.returncode == 1
    assert "trtllm-build failed" in failed.stderr
    assert "| out of memory: 80.00 GiB" in failed.stderr
    assert not (tmp_path / "engine").exists()
    assert "out of memory" in (tmp_path / ".stages" / "compile.log").read_text()
    env = fake_toolchain(tmp_path / "tools")
    done = build(tmp_path / "engine", "--until", "engine", env=env)
    assert done.returncode == 0, done.stderr
    assert stages_of(tmp_path / "engine")["quantize"] is True
    assert stages_of(tmp_path / "engine")["compile"] is False


def test_a_silent_downgrade_of_the_builder_is_refused(cold_build: ColdBuild, workplace: Path) -> None:
    """An engine whose own config says other than the plan is no engine of ours."""
    env = fake_toolchain(workplace / "tools", downgrades=True)
    done = cold_build(workplace / "engine", "--until", "engine", env=env)
    assert done.returncode == 1
    assert "use_paged_context_fmha: planned True, built False" in done.stderr
    assert not (workplace / "engine").exists()
