"""Plans the PyTorch backend's own settings: release, adapters, speculation, CUDA graphs, disaggregation."""

from __future__ import annotations

from engines.errors import UserError
from engines.manifest import Adapters, Disaggregation, LlmApiChoices, Speculation
from engines.planning.choices import Choices
from engines.planning.limits import Engine
from engines.planning.recipe import Recipe
from engines.planning.speculation import WITH_DRAFT_MODEL
from engines.spec import LLM_API_VERSIONS, LlmApiVersion, Sizing, SpeculationMethod, llm_api, llm_api_version_of

# Recipe modes that are arguments of the LLM API; the others are built into an engine.
PYTORCH_SPECULATION: dict[str, SpeculationMethod] = {
    "eagle3": "eagle3",
    "ngram": "ngram",
    "draft_target": "draft_target",
}
LAST_ENGINE_RELEASE = "1.2.1"


def pytorch_release(recipe: Recipe, *, is_release_given: bool) -> str:
    """Return the TensorRT-LLM release of a PyTorch-backend plan.

    Args:
        is_release_given: `tensorrt_llm` was given by flag or recipe, and must then agree with `trtllm_version`.

    Raises:
        UserError: The two disagree, or the release's LLM API is unknown.
    """
    version = recipe.trtllm_version
    if version == "auto":
        llm_api_version_of(recipe.tensorrt_llm)
        return recipe.tensorrt_llm
    if is_release_given and llm_api_version_of(recipe.tensorrt_llm) != version:
        raise UserError(
            f"trtllm_version {version} and tensorrt_llm {recipe.tensorrt_llm} are different versions",
            hint="give one of them",
        )
    return recipe.tensorrt_llm if is_release_given else llm_api(version).release


def release_of(choices: Choices) -> str:
    """Return the TensorRT-LLM release to plan for; recorded if it follows from an LLM API version."""
    recipe = choices.resolved.recipe
    if recipe.backend == "tensorrt":
        return recipe.tensorrt_llm
    release = pytorch_release(recipe, is_release_given=choices.resolved.origin("tensorrt_llm") != "default")
    choices.given("tensorrt_llm", release, "the release whose LLM API the files are written for")
    return release


def resolve_llm_api(choices: Choices, release: str, engine: Engine, max_input_len: int) -> LlmApiChoices | None:
    """Return the settings of a PyTorch-backend server, recorded in the plan; None for an engine."""
    recipe = choices.resolved.recipe
    if recipe.backend == "tensorrt":
        return None
    found = llm_api_choices(recipe, release, engine.sizing, max_input_len=max_input_len)
    choices.notice(
        "pytorch-step-time",
        f"predictions for the PyTorch backend use the {engine.pricing.source} step-time model, as for an engine; its "
        "own time between iterations is not in it until a calibration finds it",
    )
    choices.given("trtllm_version", found.version, "whose argument names the files are written in")
    if found.cuda_graph_batch_sizes:
        sizes = " ".join(map(str, found.cuda_graph_batch_sizes))
        choices.given("cuda_graphs.batch_sizes", sizes, "one CUDA graph per size; other batch sizes run without")
    if found.disaggregation is not None:
        split = found.disaggregation
        choices.given("disaggregation.context_servers", split.context_servers, "prefill servers")
        choices.given("disaggregation.generation_servers", split.generation_servers, "decode servers")
        choices.notice(
            "disaggregation-not-predicted",
            (
                "predictions assume one server for prefill and decode; disaggregated servers and the transfer "
                "of the KV cache between them are not predicted"
            ),
        )
    return found


def require_backend_has(recipe: Recipe) -> None:
    """Refuse settings that the recipe's backend does not have.

    Raises:
        UserError: There is one; the message names the backend that has it.
    """
    mode = recipe.speculative.mode
    if recipe.backend == "pytorch":
        if mode != "none" and mode not in PYTORCH_SPECULATION:
            raise UserError(
                f"speculative decoding '{mode}' is built into a TensorRT engine; the PyTorch backend has "
                f"{', '.join(PYTORCH_SPECULATION)}",
                hint="--speculative eagle3 --draft-model NAME, --speculative ngram, or --backend tensorrt",
            )
        return
    alone = {
        f"speculative decoding '{mode}'": mode in PYTORCH_SPECULATION,
        f"trtllm_version {recipe.trtllm_version}": recipe.trtllm_version not in ("auto", "1.2"),
        "a published checkpoint": recipe.published_checkpoint is not None,
        "cuda_graphs.batch_sizes": recipe.cuda_graphs.batch_sizes != "auto",
        "disaggregation": _is_split(recipe),
        "lora.max_loras": recipe.lora.max_loras is not None or recipe.lora.max_cpu_loras is not None,
    }
    unsupported = [what for what, is_set in alone.items() if is_set]
    if unsupported:
        raise UserError(
            f"{', '.join(unsupported)}: only the PyTorch backend has these; the last stable release with engines is "
            f"{LAST_ENGINE_RELEASE}",
            hint="--backend pytorch",
        )


def kv_refusal_of_backend(recipe: Recipe) -> str | None:
    """Return why the backend or its version lacks this KV cache; None if it has it."""
    if recipe.kv_cache.format != "nvfp4":
        return None
    if recipe.backend == "tensorrt":
        return "TensorRT engines have no NVFP4 KV cache; the PyTorch backend has one (--backend pytorch)"
    version = _version(recipe)
    if not llm_api(version).nvfp4_kv_cache:
        newer = [name for name in LLM_API_VERSIONS if llm_api(name).nvfp4_kv_cache]
        return (
            f"TensorRT-LLM {version} accepts an NVFP4 KV cache only from a checkpoint that states one, which is not "
            f"written here; {', '.join(newer)} take it on FP8 scales (--trtllm-version {newer[0]})"
        )
    return None


def llm_api_choices(recipe: Recipe, release: str, sizing: Sizing, *, max_input_len: int) -> LlmApiChoices:
    """Return the settings of a PyTorch-backend server.

    Raises:
        UserError: A setting contradicts another, or lacks what it needs.
    """
    return LlmApiChoices(
        version=llm_api_version_of(release),
        cuda_graph_batch_sizes=_graph_sizes(recipe, sizing.max_batch_size),
        cuda_graph_padding=recipe.cuda_graphs.padding,
        adapters=_adapters(recipe),
        speculation=_speculation(recipe, sizing),
        disaggregation=_disaggregation(recipe, sizing, max_input_len),
        published_checkpoint=recipe.published_checkpoint,
    )


def _version(recipe: Recipe) -> LlmApiVersion:
    return llm_api_version_of(recipe.tensorrt_llm) if recipe.trtllm_version == "auto" else recipe.trtllm_version


def _graph_sizes(recipe: Recipe, max_batch_size: int) -> tuple[int, ...]:
    sizes = recipe.cuda_graphs.batch_sizes
    if sizes == "auto":
        return ()
    if not sizes or max(sizes) > max_batch_size:
        raise UserError(
            f"cuda_graphs.batch_sizes {list(sizes)}: from 1 to max_batch_size, which is {max_batch_size}",
            hint="omit it to record TensorRT-LLM's default series up to the largest batch",
        )
    return tuple(sorted(set(sizes)))


def _adapters(recipe: Recipe) -> Adapters | None:
    lora = recipe.lora
    if not lora.target_modules:
        if lora.max_loras is not None or lora.max_cpu_loras is not None:
            raise UserError("lora.max_loras without lora.target_modules", hint="--lora-modules attn_q,attn_k,attn_v")
        return None
    return Adapters(
        target_modules=lora.target_modules,
        max_rank=lora.max_rank,
        max_loras=lora.max_loras,
        max_cpu_loras=lora.max_cpu_loras,
    )


def _speculation(recipe: Recipe, sizing: Sizing) -> Speculation | None:
    speculative = recipe.speculative
    if speculative.mode == "none":
        if speculative.max_draft_len or speculative.draft_model:
            raise UserError("a draft length or model without speculative decoding", hint="--speculative eagle3")
        return None
    method = PYTORCH_SPECULATION[speculative.mode]
    if not speculative.max_draft_len:
        raise UserError(f"speculative decoding '{method}' needs a draft length", hint="--max-draft-len 3")
    drafted = speculative.max_total_draft_tokens or speculative.max_draft_len
    step_tokens = sizing.max_batch_size * (1 + drafted)
    if step_tokens > sizing.max_num_tokens:
        raise UserError(
            f"max_num_tokens {sizing.max_num_tokens} is less than the {step_tokens} tokens of a full batch of "
            f"{sizing.max_batch_size} with {drafted} draft tokens each",
            hint=f"--max-num-tokens {step_tokens}, a smaller --max-batch-size or a shorter --max-draft-len",
        )
    needs_model = method in WITH_DRAFT_MODEL
    if needs_model and speculative.draft_model is None:
        what = "an EAGLE-3 head trained for this model" if method == "eagle3" else "a smaller model of the same family"
        raise UserError(
            f"speculative decoding '{method}' needs a draft model: {what}",
            hint="--draft-model, a folder or a published name; --speculative ngram needs none",
        )
    if not needs_model and speculative.draft_model is not None:
        raise UserError(f"speculative decoding '{method}' takes no draft model", hint="omit --draft-model")
    return Speculation(
        method=method,
        max_draft_len=speculative.max_draft_len,
        draft_model=speculative.draft_model,
        max_matching_ngram_size=None if needs_model else speculative.max_matching_ngram_size,
        max_total_draft_tokens=speculative.max_total_draft_tokens,
    )


def _is_split(recipe: Recipe) -> bool:
    return bool(recipe.disaggregation.context_servers or recipe.disaggregation.generation_servers)


def _disaggregation(recipe: Recipe, sizing: Sizing, max_input_len: int) -> Disaggregation | None:
    disaggregation = recipe.disaggregation
    if not _is_split(recipe):
        return None
    if not (disaggregation.context_servers and disaggregation.generation_servers):
        raise UserError(
            (
                f"disaggregated serving needs prefill and decode servers; given: {disaggregation.context_servers} for "
                f"prefill, {disaggregation.generation_servers} for decode"
            ),
            hint="--disaggregated 1:1",
        )
    blocks = -(-max_input_len // sizing.tokens_per_block)
    tokens = (
        blocks * sizing.tokens_per_block
        if disaggregation.max_tokens_in_buffer == "auto"
        else disaggregation.max_tokens_in_buffer
    )
    return Disaggregation(
        context_servers=disaggregation.context_servers,
        generation_servers=disaggregation.generation_servers,
        transfer=disaggregation.transfer,
        max_tokens_in_buffer=tokens,
    )
