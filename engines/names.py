"""Names of the known GPUs, models and precisions, for --help: read without the schemas, which are slow to import."""

from __future__ import annotations

from pathlib import Path

import yaml

_DATA = Path(__file__).parent / "spec" / "data"
# Keys of `engines.spec.PRECISIONS`, in its order; a contract test holds them equal.
PRECISION_NAMES = ("bf16", "fp16", "fp8", "int8_sq", "int8_wo", "int4_awq", "w4a8_awq", "nvfp4")

# `engines.spec.LLM_API_VERSIONS`, held equal likewise.
LLM_API_VERSION_NAMES = ("1.2", "1.3", "1.4rc")


def gpu_names() -> tuple[str, ...]:
    """Return the keys of `engines.spec.known_gpus`, in its order."""
    return _names_in("gpus")


def model_names() -> tuple[str, ...]:
    """Return the keys of `engines.spec.known_models`, in its order."""
    return _names_in("models")


def _names_in(kind: str) -> tuple[str, ...]:
    """Return the names in `data/KIND.yaml`, in its order."""
    text = (_DATA / f"{kind}.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's, where PyYAML was built with it
    return tuple(entry["name"] for entry in yaml.load(text, Loader=loader)[kind])
