"""The schema of a recipe, and the merging of flags into it."""

from __future__ import annotations

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from engines.errors import UserError
from engines.files import MAX_TOKENS, Strict, load_yaml, validate
from engines.spec import DEFAULT_ENGINE_PROFILE, LlmApiVersion

Auto = Literal["auto"]
MAX_SEQUENCES = 1 << 16  # far above any engine's batch
_RENAMED = {  # keys of `workload` in recipes of version 0.2 and earlier
    "input_tokens": "isl",
    "output_tokens": "osl",
    "longest_input_tokens": "longest_isl",
    "longest_output_tokens": "longest_osl",
}


class Workload(Strict):
    """The traffic that the engine is sized for, in tokens and seconds."""

    isl: int = Field(1024, ge=1, le=MAX_TOKENS, description="Prompt length of a typical request.")
    osl: int = Field(1024, ge=1, le=MAX_TOKENS, description="Reply length of a typical request.")
    longest_isl: int = Field(4096, ge=1, le=MAX_TOKENS, description="Longest prompt that must be accepted.")
    longest_osl: int = Field(4096, ge=1, le=MAX_TOKENS, description="Longest reply that must be possible.")


class Objectives(Strict):
    """Objectives for the choice of limits, with every slot occupied; in seconds."""

    ttft_s: float = Field(2.0, gt=0, description="Mean time from a free slot to the first token.")
    itl_s: float = Field(0.05, gt=0, description="Mean time between two tokens of one request.")
    longest_gap_s: float = Field(0.25, gt=0, description="Time between two tokens while prompts fill an iteration.")


class Parallelism(Strict):
    """How many GPUs share one replica."""

    tensor: int = Field(1, ge=1, le=8)
    pipeline: int = Field(1, ge=1, le=8)


class LimitChoices(Strict):
    """Build limits; `auto` lets the plan choose."""

    max_batch_size: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | Auto = "auto"
    max_num_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | Auto = "auto"
    max_seq_len: Annotated[int, Field(ge=2, le=MAX_TOKENS)] | Auto = "auto"


class KvChoices(Strict):
    """KV cache; `auto` lets the plan choose."""

    format: Literal["32bit", "16bit", "int8", "fp8", "nvfp4", "auto"] = "auto"
    tokens_per_block: Literal[8, 16, 32, 64, 128] = 32
    free_gpu_mem_fraction: float = Field(0.9, gt=0, lt=1)
    reuse: bool | Auto = "auto"


class CalibrationChoices(Strict):
    """Calibration text for quantization, and held-out text for its evaluation."""

    text: str | Auto = "auto"
    samples: int = Field(32, ge=1)
    sample_tokens: int = Field(256, ge=16)
    held_out_samples: int = Field(16, ge=1)


LoraModule = Literal["attn_q", "attn_k", "attn_v", "attn_qkv", "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate"]


class LoraChoices(Strict):
    """Adapters that the engine accepts at run time; no modules: none. Module names are TensorRT-LLM's.

    The numbers of adapters in memory apply to the PyTorch backend only; None leaves them to TensorRT-LLM.
    """

    target_modules: tuple[LoraModule, ...] = ()
    max_rank: int = Field(64, ge=1)
    max_loras: int | None = Field(None, ge=1)
    max_cpu_loras: int | None = Field(None, ge=1)


class LookaheadSizes(Strict):
    """Sizes of lookahead decoding: the window W, the n-grams N, the verification set G."""

    window_size: int = Field(ge=1)
    ngram_size: int = Field(ge=1)
    verification_set_size: int = Field(ge=0)


class SpeculativeChoices(Strict):
    """Speculative decoding: built into an engine, or (eagle3, ngram, draft_target) an argument of the PyTorch backend.

    Attributes:
        max_draft_len: Maximum number of draft tokens accepted per step; for lookahead, the number verified.
        draft_model: A folder on the server, or a published name.
        max_total_draft_tokens: Draft tokens verified per step, for a draft tree; None: a chain of `max_draft_len`.
        acceptance: Share of the steps in which the draft token at each position is accepted, as vLLM's metrics and
            `run-load` report it; `auto`: the method's default, if there is a source for one.
    """

    mode: Literal[
        "none",
        "draft_tokens_external",
        "lookahead_decoding",
        "medusa",
        "explicit_draft_tokens",
        "eagle",
        "eagle3",
        "ngram",
        "draft_target",
    ] = "none"
    max_draft_len: int = Field(0, ge=0)
    lookahead: LookaheadSizes | None = None
    draft_model: str | None = None
    max_matching_ngram_size: int = Field(2, ge=1)
    max_total_draft_tokens: int | None = Field(None, ge=1)
    acceptance: tuple[Annotated[float, Field(ge=0, le=1)], ...] | Auto = "auto"


class CudaGraphChoices(Strict):
    """Batch sizes with a CUDA graph on the PyTorch backend; with padding, a batch uses the next larger graph."""

    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] | Auto = "auto"
    padding: bool = True


class DisaggregationChoices(Strict):
    """Separate prefill and decode servers; both counts 0: every server does both."""

    context_servers: int = Field(0, ge=0, le=64)
    generation_servers: int = Field(0, ge=0, le=64)
    transfer: Literal["DEFAULT", "UCX", "NIXL", "MPI"] = "DEFAULT"
    max_tokens_in_buffer: Annotated[int, Field(ge=1)] | Auto = "auto"


class Recipe(Strict):
    """A recipe file. Everything has a default: an empty recipe is a recipe.

    `model` is a known name or a checkpoint's folder, `gpu` a known name or a file that describes an accelerator.
    """

    model: str = "deepseek-r1-0528-qwen3-8b"
    checkpoint: str | None = None
    tokenizer: str | None = None
    precision: str = "fp8"
    gpu: str = "h100-sxm-80gb"
    tensorrt_llm: str = "1.2.1"
    parallel: Parallelism = Parallelism()
    workload: Workload = Workload()
    objectives: Objectives = Objectives()
    limits: LimitChoices = LimitChoices()
    kv_cache: KvChoices = KvChoices()
    chunked_context: bool | Auto = "auto"
    scheduler_policy: Literal["guaranteed_no_evict", "max_utilization"] = "guaranteed_no_evict"
    lora: LoraChoices = LoraChoices()
    speculative: SpeculativeChoices = SpeculativeChoices()
    backend: Literal["tensorrt", "pytorch"] = "tensorrt"
    trtllm_version: LlmApiVersion | Auto = "auto"
    published_checkpoint: str | None = None
    cuda_graphs: CudaGraphChoices = CudaGraphChoices()
    disaggregation: DisaggregationChoices = DisaggregationChoices()
    calibration: CalibrationChoices = CalibrationChoices()
    step_time: Literal["roofline", "silicon"] | Auto = "auto"
    engine_profile: str = DEFAULT_ENGINE_PROFILE
    step_time_calibration: str | None = None
    seed: int = Field(0, ge=0, lt=1 << 63)


class ResolvedRecipe(Strict):
    """A recipe and the origin of its values.

    Attributes:
        recipe: Flags over the recipe file over the defaults.
        origins: `flag` or `recipe` by dotted key; a missing key has its default.
        renamed: Dotted keys of an earlier version in the recipe file, with their current names.
    """

    recipe: Recipe
    origins: dict[str, Literal["flag", "recipe"]]
    renamed: dict[str, str] = Field(default_factory=dict)

    def origin(self, key: str) -> Literal["flag", "recipe", "default"]:
        """Return the origin of the value of a dotted key."""
        return self.origins.get(key, "default")


# Flags that are not named after the last part of the key that they set.
_FLAG_NAMES = {
    "parallel.tensor": "--tp",
    "parallel.pipeline": "--pp",
    "objectives.ttft_s": "--ttft-ms",
    "objectives.itl_s": "--itl-ms",
    "kv_cache.format": "--kv-cache",
    "published_checkpoint": "--published",
    "cuda_graphs.batch_sizes": "--cuda-graph-batch-sizes",
    "disaggregation.context_servers": "--disaggregated",
    "disaggregation.generation_servers": "--disaggregated",
    "lora.target_modules": "--lora-modules",
    "lora.max_rank": "--max-lora-rank",
    "speculative.mode": "--speculative",
    "calibration.text": "--calibration-text",
    "calibration.samples": "--calibration-samples",
    "calibration.sample_tokens": "--calibration-tokens",
}


def flag_of(key: str) -> str:
    """Return the flag that sets a key of the recipe.

    >>> flag_of("parallel.tensor"), flag_of("limits.max_batch_size")
    ('--tp', '--max-batch-size')
    """
    return _FLAG_NAMES.get(key) or f"--{key.rpartition('.')[2].replace('_', '-')}"


def resolve_recipe(
    recipe_name: str | None, flags: dict[str, Any], *, typed: Collection[str] = frozenset()
) -> ResolvedRecipe:
    """Merge flags into a recipe.

    Args:
        recipe_name: A file, or the name of a recipe in `engines/planning/recipes/`; None: defaults only.
        flags: Values by dotted key; None is a flag that was not given.
        typed: Keys that have a flag of the command: an error in one of their values names the flag (`flag_of`).

    Raises:
        UserError: The recipe does not exist, a key is unknown, or a value is out of range.
    """
    base: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    if recipe_name is not None:
        base, renamed = _read(recipe_path(recipe_name))
    origins: dict[str, Literal["flag", "recipe"]] = dict.fromkeys(_dotted(base), "recipe")
    for key, value in flags.items():
        if value is not None:
            _set(base, key, value)
            origins[key] = "flag"
    named = {key: flag_of(key) for key in typed if flags.get(key) is not None}
    recipe = validate(base, Recipe, where="flags" if recipe_name is None else recipe_name, flags=named)
    return ResolvedRecipe(recipe=recipe, origins=origins, renamed=renamed)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the values that a recipe file sets, and its keys of an earlier version with their current names.

    Raises:
        UserError: As `read_yaml` does; or a value is given under both names.
    """
    values = load_yaml(path)
    workload = values.get("workload") if isinstance(values, dict) else None
    renamed: dict[str, str] = {}
    if isinstance(workload, dict):
        renamed = {old: new for old, new in _RENAMED.items() if old in workload}
        for old, new in renamed.items():
            if new in workload:
                raise UserError(f"{path}: workload.{old} is the earlier name of workload.{new}", hint="remove one")
        values["workload"] = {renamed.get(key, key): value for key, value in workload.items()}
    recipe = validate({} if values is None else values, Recipe, where=str(path))
    return (
        recipe.model_dump(exclude_unset=True),
        {f"workload.{old}": f"workload.{new}" for old, new in renamed.items()},
    )


def recipe_path(name: str) -> Path:
    """Return the file of a recipe given by path, or by the name of one that ships with the package.

    Raises:
        UserError: No recipe of that name ships with the package; the shipped names are listed.
    """
    if Path(name).suffix in {".yaml", ".yml"}:
        return Path(name)
    folder = Path(str(files("engines.planning"))) / "recipes"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob("*.yaml")))
        raise UserError(f"no recipe '{name}'", hint=f"a .yaml file, or one of: {known}")
    return path


def as_yaml(recipe: Recipe) -> str:
    """Return a recipe as YAML, every key written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)


def _dotted(values: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in values.items():
        keys += _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
    return keys


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
    values[last] = value
