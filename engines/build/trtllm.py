"""TensorRT-LLM's commands, flags and versions, and how to run them. No other file contains these."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from engines.errors import MissingError, ToolError
from engines.files import Strict
from engines.planning import BuildPlan
from engines.processes import ending_with_parent, signal_group

# Tags of Triton's TensorRT-LLM image whose release branch states the version; without release candidates.
CONTAINER_TAGS = {"1.0.0": "25.10", "1.1.0": "26.02", "1.2.1": "26.06"}
IMAGE = "engine-to-capacity"  # as in the Dockerfile's header
CONTAINER_SHELL = (
    f'docker run --rm -it --gpus all --shm-size 2g --user "$(id -u):$(id -g)" -v "$PWD:/work" {IMAGE} bash'
)
_EXAMPLE_ROOTS = (Path("/app/examples"), Path("/app/tensorrt_llm/examples"))
# Folder of each family's convert_checkpoint.py below the examples' models folder.
_CONVERTERS = {
    "qwen3": "core/qwen",
    "qwen2": "core/qwen",
    "qwen1.5": "core/qwen",
    "llama": "core/llama",
    "mistral": "core/llama",
    "gptj": "contrib/gptj",
}
_LAST_LINES = 15


class ToolCommand(Strict):
    """A command of TensorRT-LLM, as a list of arguments.

    Attributes:
        stage: The build stage it belongs to.
        argv: Program and arguments; `{checkpoint}`, `{quantized}`, `{engine}` and `{tokenizer}` stand for folders known
            at run time, `{examples}` for TensorRT-LLM's examples folder.
    """

    stage: str
    argv: tuple[str, ...]

    def filled(self, folders: dict[str, str]) -> list[str]:
        """Return the arguments with the folders filled in."""
        return [argument.format(**folders) for argument in self.argv]


def container_image(version: str) -> str:
    """Return Triton's image with a TensorRT-LLM version, for building and serving.

    Raises:
        MissingError: No image of that version is known.
    """
    tag = CONTAINER_TAGS.get(version)
    if tag is None:
        raise MissingError(
            f"no Triton image with TensorRT-LLM {version} is known",
            hint=f"known: {', '.join(f'{v} ({t})' for v, t in CONTAINER_TAGS.items())}",
        )
    return f"nvcr.io/nvidia/tritonserver:{tag}-trtllm-python-py3"


def container_entry(version: str) -> str:
    """Return the shell commands that build and enter the container of a TensorRT-LLM version with this package.

    Raises:
        MissingError: No image of that version is known.
    """
    image = container_image(version).rpartition(":")[2]
    build = f"docker build --build-arg TRITON_TAG={image} -t {IMAGE} ."
    return f"{build} && {CONTAINER_SHELL}"


def converter_command(plan: BuildPlan) -> ToolCommand:
    """Return TensorRT-LLM's own command to convert a 16-bit checkpoint.

    Builds do not run it: `check-gpu` compares its output with the export of `build-engine`. It does not support an FP8
    KV cache.
    """
    flags: dict[str, str | int] = {
        "--model_dir": "{checkpoint}",
        "--output_dir": "{quantized}",
        "--tp_size": plan.sizing.tensor_parallel,
        "--pp_size": plan.sizing.pipeline_parallel,
        "--dtype": "float16" if plan.precision == "fp16" else "bfloat16",
    }
    script = f"{{examples}}/models/{_CONVERTERS[plan.model.family]}/convert_checkpoint.py"
    return ToolCommand(stage="convert", argv=("python3", script, *_flat(flags)))


def compile_command(plan: BuildPlan) -> ToolCommand:
    """Return the `trtllm-build` command; every limit is explicit."""
    paged = plan.runtime.chunked_context or plan.runtime.kv_reuse
    flags: dict[str, str | int] = {
        "--checkpoint_dir": "{quantized}",
        "--output_dir": "{engine}",
        "--max_batch_size": plan.sizing.max_batch_size,
        "--max_num_tokens": plan.sizing.max_num_tokens,
        "--max_seq_len": plan.sizing.max_seq_len,
        "--max_input_len": plan.max_input_len,
        "--max_beam_width": 1,
        "--kv_cache_type": "paged",
        "--tokens_per_block": plan.sizing.tokens_per_block,
        "--remove_input_padding": "enable",
        "--context_fmha": "enable",
        "--use_paged_context_fmha": _switch(paged),
        "--use_fp8_context_fmha": _switch(paged and plan.fp8_context_attention),
        "--gpt_attention_plugin": "auto",
        "--gemm_plugin": plan.gemm_plugin,
        "--multiple_profiles": "enable",
        "--workers": plan.sizing.tensor_parallel * plan.sizing.pipeline_parallel,
        "--output_timing_cache": "{engine}/model.cache",
        "--log_level": "info",
    }
    return ToolCommand(stage="compile", argv=("trtllm-build", *_flat(flags), *_adapter_flags(plan), "--monitor_memory"))


def _adapter_flags(plan: BuildPlan) -> tuple[str, ...]:
    """Return the flags of LoRA and speculative decoding; none if not planned."""
    flags: list[str] = []
    if plan.lora.target_modules:
        flags += ["--lora_plugin", "auto", "--max_lora_rank", str(plan.lora.max_rank)]
        flags += ["--lora_target_modules", *plan.lora.target_modules]
    if plan.speculative.mode != "none":
        flags += ["--speculative_decoding_mode", plan.speculative.mode]
        flags += ["--max_draft_len", str(plan.speculative.max_draft_len)]
    return tuple(flags)


def smoke_command(plan: BuildPlan) -> ToolCommand:
    """Return the command that generates eight tokens with a new engine, using TensorRT-LLM's example runner."""
    ranks = plan.sizing.tensor_parallel * plan.sizing.pipeline_parallel
    mpi = ("mpirun", "-n", str(ranks), "--allow-run-as-root") if ranks > 1 else ()
    flags: dict[str, str | int] = {
        "--engine_dir": "{engine}",
        "--tokenizer_dir": "{tokenizer}",
        "--max_output_len": 8,
        "--input_text": "The capital of France is",
    }
    sizes = plan.speculative.lookahead
    if sizes is not None:
        flags["--lookahead_config"] = f"[{sizes.window_size},{sizes.ngram_size},{sizes.verification_set_size}]"
    return ToolCommand(stage="smoke", argv=(*mpi, "python3", "{examples}/run.py", *_flat(flags)))


def engine_differences(plan: BuildPlan, config: dict[str, Any]) -> list[str]:
    """Return where a built engine's config.json differs from the plan: values that the builder changed silently.

    Args:
        config: The engine folder's config.json: `version`, `build_config`, `pretrained_config`.
    """
    build = config.get("build_config", {})
    plugins = build.get("plugin_config", {})
    paged = plan.runtime.chunked_context or plan.runtime.kv_reuse
    planned: dict[str, tuple[Any, Any]] = {
        "version": (plan.tensorrt_llm, config.get("version")),
        "max_batch_size": (plan.sizing.max_batch_size, build.get("max_batch_size")),
        "max_num_tokens": (plan.sizing.max_num_tokens, build.get("max_num_tokens")),
        "max_seq_len": (plan.built_max_seq_len, build.get("max_seq_len")),
        "max_beam_width": (1, build.get("max_beam_width")),
        "tokens_per_block": (plan.sizing.tokens_per_block, plugins.get("tokens_per_block")),
        "use_paged_context_fmha": (paged, plugins.get("use_paged_context_fmha")),
        "use_fp8_context_fmha": (paged and plan.fp8_context_attention, plugins.get("use_fp8_context_fmha")),
    }
    return [f"{key}: planned {wanted}, built {found}" for key, (wanted, found) in planned.items() if wanted != found]


def installed_version() -> str | None:
    """Return the installed version of TensorRT-LLM; the package index's empty placeholder does not count."""
    try:
        version = metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        return None
    return version if shutil.which("trtllm-build") else None


def require_tools(plan: BuildPlan) -> None:
    """Refuse a real build on a machine that cannot complete it.

    Raises:
        MissingError: TensorRT-LLM is not installed or has another version than planned, no image of the planned version
            is known, or the GPU has another compute capability than planned.
    """
    entry = container_entry(plan.tensorrt_llm)
    found = installed_version()
    if found is None:
        raise MissingError(
            (
                "TensorRT-LLM is not installed on this machine: engines can be planned and emulated here, but "
                "not compiled"
            ),
            hint=f"add --emulate, or run the command in the container: {entry}",
        )
    if found != plan.tensorrt_llm:
        raise MissingError(
            f"TensorRT-LLM {found} is installed, but the plan is for {plan.tensorrt_llm}; an engine runs only under "
            "the version that built it",
            hint=f"--tensorrt-llm {found}, or the container of the planned version: {entry}",
        )
    here = visible_compute_capabilities()
    if here and plan.gpu.compute_capability not in here:
        raise MissingError(
            f"the plan is for {plan.gpu.name}, compute capability {plan.gpu.compute_capability}, and this machine's "
            f"GPU has {here[0]}; an engine runs only on the compute capability it was built for",
            hint="--gpu auto plans for this machine's GPU",
        )


def examples_folder() -> Path:
    """Return the folder of TensorRT-LLM's example scripts: in its container, or beside its programs' folder.

    Raises:
        MissingError: It is in none of the places used by the images.
    """
    beside = [Path(program).parent.parent / "examples" for program in [shutil.which("trtllm-build")] if program]
    for root in (*_EXAMPLE_ROOTS, *beside):
        if (root / "run.py").is_file() or (root / "quantization" / "quantize.py").is_file():
            return root
    raise MissingError(
        f"TensorRT-LLM's example scripts are not in {' or '.join(str(root) for root in _EXAMPLE_ROOTS)}",
        hint="use Triton's TensorRT-LLM image, which contains them",
    )


def visible_gpu() -> str | None:
    """Return the name and memory of the first GPU according to its driver, as one text; None without a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    done = subprocess.run(
        [program, "--query-gpu=name,memory.total", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def visible_compute_capabilities() -> list[str]:
    """Return the compute capability of each GPU according to its driver; empty without a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run(
        [program, "--query-gpu=compute_cap", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout.split() if done.returncode == 0 else []


def run_tool(argv: list[str], *, log: Path) -> None:
    """Run a command to completion; its output is appended to `log` and shown on stderr.

    Raises:
        ToolError: It failed; the error contains its last lines.
    """
    lines: list[str] = []
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(argv)}\n")
        with subprocess.Popen(
            argv,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=ending_with_parent(),  # noqa: PLW1509 (one prctl call)
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    file.write(line)
                    sys.stderr.write(line)
                    lines = [*lines[1 - _LAST_LINES :], line.rstrip()]
            except BaseException:
                signal_group(process.pid, signal.SIGKILL)  # including its own children: a build has workers
                raise
    if process.returncode != 0:
        raise ToolError(
            f"{Path(argv[0]).name} failed",
            status=process.returncode,
            log_path=log,
            last_lines=lines,
            hint="the log contains its complete output",
        )


def _switch(on: bool) -> str:
    return "enable" if on else "disable"


def _flat(flags: dict[str, str | int]) -> tuple[str, ...]:
    return tuple(text for flag, value in flags.items() for text in (flag, str(value)))
