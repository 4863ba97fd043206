"""The check of each link: what is done on the GPU machine, and what must be seen there.

A check returns what it saw, in one line, and raises where that is not as it should be.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engines.build import SERVE_YAML, trtllm
from engines.checkpoint import read_shard_header
from engines.errors import MissingError, ToolError
from engines.files import read_json
from engines.model_list import listed_models
from engines.names import TOKENIZER_FILE
from engines.planning import BuildPlan
from engines.ports import free_ports
from triton_repo.audit import EXPECTED, read_model
from triton_repo.gpu_check.machine import templates_folder
from triton_repo.gpu_check.processes import running
from triton_repo.gpu_check.session import (
    HELP_LIMIT_S,
    SERVE_LIMIT_S,
    Session,
    fetched,
    fetched_object,
    flat,
)
from triton_repo.models.engine_metrics import GAUGES

PROMPT, ANSWER = "The capital of France is", "Paris"
# Variants of the engine whose flags trtllm-build must know too.
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "lora": {"lora_modules": "attn_q,attn_v"},
    "lookahead": {"speculative": "lookahead_decoding", "lookahead": "7,7,7"},
    "draft": {"speculative": "draft_tokens_external", "max_draft_len": 5},
}
LENGTHS = ("nv_llm_input_token_len", "nv_llm_output_token_len")
TRITONS = ("nv_inference_request_duration_us", "nv_inference_pending_request_count")  # what a queue is watched by
OUR_PARAMETERS = {"engine_name"}  # TensorRT-LLM's backend leaves keys it does not know
# TensorRT-LLM's own classes and loaders; run by the machine's Python, in a process of its own.
_LOAD = """
import json, sys
from tensorrt_llm.models import MODEL_MAP
folder = sys.argv[1]
architecture = json.load(open(folder + "/config.json"))["architecture"]
MODEL_MAP[architecture].from_checkpoint(folder)
print("loaded as", architecture)
"""
_POLL_S = 1.0
_SHOWN = 3


def quantize(session: Session) -> str:
    """Quantize and verify on held-out text, by build-engine."""
    if session.settings.checkpoint is None:
        session.run("unpack-checkpoint", "smollm2", "--out", session.checkpoint)
    arguments = [*session.build_arguments(session.settings.precision), "--until", "checkpoint"]
    manifest = json.loads(session.run("build-engine", *arguments, "--out", session.path("checkpoint"), "--json"))
    quality = manifest["quality"]
    return (
        f"perplexity {quality['perplexity_source']:.3f} -> {quality['perplexity_quantized']:.3f}, "
        f"same next token {quality['top1_agreement_ratio']:.1%}"
    )


def export(session: Session) -> str:
    """Have TensorRT-LLM's own classes load the exported checkpoint."""
    return session.run("python3", "-c", _LOAD, session.path("checkpoint") / "checkpoint").strip().splitlines()[-1]


def convert(session: Session) -> str:
    """Hold the 16-bit export to what TensorRT-LLM's convert_checkpoint.py makes: the same tensors, types and shapes."""
    plan = session.planned("bf16")
    arguments = [*session.build_arguments("bf16"), "--until", "checkpoint", "--out", session.path("bf16"), "--json"]
    session.run("build-engine", *arguments)
    command = trtllm.converter_command(plan)
    target = session.path("converted")
    folders = {"checkpoint": str(session.checkpoint), "quantized": str(target)}
    session.run(*command.filled({**folders, "engine": "", "examples": str(trtllm.examples_folder())}))
    ours = read_shard_header(session.path("bf16") / "checkpoint" / "rank0.safetensors")
    theirs = read_shard_header(target / "rank0.safetensors")
    different = [f"{name} ours only" for name in sorted(ours.keys() - theirs.keys())]
    different += [f"{name} theirs only" for name in sorted(theirs.keys() - ours.keys())]
    different += [
        f"{name} {ours[name].dtype} {ours[name].shape} ours, {theirs[name].dtype} {theirs[name].shape} theirs"
        for name in sorted(ours.keys() & theirs.keys())
        if ours[name] != theirs[name]
    ]
    _require_none(different, "the two checkpoints differ")
    return f"{len(ours)} tensors of the same names, types and shapes"


def build_flags(session: Session) -> str:
    """Hold every flag that a plan would give to what the installed trtllm-build says it knows."""
    shown = session.run("trtllm-build", "--help", limit_s=HELP_LIMIT_S)
    seen = 0
    for name, flags in VARIANTS.items():
        argv = trtllm.compile_command(session.planned(session.settings.precision, **flags)).argv
        unknown = unknown_flags(argv, shown)
        _require_none([f"{flag} ({name})" for flag in unknown], "trtllm-build --help does not name")
        seen += len([part for part in argv if part.startswith("--")])
    return f"{seen} flags of {len(VARIANTS)} plans"


def compile_engine(session: Session) -> str:
    """Build the whole engine; what ends after the compile stage is the smoke test's failure."""
    arguments = session.build_arguments(session.settings.precision)
    begin = time.monotonic()
    try:
        session.run("build-engine", *arguments, "--out", session.path("engine"))
    except ToolError as error:
        if _compiled_folder(session) is None:
            raise
        session.build_error = error
    return f"trtllm-build and the checks after it: {time.monotonic() - begin:.0f} s"


def engine_config(session: Session) -> str:
    """Hold the engine's own config.json to the plan."""
    folder = _compiled_folder(session)
    if folder is None:
        raise MissingError("the compile stage left no engine")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plan = session.planned(session.settings.precision)
    _require_none(trtllm.engine_differences(plan, config), "the engine is not what was planned")
    size = (folder / "rank0.engine").stat().st_size
    if not size:
        raise ToolError(f"{folder / 'rank0.engine'} is empty")
    return f"version {config['version']}, rank0.engine {size / 2**20:.0f} MiB, limits as planned"


def smoke(session: Session) -> str:
    """Hold the answer of TensorRT-LLM's run.py to what the checkpoint itself prefers."""
    if session.build_error is not None:
        raise session.build_error
    log = (session.path("engine") / "build.log").read_text(encoding="utf-8")
    lines = [line.strip() for line in log.splitlines() if line.strip().startswith("Output")]
    if not lines:
        raise ToolError("run.py printed no line that begins with 'Output'", log_path=session.path("engine/build.log"))
    _require_answer(session, lines[-1])
    return lines[-1]


def repository(session: Session) -> str:
    """Make the repository, audit it, and hold its tensors to the image's own templates."""
    session.run("build-repo", session.path("engine"), "--out", session.path("repository"))
    session.run("check-repo", session.path("repository"))
    templates = templates_folder()
    different: list[str] = []
    for model in EXPECTED:
        different += _tensor_differences(session.path("repository"), templates, model)
    _require_none(different, f"the repository differs from {templates}")
    return f"{len(EXPECTED)} models, the tensors of {templates}"


def cpp_parameters(session: Session) -> str:
    """Hold every parameter of the tensorrt_llm model to those that the image's own template has."""
    templates = templates_folder()
    ours = _parameter_keys(session.path("repository"), "tensorrt_llm") - OUR_PARAMETERS
    theirs = _parameter_keys(templates, "tensorrt_llm")
    _require_none(sorted(ours - theirs), "parameters the image's template does not have")
    unwritten = ", ".join(sorted(theirs - ours))
    return f"{len(ours)} parameters, all in the template; there and not written: {unwritten or 'none'}"


def serving(session: Session) -> str:
    """Serve the engine with Triton, and have it continue a sentence."""
    session.serve(session.path("repository"))
    reply = fetched_object(f"{session.url}/v2/models/ensemble/generate", {"text_input": PROMPT, "max_tokens": 8})
    text = str(reply["text_output"])
    _require_answer(session, text)
    return repr(text)


def metrics(session: Session) -> str:
    """Hold the metrics page to the families and categories that dashboards, alerts and autoscaling ask for."""
    assert session.metrics_url is not None
    page = fetched(session.metrics_url)
    wanted = {(family, category) for family, (_, _, categories) in GAUGES.items() for category in categories}
    missing = [f"{family} {category}" for family, category in sorted(wanted) if not _has(page, family, category)]
    missing += [family for family in LENGTHS if f"{family}_count" not in page]
    missing += [family for family in TRITONS if f"\n{family}{{" not in page]
    _require_none(missing, "not on the metrics page")
    return f"{len(wanted)} gauges and {len(LENGTHS)} histograms"


def load(session: Session) -> str:
    """Load the server, and hold the run to its own validity checks."""
    load_flags = {"--concurrency": "1,4", "--isl": 64, "--osl": 16, "--requests": 16, "--seed": 1}
    session.run("run-load", "--url", session.url, *flat(dict(load_flags)), "--out", session.path("run"))
    summary = json.loads(session.run("report-load", session.path("run"), "--out", session.path("report"), "--json"))
    errors = sum(level["errors"] for level in summary["levels"])
    if errors or not summary["valid"] or summary["kind"] != "measured":
        raise ToolError(f"{errors} errors, valid: {summary['valid']}, kind: {summary['kind']}")
    rate = summary["levels"][-1]["output_tokens_per_s"]
    return f"{rate:.0f} tokens/s at concurrency 4, no error, every validity check passed"


def llm_api(session: Session) -> str:
    """Make, load and ask the LLM API's Triton model: TensorRT-LLM's PyTorch backend."""
    session.stop()
    precision = "fp8" if session.settings.precision == "fp8" else "bf16"
    arguments = [*session.build_arguments(precision), "--backend", "pytorch"]
    session.run("build-engine", *arguments, "--out", session.path("engine-pytorch"))
    session.run("build-repo", session.path("engine-pytorch"), "--out", session.path("repository-pytorch"))
    session.serve(session.path("repository-pytorch"))
    body = {"text_input": PROMPT, "sampling_param_max_tokens": 8}
    text = str(fetched_object(f"{session.url}/v2/models/tensorrt_llm/generate", body)["text_output"])
    _require_answer(session, text)
    return repr(text)


def trtllm_serve(session: Session) -> str:
    """Serve the same checkpoint with trtllm-serve and the YAML of its plan, load it, and look at its metrics."""
    session.stop()
    (port,) = free_ports(1)
    checkpoint = session.path("engine-pytorch") / "checkpoint"
    url = f"http://127.0.0.1:{port}"
    argv = [
        "trtllm-serve",
        "serve",
        str(checkpoint),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--config",
        str(session.path("engine-pytorch") / SERVE_YAML),
    ]
    with running(argv, log=session.log) as process:
        _wait_healthy(process, f"{url}/health", session.log)
        model = listed_models(fetched_object(f"{url}/v1/models"))[0]["id"]
        reply = fetched_object(f"{url}/v1/completions", {"model": model, "prompt": PROMPT, "max_tokens": 8})
        target = ["--url", url, "--protocol", "openai-completions", "--model", model]
        load_flags = {"--tokenizer": checkpoint / TOKENIZER_FILE, "--concurrency": 4, "--isl": 64, "--osl": 16}
        session.run("run-load", *target, *flat(dict(load_flags)), "--requests", 16, "--out", session.path("run-openai"))
        page = fetched(f"{url}/prometheus/metrics")
        if "request_queue_time_seconds" not in page:
            raise ToolError("/prometheus/metrics has no request_queue_time_seconds", log_path=session.log)
    text = str(reply["choices"][0]["text"])
    _require_answer(session, text)
    return repr(text)


def unknown_flags(argv: Iterable[str], help_text: str) -> list[str]:
    """Return the flags of a command line that a program's --help does not name as whole words.

    >>> unknown_flags(["trtllm-build", "--max_num_tokens", "8", "--worker"], "[--max_num_tokens N] [--workers N]")
    ['--worker']
    """
    flags = [part for part in argv if part.startswith("--")]
    return [flag for flag in flags if not re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", help_text)]


def _wait_healthy(process: Any, url: str, log: Path) -> None:
    """Wait until a server answers.

    Raises:
        ToolError: It ended, or did not answer in time.
    """
    end = time.monotonic() + SERVE_LIMIT_S
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ToolError("trtllm-serve ended before it was ready", status=process.returncode, log_path=log)
        try:
            fetched(url)
        except ToolError:
            time.sleep(_POLL_S)
        else:
            return
    raise ToolError(f"trtllm-serve was not ready after {SERVE_LIMIT_S:g} s", log_path=log)


def _compiled_folder(session: Session) -> Path | None:
    """Return the folder of the newest finished compile stage's engine."""
    plan = session.path("engine") / "plan.json"
    if plan.is_file() and read_json(plan, BuildPlan):
        return session.path("engine") / "engine"
    finished = sorted(session.path(".stages").glob("compile-*/stage.json"), key=lambda path: path.stat().st_mtime)
    return finished[-1].parent / "engine" if finished else None


def _require_answer(session: Session, text: str) -> None:
    """SmolLM2 gives the answer 77 % in BF16 and the next token 6 %: no rounding turns that around."""
    if session.settings.checkpoint is None and ANSWER not in text:
        raise ToolError(f"'{PROMPT}' was continued by {text!r}, without {ANSWER}")
    if not text.strip():
        raise ToolError(f"'{PROMPT}' was continued by nothing")


def _require_none(differences: list[str], what: str) -> None:
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise ToolError(f"{what}: {'; '.join(differences[:_SHOWN])}{more}")


def _tensor_differences(repository: Path, templates: Path, model: str) -> list[str]:
    """Return the tensors of a model that the image's template has and ours has not, or the other way round."""
    ours, theirs = (_tensor_names(folder, model) for folder in (repository, templates))
    found = [f"{model}: {name} ours only" for name in sorted(ours - theirs)]
    return found + [f"{model}: {name} theirs only" for name in sorted(theirs - ours)]


def _tensor_names(folder: Path, model: str) -> set[str]:
    config = _config(folder, model)
    return {tensor.name for tensor in (*config.input, *config.output)}


def _parameter_keys(folder: Path, model: str) -> set[str]:
    return set(_config(folder, model).parameters)


def _config(folder: Path, model: str) -> Any:
    file, findings = read_model(folder, model)
    if file is None:
        raise ToolError(f"{folder / model}: {findings[0].what}")
    return file.config


def _has(page: str, family: str, category: str) -> bool:
    return any(line.startswith(f"{family}{{") and f'"{category}"' in line for line in page.splitlines())
