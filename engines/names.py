"""The data files of `engines.spec` and the names in them, without the schemas, so that --help starts fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

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
    """Return a data file of `engines.spec`, not yet validated; parsed by libyaml if PyYAML has it."""
    text = spec_file(name).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def spec_file(name: str) -> Path:
    """Return the path of a data file of `engines.spec`."""
    return _DATA / f"{name}.yaml"


def _names_in(kind: str) -> tuple[str, ...]:
    return tuple(entry["name"] for entry in spec_data(kind)[kind])
