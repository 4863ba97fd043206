"""Whether what is served fits an engine, and an engine a machine: each decision where it turns."""

from __future__ import annotations

from dataclasses import replace

import pytest

from triton_repo.settings.engine_config import EngineConfig
from triton_repo.settings.engine_fit import Code, Served, misfits, speculation_of
from triton_repo.settings.machine_fit import Lack, Machine, lacks

BUILT = EngineConfig(
    ranks=2, max_num_tokens=4096, max_seq_len=8192, max_input_len=8000, paged_context=False, speculation="medusa",
    weight_streaming=False, lora=False,
)  # fmt: skip
FITS = Served(
    longest_prompt_tokens=4096, max_prompt_tokens=8000, kv_max_tokens=8192, decoding_mode="medusa",
    gpu_weights_ratio=1.0, gpu_device_ids="0,1;2,3", participant_ids="1,2", has_guided_backend=True,
    has_vocabulary=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"chunked_context": True}, "chunked-context-unpaged"),
        ({"kv_reuse": True}, "kv-reuse-unpaged"),
        ({"longest_prompt_tokens": 4097}, "whole-prompts"),
        ({"max_prompt_tokens": 8001}, "prompt-limit"),
        ({"kv_host_bytes": 1}, "host-cache"),
        ({"kv_max_tokens": 8191}, "kv-too-small"),
        ({"decoding_mode": "top_k_top_p"}, "decoding-mode"),
        ({"gpu_weights_ratio": 0.99}, "weight-streaming"),
        ({"prefetches_lora": True}, "lora"),
        ({"has_vocabulary": False}, "guided-pair"),
        ({"gpu_device_ids": "0,1;2"}, "gpu-groups"),
        ({"participant_ids": "1,2,3"}, "participant-groups"),
    ],
)
def test_one_step_past_each_limit_is_one_misfit(change: dict[str, object], code: Code) -> None:
    """At the limit everything fits; one step past it just this does not."""
    assert not list(misfits(FITS, BUILT))
    assert [each.code for each in misfits(replace(FITS, **change), BUILT)] == [code]  # type: ignore[arg-type]


def test_what_an_engine_does_not_state_is_not_held_against_it() -> None:
    """Of an unknown engine only what contradicts itself is a misfit."""
    served = Served(
        chunked_context=True, longest_prompt_tokens=1e9, max_prompt_tokens=1e9, kv_max_tokens=1, prefetches_lora=True,
        gpu_device_ids="0", kv_host_bytes=1, has_guided_backend=True,
    )  # fmt: skip
    assert {each.code for each in misfits(served, EngineConfig())} == {"host-cache", "guided-pair"}


def test_only_some_decoding_modes_need_an_engine_of_their_own() -> None:
    """A plain mode serves an engine built without speculation."""
    assert [speculation_of(mode) for mode in ("medusa", "lookahead", "top_k_top_p", "beam_search")] == [
        "medusa", "lookahead", None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("here", "lacking"),
    [
        (Machine("1.2.1", "9.0", 2), []),
        (Machine("1.2.1", "9.0", 1), ["gpus"]),
        (Machine("1.2.1", "8.0", 8), ["compute-capability"]),
        (Machine("1.1.0", "9.0", 2), ["version"]),
        (Machine(None, None, 0), ["compute-capability", "version"]),
    ],
)
def test_a_machine_lacks_what_the_engine_needs(here: Machine, lacking: list[Lack]) -> None:
    """What no container can bring comes first; a version that is not stated is not asked for."""
    assert list(lacks(here, compute_capability="9.0", ranks=2, built_by="1.2.1")) == lacking
    assert "version" not in list(lacks(here, compute_capability="9.0", ranks=2, built_by=None))
