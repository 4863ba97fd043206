"""Audit of a model repository of any origin: this project's, fill_template.py's, or one edited by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from engines.build import MODEL_YAML
from engines.errors import CommandError, MissingError, UserError
from triton_repo.audit.findings import BUILD_AGAIN, Finding, ModelFile, Severity, read_model
from triton_repo.audit.known_issues import engine_issues, llmapi_issues, serve_traps, text_issues
from triton_repo.audit.model_config import DataType
from triton_repo.interface import Tensor, tensors
from triton_repo.settings import (
    LLMAPI_MODELS,
    MODELS,
    REPOSITORY_NAME,
    RepositoryManifest,
    not_a_repository,
    read_repository,
    refuse_other_kind,
)

EXPECTED: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "preprocessing": (tensors.PREPROCESSING_INPUTS, tensors.PREPROCESSING_OUTPUTS),
    "tensorrt_llm": (tensors.ENGINE_INPUTS, tensors.ENGINE_OUTPUTS),
    "postprocessing": (tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS),
    "ensemble": (tensors.ENSEMBLE_INPUTS, tensors.TEXT_OUTPUTS),
    "tensorrt_llm_bls": (tensors.BLS_INPUTS, tensors.TEXT_OUTPUTS),
}
LLMAPI = (tensors.LLMAPI_INPUTS, tensors.LLMAPI_OUTPUTS)
# Tensors whose data type depends on the deployment, and the possible types.
CHOSEN_TYPES = {
    **dict.fromkeys(("context_logits", "generation_logits", "draft_logits"), ("TYPE_FP32", "TYPE_FP16")),
    **dict.fromkeys(("prompt_embedding_table", "encoder_input_features"), ("TYPE_FP16", "TYPE_BF16", "TYPE_FP32")),
}
# Tensors of TensorRT-LLM versions around 1.2: known but not required.
OTHER_VERSIONS = {
    "image_url", "lora_id", "lora_name", "lora_path", "lora_ckpt_source", "multimodal_embedding", "multimodal_hashes",
    "multimodal_item_runs", "no_repeat_ngram_size", "return_kv_cache_reuse_stats", "num_return_sequences",
}  # fmt: skip
# Tensors of multimodal models, whose shapes differ between versions.
SEEING = {
    "IMAGE_BYTES", "IMAGE_URL", "IMAGE_SIZES", "VIDEO_BYTES", "PIXEL_VALUES", "ASPECT_RATIO_IDS", "ASPECT_RATIO_MASK",
    "CROSS_ATTENTION_MASK", "IS_VIDEO_INPUT", "ATTENTION_MASK", "IMAGE_GRID_THW", "VISION_INPUT_ID", "image_input",
    "image_bytes_input", "video_bytes_input", "image_url_input", "image_sizes_input",
}  # fmt: skip
PYTHON_MODELS = ("preprocessing", "postprocessing", "tensorrt_llm_bls")


def audit_repository(folder: Path) -> list[Finding]:
    """Audit a model repository without starting a server.

    Returns:
        The findings, errors first.

    Raises:
        MissingError: The folder does not exist.
        UserError: It is a file, or contains no model.
    """
    if not folder.is_dir():
        raise not_a_repository(folder, REPOSITORY_NAME)
    present = [model for model in MODELS if (folder / model).is_dir()]
    manifest, findings = _manifest(folder)
    if not present and manifest is None:
        refuse_other_kind(folder)
        raise UserError(
            f"{folder}: not a model repository: it has none of {', '.join(MODELS)}",
            hint="give the folder that contains them, as for tritonserver --model-repository",
        )
    if manifest is not None and manifest.variant == "trtllm_serve":
        findings += serve_traps(folder, manifest)
        if manifest.kind != "emulated":
            return findings
    llmapi = manifest.variant == "llmapi" if manifest else (folder / "tensorrt_llm" / "1" / MODEL_YAML).is_file()
    findings += _audit_llmapi(folder, manifest) if llmapi else _audit_inflight(folder, manifest, present)
    if manifest is not None:  # build-repo writes none, so somebody added it
        findings = [
            finding.model_copy(update={"severity": "error"}) if finding.code == "placeholder" else finding
            for finding in findings
        ]
    order: dict[Severity, int] = {"error": 0, "warning": 1, "advice": 2}
    return sorted(findings, key=lambda finding: order[finding.severity])


def _manifest(folder: Path) -> tuple[RepositoryManifest | None, list[Finding]]:
    if not (folder / REPOSITORY_NAME).is_file():
        return None, []
    try:
        return read_repository(folder), []
    except CommandError as error:
        what = error.message.removeprefix(f"{folder / REPOSITORY_NAME}: ")
        return None, [_error("manifest", REPOSITORY_NAME, what, error.hint or BUILD_AGAIN)]


def _audit_inflight(folder: Path, manifest: RepositoryManifest | None, present: list[str]) -> list[Finding]:
    findings: list[Finding] = []
    files: dict[str, ModelFile] = {}
    for model in MODELS:
        if model not in present and manifest is None:
            findings += _absent(model)
            continue
        file, wrong = read_model(folder, model)
        findings += wrong
        if file is not None:
            files[model] = file
            findings += _model(folder, file, EXPECTED[model])
    if "ensemble" in files:
        findings += _wiring(files)
    findings += engine_issues(folder, files, manifest)
    findings += text_issues(folder, files, manifest)
    return findings


def _audit_llmapi(folder: Path, manifest: RepositoryManifest | None) -> list[Finding]:
    findings: list[Finding] = []
    for model in LLMAPI_MODELS:
        file, wrong = read_model(folder, model)
        findings += wrong
        if file is not None:
            findings += _model(folder, file, LLMAPI)
            findings += llmapi_issues(folder, file, manifest)
    return findings


def _absent(model: str) -> Iterator[Finding]:
    if model == "tensorrt_llm":
        yield _error(
            "missing-model", model, "no such model: the engine is not served", "copy it from upstream's template"
        )
    elif model != "tensorrt_llm_bls":
        what = "no such model: clients must send and receive token ids"
        yield Finding(
            severity="advice", code="missing-model", file=model, what=what, fix="copy it, or ignore this finding"
        )


def _model(folder: Path, file: ModelFile, expected: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]) -> Iterator[Finding]:
    if file.config.name and file.config.name != file.model:
        what = f"name is '{file.config.name}'; Triton requires the folder's name, '{file.model}'"
        yield _error("name", file.file, what, f'name: "{file.model}"')
    yield from _tensors(file, "input", file.config.input, expected[0])
    yield from _tensors(file, "output", file.config.output, expected[1])
    versions = [path for path in (folder / file.model).iterdir() if path.is_dir() and path.name.isdecimal()]
    if not versions:
        yield _error("no-version", file.model, "no version folder", f"mkdir {file.model}/1")
    elif (file.model in PYTHON_MODELS or file.config.backend == "python") and not any(
        (version / "model.py").is_file() for version in versions
    ):
        yield _error("missing-file", f"{file.model}/{versions[0].name}/model.py", "no such file", BUILD_AGAIN)


def _tensors(file: ModelFile, kind: str, found: Iterable[Any], expected: tuple[Tensor, ...]) -> Iterator[Finding]:
    seen = {tensor.name: tensor for tensor in found}
    for tensor in expected:
        if tensor.name in seen:
            yield from _differs(file, kind, seen[tensor.name], tensor)
        elif kind == "input" and not tensor.optional:
            fix = f"add it: {tensor.data_type}, dims {list(tensor.dims)}"
            yield _error("missing-tensor", file.file, f"input '{tensor.name}' is missing", fix)
    missing = [tensor.name for tensor in expected if tensor.name not in seen and (tensor.optional or kind == "output")]
    if missing:
        what = f"{kind}s of TensorRT-LLM 1.2's template are missing: {', '.join(missing)}"
        fix = "use the template of the serving version, if it differs"
        yield Finding(severity="warning", code="other-version", file=file.file, what=what, fix=fix)
    for name in sorted(seen.keys() - {tensor.name for tensor in expected} - OTHER_VERSIONS):
        what = f"{kind} '{name}' is not among TensorRT-LLM's"
        yield _error("unknown-tensor", file.file, what, "remove it, or use the template of the serving version")


def _differs(file: ModelFile, kind: str, found: Any, expected: Tensor) -> Iterator[Finding]:
    for what, is_there, needed in _facts(found, expected, kind):
        chosen = what == "data_type" and is_there in CHOSEN_TYPES.get(expected.name, ())
        if is_there != needed and not chosen:
            said = f"{kind} '{expected.name}': {what} is {is_there!r}, {needed!r} was expected"
            severity: Severity = "warning" if expected.name in SEEING else "error"
            fix = f"{what}: {_pbtxt(needed)}"
            yield Finding(severity=severity, code="tensor", file=file.file, what=said, fix=fix)


def _facts(found: Any, expected: Tensor, kind: str) -> Iterator[tuple[str, Any, Any]]:
    yield "data_type", DataType.Name(found.data_type), expected.data_type
    yield "dims", list(found.dims), list(expected.dims)
    yield "reshape to a scalar", found.HasField("reshape"), expected.scalar
    if kind == "input":
        yield "optional", found.optional, expected.optional
        yield "allow_ragged_batch", found.allow_ragged_batch, expected.ragged


def _wiring(files: Mapping[str, ModelFile]) -> Iterator[Finding]:
    """Check the ensemble's connections: both ends of every tensor exist and have the same type."""
    file = files["ensemble"]
    ensemble = file.config
    types = {tensor.name: tensor.data_type for tensor in ensemble.input}
    if not ensemble.ensemble_scheduling.step:
        yield _error("wiring", file.file, "no steps", "copy ensemble_scheduling from upstream's template")
    for step in ensemble.ensemble_scheduling.step:
        model = files.get(step.model_name)
        if model is None:
            what = f"step of model '{step.model_name}', which does not exist or cannot be read"
            yield _error("wiring", file.file, what, f"the steps are preprocessing, {', '.join(MODELS[1:3])}")
            continue
        have = {tensor.name: tensor.data_type for tensor in model.config.input}
        for theirs, ours in step.input_map.items():
            yield from _same_type(file, step.model_name, (theirs, have.get(theirs)), (ours, types.get(ours)))
        made = {tensor.name: tensor.data_type for tensor in model.config.output}
        for theirs, ours in step.output_map.items():
            types[ours] = made.get(theirs)
            yield from _same_type(file, step.model_name, (theirs, made.get(theirs)), (ours, types[ours]))
        required = {tensor.name for tensor in model.config.input if not tensor.optional} - step.input_map.keys()
        if required:
            what = f"{step.model_name} is not given {', '.join(sorted(required))}"
            yield _error("wiring", file.file, what, "map an ensemble tensor to it")
    for tensor in ensemble.output:
        yield from _same_type(file, "ensemble", (tensor.name, tensor.data_type), (tensor.name, types.get(tensor.name)))


def _same_type(
    file: ModelFile, model: str, theirs: tuple[str, int | None], ours: tuple[str, int | None]
) -> Iterator[Finding]:
    if theirs[1] is None or ours[1] is None:
        what = f"{model}: no tensor '{theirs[0] if theirs[1] is None else ours[0]}' to connect"
        yield _error("wiring", file.file, what, "use the name of the step that produces it")
    elif theirs[1] != ours[1]:
        what = f"{model}: '{theirs[0]}' and '{ours[0]}' are of different types"
        yield _error("wiring", file.file, what, "give both the type of the engine's tensor")


def _pbtxt(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _error(code: str, file: str, what: str, fix: str) -> Finding:
    return Finding(severity="error", code=code, file=file, what=what, fix=fix)


def first_error(folder: Path, findings: Iterable[Finding]) -> CommandError | None:
    """Return the first error among findings as an exception; None if there is none."""
    for finding in findings:
        if finding.severity == "error":
            kind = MissingError if finding.code in ("missing-file", "missing-model", "no-version") else UserError
            return kind(f"{folder / finding.file}: {finding.what}", hint=finding.fix)
    return None
