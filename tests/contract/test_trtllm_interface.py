"""Every flag and key we hand to TensorRT-LLM, held to the facts of its interface."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from engines.build.trtllm import compile_command, converter_command, engine_differences, smoke_command
from engines.errors import TargetMissedError, UserError
from engines.files import Document, MadeBy
from engines.planning import BuildPlan, make_plan
from engines.planning.recipe import resolve_recipe
from engines.spec.gpu import known_gpus
from engines.spec.precision import PRECISIONS
from tests.facts import read_facts
from triton_repo.settings.engine_config import read_engine_config

FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "trtllm_interface.yaml")
HEAD = Document(made_by=MadeBy(command="test", version="0"))
SEARCHED = "h100-sxm-80gb"
MODELS = ("deepseek-r1-0528-qwen3-8b", "llama-3.1-8b")


def problems(argv: list[str], facts: dict[str, Any]) -> list[str]:
    """Return what is wrong with a command line: flags nobody knows, values of another kind, flags given twice."""
    program = next(Path(word).name for word in argv if Path(word).name in facts)
    flags: dict[str, Any] = facts[program]
    found, seen = [], set()
    words = argv[next(place for place, word in enumerate(argv) if word.endswith(program)) + 1 :]
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        else:
            found.append(f"{word}: no flag before it")
    for flag, *values in groups:
        if flag not in flags:
            older = flag in facts["refused"]
            found.append(f"{flag}: of an older version" if older else f"{flag}: unknown to {program}")
        else:
            found += _misfits(flag, values, flags[flag])
        if flag in seen:
            found.append(f"{flag}: given twice")
        seen.add(flag)
    return found


def _misfits(flag: str, values: list[str], kind: str | list[str]) -> list[str]:
    if kind == "list":
        return [] if values else [f"{flag}: needs a value"]
    if len(values) != (0 if kind == "switch" else 1):
        return [f"{flag}: takes {'no' if kind == 'switch' else 'one'} value, got {values}"]
    if isinstance(kind, list):
        return [] if values[0] in kind else [f"{flag}: {values[0]} is none of {kind}"]
    if kind in {"int", "float"}:
        try:
            {"int": int, "float": float}[kind](values[0])
        except ValueError:
            return [f"{flag}: {values[0]} is no {kind}"]
    return []


def plans() -> list[BuildPlan]:
    """Plan every precision on every GPU for two families, every KV cache, alone and split over four GPUs.

    On one GPU the batch is searched for; on the others it is stated, which changes the flags' values alone.
    """
    made = []
    axes = product(MODELS, PRECISIONS, known_gpus(), ("auto", "16bit", "int8", "fp8"), ((1, 1), (2, 2)))
    for model, precision, gpu, kv_format, (tensor, pipeline) in axes:
        flags = {
            "model": model,
            "precision": precision,
            "gpu": gpu,
            "kv_cache.format": kv_format,
            "parallel.tensor": tensor,
            "parallel.pipeline": pipeline,
        }
        if gpu != SEARCHED:
            flags |= {"limits.max_batch_size": 1}
        try:
            made.append(make_plan(resolve_recipe(None, flags), head=HEAD))
        except (UserError, TargetMissedError):
            continue  # refused before any work: no command is made
    return made


@pytest.fixture(scope="module")
def every_plan() -> list[BuildPlan]:
    """Plan them once."""
    return plans()


def value_of(argv: tuple[str, ...], flag: str) -> str:
    """Return the value after a flag."""
    return argv[argv.index(flag) + 1]


def test_every_flag_of_every_plan_is_one_that_tensorrt_llm_knows(every_plan: list[BuildPlan]) -> None:
    """A thousand plans: no unknown flag, no value of another kind."""
    assert len(every_plan) > 1000
    assert {plan.precision for plan in every_plan} == set(PRECISIONS) - {"fp32"}  # no engine is built in it
    for plan in every_plan:
        for command in (compile_command(plan), smoke_command(plan)):
            assert problems(list(command.argv), FACTS) == [], (plan.name, plan.kv_format)


@pytest.mark.parametrize("model", ["deepseek-r1-0528-qwen3-8b", "llama-3.1-8b", "gpt-j-6b"])
def test_the_converter_is_where_the_examples_keep_it(model: str) -> None:
    """The script that check-gpu compares us with is in its family's folder, and takes the flags."""
    plan = make_plan(resolve_recipe(None, {"model": model, "precision": "bf16"}), head=HEAD)
    argv = converter_command(plan).argv
    assert problems(list(argv), FACTS) == []
    folder = argv[1].removeprefix("{examples}/models/").removesuffix("/convert_checkpoint.py")
    assert folder == FACTS["converters"][plan.model.family]


def test_adapters_and_speculation_use_flags_it_knows() -> None:
    """LoRA modules as a list, the rank, the mode and the draft length."""
    flags = {
        "lora.target_modules": ("attn_q", "mlp_gate"),
        "speculative.mode": "lookahead_decoding",
        "speculative.lookahead": {"window_size": 7, "ngram_size": 7, "verification_set_size": 7},
    }
    plan = make_plan(resolve_recipe(None, flags), head=HEAD)
    argv = compile_command(plan).argv
    assert problems(list(argv), FACTS) == []
    assert argv[argv.index("--lora_target_modules") :][1:3] == ("attn_q", "mlp_gate")
    assert value_of(argv, "--max_draft_len") == str(FACTS["lookahead"]["max_draft_len"]["7,7,7"])
    smoke = smoke_command(plan).argv
    assert problems(list(smoke), FACTS) == []
    assert value_of(smoke, "--lookahead_config") == "[7,7,7]"


@pytest.mark.parametrize("case", FACTS["check_max_num_tokens"]["cases"])
def test_a_plan_clamps_as_the_builder_does(case: dict[str, int]) -> None:
    """What was asked for becomes, in the plan, what upstream's check_max_num_tokens made of it when it was run."""
    flags = {
        "limits.max_batch_size": case["max_batch_size"],
        "limits.max_seq_len": case["max_seq_len"],
        "limits.max_num_tokens": case["asked"],
        "workload.isl": 64,
        "workload.osl": 64,
        "workload.longest_isl": case["max_seq_len"] // 2,
    }
    plan = make_plan(resolve_recipe(None, flags), head=HEAD)
    assert plan.sizing.max_num_tokens == case["built"]
    assert any(notice.code == "builder-clamp" for notice in plan.notices) == (case["asked"] != case["built"])
    rows = {choice.name: choice for choice in plan.choices}
    assert f"max_num_tokens {case['built']}" in str(rows["builder.limits"].value)


def test_an_engines_speculation_is_read_as_the_flag_it_is(tmp_path: Path) -> None:
    """Each integer TensorRT-LLM writes is the decoding mode that serves it; the first two need none of their own."""
    served = {"MEDUSA": "medusa", "LOOKAHEAD_DECODING": "lookahead", "EXPLICIT_DRAFT_TOKENS": "redrafter"}
    for name, flag in FACTS["speculative_decoding_mode"].items():
        build = {"build_config": {"speculative_decoding_mode": flag}}
        (tmp_path / "config.json").write_text(json.dumps(build))
        expected = {**served, "EAGLE": "eagle"}.get(name)
        assert read_engine_config(tmp_path).speculation == expected, name


def test_drafts_raise_what_the_builder_raises() -> None:
    """With speculation the engine's own limits are longer and larger than asked for, and the plan's are those."""
    flags = {
        "limits.max_batch_size": 64,
        "limits.max_num_tokens": 2048,
        "speculative.mode": "lookahead_decoding",
        "speculative.lookahead": {"window_size": 7, "ngram_size": 7, "verification_set_size": 7},
    }
    plan = make_plan(resolve_recipe(None, flags), head=HEAD)
    assert plan.sizing.max_num_tokens == 64 * (83 + 1)
    assert plan.built_max_seq_len == plan.sizing.max_seq_len + 83


def test_nothing_is_left_to_be_deduced_or_switched_off_in_silence(every_plan: list[BuildPlan]) -> None:
    """The length is explicit, and the attention switches are what the builder would make of them anyway."""
    for plan in every_plan:
        argv = compile_command(plan).argv
        assert value_of(argv, "--max_seq_len") == str(plan.sizing.max_seq_len)
        assert "--opt_num_tokens" not in argv  # conflicts with multiple profiles
        paged, fp8 = value_of(argv, "--use_paged_context_fmha"), value_of(argv, "--use_fp8_context_fmha")
        algorithm = PRECISIONS[plan.precision].quant_algo
        eight_bit = algorithm in {"FP8", "W4A8_AWQ", "NVFP4"}
        if plan.kv_format == "int8" or (plan.kv_format == "fp8" and not eight_bit):
            assert paged == "disable", plan.name
            assert not plan.runtime.chunked_context
        assert (fp8 == "enable") == (plan.kv_format == "fp8" and eight_bit), plan.name
        gemm = {"FP8": "disable", "NVFP4": "nvfp4"}.get(str(algorithm))
        assert gemm is None or value_of(argv, "--gemm_plugin") == gemm
        if not plan.runtime.chunked_context:
            assert plan.sizing.max_num_tokens >= plan.max_input_len


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (["--max_batchsize", "8"], "unknown to trtllm-build"),
        (["--gemm_plugin", "fp9"], "fp9 is none of"),
        (["--strongly_typed"], "of an older version"),
        (["--monitor_memory", "yes"], "takes no value"),
        (["--max_batch_size", "many"], "many is no int"),
        (["--max_batch_size"], "takes one value"),
        (["--workers", "1", "--workers", "2"], "given twice"),
    ],
)
def test_the_check_can_fail(words: list[str], wrong: str) -> None:
    """A misspelt flag, a value it does not take, a flag of old: each is found."""
    (found,) = problems(["trtllm-build", *words], FACTS)
    assert wrong in found


def test_what_the_builder_changed_is_found() -> None:
    """An engine's own config.json that says less than the plan is a difference, by name and both values."""
    plan = make_plan(resolve_recipe(None, {}), head=HEAD)
    plugins = {"tokens_per_block": 32, "use_paged_context_fmha": True, "use_fp8_context_fmha": True}
    sizing = plan.sizing
    limits = {"max_batch_size": sizing.max_batch_size, "max_num_tokens": sizing.max_num_tokens, "max_beam_width": 1}
    build = {**limits, "max_seq_len": sizing.max_seq_len, "plugin_config": plugins}
    config = {"version": plan.tensorrt_llm, "build_config": build}
    assert engine_differences(plan, config) == []
    build["max_seq_len"] = 524_288
    assert engine_differences(plan, config) == [f"max_seq_len: planned {sizing.max_seq_len}, built 524288"]
    assert engine_differences(plan, {}) != []
