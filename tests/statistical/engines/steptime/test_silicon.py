"""Step times from measured kernels: looked up, interpolated, derived where there are none, and said so."""

from __future__ import annotations

import pytest

from engines.errors import MissingError
from engines.files import Document, MadeBy
from engines.manifest import StepTimeChoice
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.spec.engine_profile import WIDE_PROMPTS, engine_profile_named
from engines.spec.gpu import gpu_named
from engines.spec.model import model_named
from engines.spec.placed_model import PlacedModel
from engines.spec.precision import KvFormat, precision_named
from engines.steptime.shape import StepShape, attended_tokens

pytest.importorskip("aiconfigurator_core", reason="aiconfigurator-core is not installed")

from engines.steptime.roofline import Roofline
from engines.steptime.silicon import KNOT_TOKENS, SYSTEMS, Silicon
from engines.steptime.source import favoured_source, step_time_of

MODEL = model_named("mistral-7b")
QWEN = model_named("qwen3-8b")
H100, A100 = gpu_named("h100-sxm-80gb"), gpu_named("a100-sxm-80gb")


def decode(sequences: int, context: int) -> StepShape:
    """Return a step in which all decode with the same context."""
    return StepShape(decode_sequences=sequences, decode_context_tokens=sequences * context)


def prompt(tokens: int, cached: int = 0) -> StepShape:
    """Return a step of one prompt, or a chunk of it."""
    return StepShape(
        prefill_sequences=1, prefill_tokens=tokens, prefill_attended_tokens=attended_tokens(tokens, cached)
    )


@pytest.mark.parametrize("gpu_name", sorted(SYSTEMS))
def test_no_step_is_faster_than_the_memory_allows(gpu_name: str) -> None:
    """Alone, a token costs no less than reading every weight at the data sheet's bandwidth."""
    gpu = gpu_named(gpu_name)
    floor_s = MODEL.read_bytes_per_step(precision_named("bf16")) / gpu.bandwidth_bytes_per_s
    step_s = Silicon(PlacedModel(MODEL, gpu, "bf16", "16bit")).seconds(decode(1, 100))
    assert floor_s < step_s < 3 * floor_s


@pytest.mark.parametrize("kv_format", ["16bit", "fp8"])
def test_the_decode_line_goes_through_every_step_up_to_its_end(kv_format: KvFormat) -> None:
    """Within one piece the line gives what the step gives; past its end there is another piece that joins it."""
    times = Silicon(PlacedModel(MODEL, H100, "fp8", kv_format))
    line = times.decode_line(7, 7 * 500)
    for context in range(500, KNOT_TOKENS * 4, 3):
        tokens = 7 * context
        assert tokens <= line.valid_to_context_tokens
        expected = times.seconds(StepShape(decode_sequences=7, decode_context_tokens=tokens))
        assert line.base_s + line.per_context_token_s * tokens == pytest.approx(expected, rel=1e-9)
    end = int(line.valid_to_context_tokens)
    following = times.decode_line(7, end)
    assert following.base_s + following.per_context_token_s * end == pytest.approx(
        line.base_s + line.per_context_token_s * end, rel=1e-9
    )


def test_cost_adds_up_and_grows_with_the_work() -> None:
    """More sequences, longer contexts, longer prompts and longer pasts each take longer."""
    times = Silicon(PlacedModel(MODEL, H100, "bf16", "16bit"))
    shape = decode(16, 700)._replace(prefill_sequences=1, prefill_tokens=512, prefill_attended_tokens=131_328)
    assert times.cost(shape).seconds == pytest.approx(times.seconds(shape))
    for less, more in (
        (decode(8, 1000), decode(64, 1000)),
        (decode(32, 500), decode(32, 4000)),
        (prompt(512), prompt(2048)),
        (prompt(512), prompt(512, cached=8000)),
    ):
        assert times.seconds(less) < times.seconds(more)


def test_a_chunk_is_looked_up_by_what_it_attends_to() -> None:
    """Two halves of a prompt attend to what the whole does, and cost at least as much."""
    times = Silicon(PlacedModel(MODEL, H100, "fp8", "fp8"))
    halves = times.seconds(prompt(2048)) + times.seconds(prompt(2048, cached=2048))
    whole = times.seconds(prompt(4096))
    assert whole <= halves < 1.3 * whole


def test_formats_without_tables_are_derived_and_said() -> None:
    """INT8 on H100 takes what it brought on an A100; an A100's own table needs nothing derived."""
    derived = Silicon(PlacedModel(MODEL, H100, "int8_sq", "16bit"))
    assert derived.derived == ["int8_sq on h100-sxm-80gb: its 16-bit kernels times the ratio of int8_sq on an A100"]
    assert Silicon(PlacedModel(MODEL, A100, "int8_sq", "16bit")).derived == []
    plain = Silicon(PlacedModel(MODEL, H100, "bf16", "16bit"))
    assert derived.seconds(decode(1, 100)) < 0.75 * plain.seconds(decode(1, 100))
    cache = Silicon(PlacedModel(MODEL, A100, "bf16", "int8"))
    assert cache.derived == ["INT8 KV cache: read as a 16-bit cache of half the length"]
    halved = Silicon(PlacedModel(MODEL, A100, "bf16", "16bit")).cost(decode(64, 1024)).kv_read_s
    assert cache.cost(decode(64, 2048)).kv_read_s == pytest.approx(halved)


def test_kernels_are_those_of_the_framework_that_runs_them() -> None:
    """Those of vLLM differ by little in BF16; its FP8 scales the activations of each token, which takes time."""
    for precision, least, most in (("bf16", 0.95, 1.05), ("fp8", 1.1, 1.4)):
        placed = PlacedModel(MODEL, H100, precision, "16bit")
        theirs = Silicon(placed, kernels="vllm").seconds(prompt(8192))
        assert least < theirs / Silicon(placed).seconds(prompt(8192)) < most
    with pytest.raises(MissingError, match="no measured vllm kernels"):
        Silicon(PlacedModel(MODEL, A100, "int8_sq", "16bit"), kernels="vllm")


def test_attention_of_prompts_in_16_bits_is_that_with_a_16_bit_cache() -> None:
    """With an FP8 cache and such prompts, decoding reads that cache; nothing changes where the cache has 16 bits."""
    small, large = (PlacedModel(MODEL, H100, "fp8", kv_format) for kv_format in ("fp8", "16bit"))
    wide, narrow, whole = Silicon(small, kernels=WIDE_PROMPTS), Silicon(small), Silicon(large)
    assert wide.cost(prompt(7000)).attention_s == whole.cost(prompt(7000)).attention_s
    assert 1.2 < wide.cost(prompt(7000)).attention_s / narrow.cost(prompt(7000)).attention_s < 1.5
    assert wide.cost(decode(64, 2048)) == narrow.cost(decode(64, 2048))
    assert Silicon(large, kernels=WIDE_PROMPTS).cost(prompt(7000)) == whole.cost(prompt(7000))


def test_an_engine_runs_the_kernels_of_its_profile() -> None:
    """The choice of a profile's source looks its kernels up, and a plan of an unknown format says why it does not."""
    placed = PlacedModel(MODEL, H100, "bf16", "16bit")
    profile = engine_profile_named("vllm")
    choice = StepTimeChoice.expected("silicon", profile, placed)
    assert (choice.kernels, choice.profile) == ("vllm", "vllm-v1-async")
    alone = step_time_of(choice.model_copy(update={"factors": None, "host": None}), placed)
    assert alone.seconds(prompt(512)) == Silicon(placed, kernels="vllm").seconds(prompt(512))
    source, why = favoured_source(PlacedModel(MODEL, A100, "int8_sq", "16bit"), "vllm")
    assert source == "roofline"
    assert "no measured vllm kernels" in why


def test_what_has_no_table_is_refused() -> None:
    """A GPU or format nobody measured is named, and the roofline offered."""
    with pytest.raises(MissingError, match="no measured step times for h100-nvl-94gb"):
        Silicon(PlacedModel(MODEL, gpu_named("h100-nvl-94gb"), "fp8", "fp8"))
    with pytest.raises(MissingError, match="no measured step times for w4a8_awq"):
        Silicon(PlacedModel(MODEL, H100, "w4a8_awq", "fp8"))
    with pytest.raises(MissingError, match="no measured step times for fp8 on a100"):
        Silicon(PlacedModel(MODEL, A100, "fp8", "16bit"))
    with pytest.raises(MissingError, match=r"no measured trtllm kernels for gpt-j-6b .*head size 256"):
        Silicon(PlacedModel(model_named("gpt-j-6b"), A100, "fp16", "16bit"))


def test_a_plan_by_measured_kernels_says_what_was_derived() -> None:
    """The notice goes into plan and manifest; the search used the same tables."""
    asked = resolve_recipe(None, {"precision": "int8_wo", "step_time": "silicon"})
    plan = make_plan(asked, head=Document(made_by=MadeBy(command="test", version="0")))
    assert any(notice.code == "step-time-derived" for notice in plan.notices)
    asked = resolve_recipe(None, {"precision": "int8_wo", "step_time": "roofline"})
    roofline = make_plan(asked, head=Document(made_by=MadeBy(command="t", version="0")))
    assert plan.predicted.single_itl_s != roofline.predicted.single_itl_s


def test_normalized_queries_and_keys_cost_their_bytes() -> None:
    """Qwen3's heads are read and written once more than Llama's: 36 layers of 5,120 elements, 0.22 us a token."""
    plain = QWEN.model_copy(update={"qk_norm": False})
    for times in (Silicon, Roofline):
        with_norm, without = (
            times(PlacedModel(model, H100, "bf16", "16bit")).cost(prompt(4096)) for model in (QWEN, plain)
        )
        assert with_norm.activations_s - without.activations_s == pytest.approx(4096 * 0.22e-6, rel=0.1)
        assert with_norm.gemm_s == pytest.approx(without.gemm_s, rel=1e-6)  # the norms' own weights are read, too
