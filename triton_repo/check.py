"""Whether a model repository is what Triton and TensorRT-LLM will accept, found out before a server is started."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from engines.errors import MissingError, UserError
from triton_repo import tensors
from triton_repo.settings import MODELS, RepositoryManifest, read_repository
from triton_repo.tensors import Tensor

EXPECTED: dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "preprocessing": (tensors.PREPROCESSING_INPUTS, tensors.PREPROCESSING_OUTPUTS),
    "tensorrt_llm": (tensors.ENGINE_INPUTS, tensors.ENGINE_OUTPUTS),
    "postprocessing": (tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS),
    "ensemble": (tensors.ENSEMBLE_INPUTS, tensors.TEXT_OUTPUTS),
    "tensorrt_llm_bls": (tensors.BLS_INPUTS, tensors.TEXT_OUTPUTS),
}
DECOUPLED = {"tensorrt_llm", "tensorrt_llm_bls"}
PYTHON_MODELS = {"preprocessing", "postprocessing", "tensorrt_llm_bls"}


def check_repository(folder: Path) -> list[str]:
    """Check a repository's every file against Triton's schema, TensorRT-LLM's tensors and the engine's manifest.

    Returns:
        What was checked, a line for each model.

    Raises:
        MissingError: The folder, a model or a file of one is missing.
        UserError: The first thing wrong: file, what, and what was expected.
    """
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such repository", hint="build-repo ENGINE_DIR makes one")
    repository = read_repository(folder)
    configs = {model: read_config(folder / model / "config.pbtxt") for model in MODELS}
    for model, config in configs.items():
        _check_model(folder, model, config, repository)
    _check_wiring(folder / "ensemble" / "config.pbtxt", configs)
    _check_engine(folder, configs["tensorrt_llm"], repository)
    return [f"{model}: {len(config.input)} inputs, {len(config.output)} outputs" for model, config in configs.items()]


def read_config(path: Path) -> Any:
    """Parse a config.pbtxt into Triton's own ModelConfig.

    Raises:
        MissingError: There is no such file.
        UserError: It does not parse: a key that ModelConfig does not have, a placeholder that was never filled.
    """
    if not path.is_file():
        raise MissingError(f"{path}: no such file", hint="build the repository again: build-repo ENGINE_DIR --force")
    text = path.read_text(encoding="utf-8")
    unfilled = re.search(r"\$\{(\w+)\}", text)
    if unfilled:
        raise UserError(f"{path}: the placeholder {unfilled[0]} was never filled", hint="build the repository again")
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise UserError(f"{path}: not a Triton model configuration: {error}", hint=_key_hint(str(error))) from error


def _key_hint(message: str) -> str | None:
    """Return the nearest key of ModelConfig where the parser met one it does not know."""
    found = re.search(r'has no field named "(\w+)"', message)
    known = [field.name for field in model_config_pb2.ModelConfig.DESCRIPTOR.fields]
    close = difflib.get_close_matches(found[1], known, n=1) if found else []
    return f"did you mean '{close[0]}'?" if close else "build the repository again: build-repo ENGINE_DIR --force"


def _check_model(folder: Path, model: str, config: Any, repository: RepositoryManifest) -> None:
    path = folder / model / "config.pbtxt"
    inputs, outputs = EXPECTED[model]
    _expect(path, "name", config.name, model)
    _expect(path, "max_batch_size", config.max_batch_size, repository.engine.limits.max_batch_size)
    _expect(path, "decoupled", config.model_transaction_policy.decoupled, model in DECOUPLED)
    _expect_tensors(path, "input", config.input, inputs)
    _expect_tensors(path, "output", config.output, outputs)
    version = folder / model / "1"
    if not version.is_dir():
        raise MissingError(f"{version}: no such folder", hint="every model needs a version folder")
    if model in PYTHON_MODELS:
        _check_python_model(folder, model, config, repository)


def _check_python_model(folder: Path, model: str, config: Any, repository: RepositoryManifest) -> None:
    if not (folder / model / "1" / "model.py").is_file():
        raise MissingError(f"{folder / model / '1' / 'model.py'}: no such file", hint="build the repository again")
    tokenizer = config.parameters["tokenizer_dir"].string_value
    inside = tokenizer.removeprefix(repository.served_at).lstrip("/")
    if not (folder / inside / "tokenizer.json").is_file():
        raise MissingError(
            f"{folder / model / 'config.pbtxt'}: tokenizer_dir {tokenizer} holds no tokenizer.json",
            hint="build the repository again, with --served-at where it is mounted elsewhere",
        )


def _check_wiring(path: Path, configs: dict[str, Any]) -> None:
    """Follow every tensor through the ensemble: both ends exist, and their types agree."""
    types = {tensor.name: tensor.data_type for tensor in configs["ensemble"].input}
    for step in configs["ensemble"].ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            raise UserError(f"{path}: step of unknown model '{step.model_name}'")
        have = {tensor.name: tensor.data_type for tensor in model.input}
        for theirs, ours in step.input_map.items():
            _same_type(path, step.model_name, (theirs, have.get(theirs)), (ours, types.get(ours)))
        made = {tensor.name: tensor.data_type for tensor in model.output}
        for theirs, ours in step.output_map.items():
            types[ours] = made.get(theirs)
            _same_type(path, step.model_name, (theirs, made.get(theirs)), (ours, types[ours]))
        required = {tensor.name for tensor in model.input if not tensor.optional} - step.input_map.keys()
        if required:
            raise UserError(f"{path}: {step.model_name} is not given {', '.join(sorted(required))}")
    for tensor in configs["ensemble"].output:
        _same_type(path, "ensemble", (tensor.name, tensor.data_type), (tensor.name, types.get(tensor.name)))


def _same_type(path: Path, model: str, theirs: tuple[str, int | None], ours: tuple[str, int | None]) -> None:
    if theirs[1] is None or ours[1] is None:
        raise UserError(f"{path}: {model}: no tensor '{theirs[0] if theirs[1] is None else ours[0]}' to connect")
    if theirs[1] != ours[1]:
        raise UserError(f"{path}: {model}: '{theirs[0]}' and '{ours[0]}' are of different types")


def _check_engine(folder: Path, config: Any, repository: RepositoryManifest) -> None:
    path = folder / "tensorrt_llm" / "config.pbtxt"
    engine, emulated = repository.engine, repository.kind == "emulated"
    _expect(path, "backend", config.backend, "python" if emulated else "tensorrtllm")
    values = {key: value.string_value for key, value in config.parameters.items()}
    _expect(path, "gpt_model_type", values.get("gpt_model_type"), "inflight_fused_batching")
    _expect(path, "batch_scheduler_policy", values.get("batch_scheduler_policy"), engine.runtime.scheduler_policy)
    for key, value in (
        ("enable_kv_cache_reuse", engine.runtime.kv_reuse),
        ("enable_chunked_context", engine.runtime.chunked_context),
    ):
        _expect(path, key, values.get(key), str(value).lower())
    if emulated and not (folder / "tensorrt_llm" / "1" / values.get("emulator_manifest", "?")).is_file():
        raise MissingError(f"{path}: emulator_manifest names no file", hint="build the repository again")


def _expect_tensors(path: Path, kind: str, found: Iterable[Any], expected: tuple[Tensor, ...]) -> None:
    seen = {tensor.name: tensor for tensor in found}
    for tensor in expected:
        if tensor.name not in seen:
            raise UserError(f"{path}: {kind} '{tensor.name}' is missing")
        for what, is_there, wanted in _facts(seen[tensor.name], tensor, kind):
            _expect(path, f"{kind} '{tensor.name}': {what}", is_there, wanted)
    unknown = seen.keys() - {tensor.name for tensor in expected}
    if unknown:
        raise UserError(f"{path}: {kind} '{min(unknown)}' is not among TensorRT-LLM's")


def _facts(found: Any, expected: Tensor, kind: str) -> Iterator[tuple[str, Any, Any]]:
    yield "data_type", model_config_pb2.DataType.Name(found.data_type), expected.data_type
    yield "dims", list(found.dims), list(expected.dims)
    yield "reshape to a scalar", found.HasField("reshape"), expected.scalar
    if kind == "input":
        yield "optional", found.optional, expected.optional
        yield "allow_ragged_batch", found.allow_ragged_batch, expected.ragged


def _expect(path: Path, what: str, found: Any, expected: Any) -> None:
    if found != expected:
        raise UserError(f"{path}: {what} is {found!r}, {expected!r} was expected", hint="build the repository again")
