"""The data files of `engines.spec` and the names in them, without the schemas.

--help and the refusal of an unknown name need no more, and so take a tenth of a second.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

from engines.errors import UserError

TOKENIZER_FILE = "tokenizer.json"  # of a checkpoint, an engine, a repository
_DATA = Path(__file__).parent / "spec" / "data"
_RECIPES = Path(__file__).parent / "planning" / "recipes"
# Keys of `engines.spec.PRECISIONS`, in its order; a contract test checks that they are equal.
PRECISION_NAMES = ("fp32", "bf16", "fp16", "fp8", "int8_sq", "int8_wo", "int4_awq", "w4a8_awq", "nvfp4")

# Equal to `engines.spec.LLM_API_VERSIONS`, which the test checks too.
LLM_API_VERSION_NAMES = ("1.2", "1.3", "1.4rc")


def gpu_names() -> tuple[str, ...]:
    """Return the keys of `engines.spec.known_gpus`, in its order."""
    return _names_in("gpus")


def model_names() -> tuple[str, ...]:
    """Return the keys of `engines.spec.known_models`, in its order."""
    return _names_in("models")


def engine_profile_names() -> tuple[str, ...]:
    """Return the names of the ready-made engine profiles."""
    return tuple(entry["name"] for entry in spec_data("engine_profiles")["profiles"])


def known_gpu_name(text: str) -> str:
    """Return a GPU's name in the data file, given that or another name people use; upper or lower case.

    Raises:
        UserError: There is no such GPU; the nearest is suggested.

    >>> known_gpu_name("H100-SXM-80GB")
    'h100-sxm-80gb'
    """
    return _known_name("GPU", text, _names_by_alias("gpus"), known=gpu_names())


def known_model_name(text: str) -> str:
    """Return a model's name in the data file, given that, its Hugging Face id or another name; upper or lower case.

    Raises:
        UserError: There is no such model; the nearest is suggested.

    >>> known_model_name("meta-llama/Llama-3.1-8B")
    'llama-3.1-8b'
    """
    return _known_name("model", text, _names_by_alias("models"), known=model_names())


def known_precision_name(text: str) -> str:
    """Return a precision's name, given in upper or lower case.

    Raises:
        UserError: There is no such precision; the nearest is suggested.
    """
    return _known_name("precision", text, {name: name for name in PRECISION_NAMES}, known=PRECISION_NAMES)


def is_accelerator_file(text: str) -> bool:
    """Return whether a `--gpu` names a file, and not a GPU.

    >>> is_accelerator_file("cpu.yaml"), is_accelerator_file("h100-sxm-80gb")
    (True, False)
    """
    return Path(text).suffix in {".yaml", ".yml"}


def refuse_unknown_gpu(text: str) -> None:
    """Refuse a `--gpu` that is neither a known name nor the name of a file, which is not read.

    Raises:
        UserError: There is no such GPU; the nearest is suggested.
    """
    if is_accelerator_file(text):
        return
    try:
        known_gpu_name(text)
    except UserError as error:
        hint = or_also(error.hint, "a file that describes the GPU: FILE.yaml")
        raise UserError(error.message, hint=hint) from None


def refuse_unknown_model(text: str) -> None:
    """Refuse a `--model` that is neither a known name nor a folder, which is not read.

    Raises:
        UserError: There is no such model; the nearest is suggested.
    """
    if Path(text).is_dir():
        return
    try:
        known_model_name(text)
    except UserError as error:
        raise UserError(error.message, hint=or_also(error.hint, "a folder with a config.json")) from None


def refuse_unknown_names(*, model: str | None, gpu: str | None, precision: str | None) -> None:
    """Refuse the name of a model, a GPU or a precision that does not exist; a model or GPU may also be a file.

    Commands call this before they import what computes: the refusal of a misspelt name should not take as long as
    the answer.

    Raises:
        UserError: There is no such model, GPU or precision; the nearest is suggested.
    """
    if model is not None:
        refuse_unknown_model(model)
    if gpu is not None:
        refuse_unknown_gpu(gpu)
    if precision is not None:
        known_precision_name(precision)


def or_also(hint: str | None, other: str) -> str:
    """Return a hint that names another possibility, too.

    >>> or_also("did you mean 'h100'?", "a file"), or_also("known: h100", "a file")
    ("did you mean 'h100'? Also possible: a file", 'known: h100. Also possible: a file')
    """
    hint = hint or ""
    return f"{hint}{'' if hint.endswith('?') else '.'} Also possible: {other}"


def recipe_names() -> tuple[str, ...]:
    """Return the names of the ready-made recipes."""
    return tuple(sorted(path.stem for path in _RECIPES.glob("*.yaml")))


def engine_title(model: str, precision: str, gpu: str) -> str:
    """Return an engine's name from the names of its parts.

    >>> engine_title("qwen3-8b", "fp8", "h100-sxm-80gb")
    'qwen3-8b fp8 on h100-sxm-80gb'
    """
    return f"{model} {precision} on {gpu}"


def spec_data(name: str) -> Any:
    """Return a data file of `engines.spec`, not yet validated."""
    return yaml_data(spec_file(name))


def yaml_data(path: Path) -> Any:
    """Return an installed YAML file as plain data; parsed by libyaml if PyYAML has it."""
    import yaml  # noqa: PLC0415 (many commands read no data file)

    return yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def spec_file(name: str) -> Path:
    """Return the path of a data file of `engines.spec`."""
    return _DATA / f"{name}.yaml"


@cache
def _names_in(kind: str) -> tuple[str, ...]:
    return tuple(entry["name"] for entry in spec_data(kind)[kind])


@cache
def _names_by_alias(kind: str) -> dict[str, str]:
    """Return the name of each GPU or model by every name it has, in lower case."""
    return {
        alias.lower(): entry["name"]
        for entry in spec_data(kind)[kind]
        for alias in (entry["name"], *entry.get("aliases", ()))
    }


def _known_name(kind: str, text: str, names: dict[str, str], *, known: Iterable[str]) -> str:
    found = names.get(text.lower())
    if found is None:
        raise UserError(f"unknown {kind} '{text}'", hint=_nearest(text, names, known=known))
    return found


def _nearest(text: str, names: Iterable[str], *, known: Iterable[str]) -> str:
    """Return a hint: the name nearest to what was given, or all known names."""
    close = difflib.get_close_matches(text.lower(), names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"
