"""The PyTorch backend's files, version by version, held to the argument names that each version's own files list."""

from __future__ import annotations

import shlex
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from engines.build.llmapi import serving_files
from engines.errors import UserError
from engines.files import Document, MadeBy
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from engines.spec.llm_api import LLM_API_VERSIONS, LlmApiVersion, llm_api, unknown_arguments
from tests.facts import read_facts
from triton_repo.interface.llmapi import llm_document, llmapi_inputs, trtllm_serve_document
from triton_repo.settings import ServingSettings, resolve

FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "llm_api.yaml")
NESTED = tuple(name for name in FACTS["versions"]["1.2"] if name.endswith("_config"))
HEAD = Document(made_by=MadeBy(command="test", version="0"))
SPECULATION: dict[str, dict[str, Any]] = {
    "none": {},
    "eagle3": {"speculative.draft_model": "nvidia/EAGLE3", "speculative.max_draft_len": 3},
    "ngram": {"speculative.max_draft_len": 4},
    "draft_target": {"speculative.draft_model": "/models/draft", "speculative.max_draft_len": 4},
}
LORA = {"lora.target_modules": ("attn_q", "attn_v"), "lora.max_loras": 4, "lora.max_cpu_loras": 8}
SPLIT = {"disaggregation.context_servers": 1, "disaggregation.generation_servers": 2}


def manifest_of(version: str, **flags: Any) -> EngineManifest:
    """Plan for the PyTorch backend; flags by dotted key."""
    asked = resolve_recipe(None, {"backend": "pytorch", "trtllm_version": version, **flags})
    return emulated_manifest(make_plan(asked, head=HEAD), asked.recipe)


def facts_of(version: str) -> dict[str, set[str]]:
    """Return the names a version knows, by class."""
    known = dict(FACTS["versions"][version])
    if known["arguments"] == "same":
        known["arguments"] = FACTS["versions"]["1.2"]["arguments"]
    return {kind: set(known[kind]) for kind in ("arguments", *NESTED)}


def strangers(document: dict[str, Any], version: str) -> list[str]:
    """Return the dotted names in a document that its version's files do not list."""
    known = facts_of(version)
    found = [name for name in document if name not in known["arguments"] | {"triton_config"}]
    for outer in NESTED:
        found += [f"{outer}.{name}" for name in document.get(outer, {}) if name not in known[outer]]
    return found


def documents(version: str, **flags: Any) -> dict[str, dict[str, Any]]:
    """Return the YAML files of a plan that hold arguments, parsed."""
    files = serving_files(manifest_of(version, **flags), name="engine")
    return {
        name: yaml.safe_load(text) for name, text in files.items() if name.endswith(".yaml") and name != "disagg.yaml"
    }


@pytest.mark.parametrize("version", LLM_API_VERSIONS)
def test_every_key_we_list_is_one_the_version_knows(version: LlmApiVersion) -> None:
    """Our own tables say nothing that upstream's files do not; what they say is gone is in none of them."""
    facts, keys = facts_of(version), llm_api(version).keys
    for kind in facts:
        assert getattr(keys, kind) <= facts[kind], kind
    gone = FACTS["versions"][version]["never"]
    assert gone
    for dotted in gone:
        outer, name = dotted.split(".")
        assert unknown_arguments({outer: {name: 1}}, version) == [dotted]


@pytest.mark.parametrize("version", LLM_API_VERSIONS)
def test_every_file_has_known_keys_only(version: str) -> None:
    """Precisions, adapters, speculation, split servers, graph sizes: no file has a key its version refuses."""
    axes = product(("fp8", "bf16", "int4_awq"), SPECULATION, (False, True), (False, True), (False, True))
    for precision, method, adapters, split, sizes in axes:
        flags = {"precision": precision, "speculative.mode": method, **SPECULATION[method]}
        flags |= LORA if adapters else {}
        flags |= SPLIT if split else {}
        flags |= {"cuda_graphs.batch_sizes": (1, 8, 32)} if sizes else {}
        made = documents(version, **flags)
        assert len(made) == (4 if split else 2)
        for name, document in made.items():
            assert strangers(document, version) == [], (name, flags)


@pytest.mark.parametrize("version", LLM_API_VERSIONS)
def test_values_are_among_those_the_version_takes(version: str) -> None:
    """Decoding types, cache types, policies and transfers are spelt as the version spells them."""
    known = FACTS["versions"][version]
    for method in ("eagle3", "ngram", "draft_target"):
        made = documents(version, **{"speculative.mode": method, **SPECULATION[method], **SPLIT})
        for name in ("trtllm-serve.yaml", "context.yaml", "generation.yaml", "model.yaml"):
            assert made[name]["speculative_config"]["decoding_type"] in known["decoding_types"]
            assert made[name]["kv_cache_config"]["dtype"] in known["kv_dtypes"]
            assert made[name]["scheduler_config"]["capacity_scheduler_policy"] in FACTS["policies"]
        assert made["context.yaml"]["cache_transceiver_config"]["backend"] in FACTS["transfers"]


@pytest.mark.parametrize("version", LLM_API_VERSIONS)
def test_what_is_served_from_a_repository_has_known_keys_only(version: str) -> None:
    """Serving settings reach Triton's model.yaml and trtllm-serve's YAML in the version's names too."""
    engine = manifest_of(version, **LORA)
    asked = ServingSettings.model_validate(
        {
            "kv_cache": {"max_tokens": 20000, "host_bytes": 2**30, "sink_tokens": 4, "max_attention_window": [4096]},
            "decoding": {"guided_backend": "xgrammar"},
            "llmapi": {"postprocess_workers": 2},
        }
    )
    settings = resolve(asked, {}, engine).settings
    served = trtllm_serve_document(engine, settings)
    assert strangers(served, version) == []
    assert served["kv_cache_config"]["host_cache_size"] == 2**30
    document = llm_document(engine, settings, checkpoint="/models/checkpoint", tokenizer="/models/tokenizer")
    assert strangers(document, version) == []


@pytest.mark.parametrize(("version", "is_known"), [("1.2", True), ("1.3", False), ("1.4rc", False)])
def test_a_setting_that_a_version_lost_is_refused(version: str, *, is_known: bool) -> None:
    """`onboard_blocks: false` is written for 1.2; later versions refuse the key, and so do we, before any work."""
    engine = manifest_of(version)
    asked = ServingSettings.model_validate({"kv_cache": {"host_bytes": 2**30, "onboard_blocks": False}})
    settings = resolve(asked, {}, engine).settings
    if is_known:
        assert trtllm_serve_document(engine, settings)["kv_cache_config"]["onboard_blocks"] is False
        return
    with pytest.raises(UserError, match=rf"TensorRT-LLM {version} does not know kv_cache_config.onboard_blocks"):
        trtllm_serve_document(engine, settings)


@pytest.mark.parametrize("version", LLM_API_VERSIONS)
def test_graph_sizes_and_their_largest_are_never_given_together(version: str) -> None:
    """TensorRT-LLM refuses both; sizes asked for stand alone, else the largest batch does."""
    alone = documents(version, **{"cuda_graphs.batch_sizes": (8, 1, 8)})["trtllm-serve.yaml"]["cuda_graph_config"]
    assert alone == {"batch_sizes": [1, 8], "enable_padding": True}
    largest = documents(version, **{"limits.max_batch_size": 64})["trtllm-serve.yaml"]["cuda_graph_config"]
    assert largest == {"max_batch_size": 64, "enable_padding": True}


def command_lines(version: str, **flags: Any) -> list[str]:
    """Return the lines of commands.sh that start something."""
    text = serving_files(manifest_of(version, **flags), name="engine")["commands.sh"]
    return [line for line in text.splitlines() if "trtllm-serve" in line and not line.startswith("#")]


@pytest.mark.parametrize("version", LLM_API_VERSIONS)
def test_the_command_line_is_the_golden_one(version: str) -> None:
    """One server: everything but address and model stands in the YAML."""
    assert command_lines(version) == [
        'exec trtllm-serve serve checkpoint --host "${HOST:-127.0.0.1}" --port "${PORT:-8000}" '
        "--config trtllm-serve.yaml"
    ]
    named = command_lines(version, published_checkpoint="nvidia/Qwen3-8B-FP8")
    assert named[0].startswith("exec trtllm-serve serve nvidia/Qwen3-8B-FP8 --host ")


def test_split_servers_have_golden_command_lines() -> None:
    """Each server has its GPUs and its role's YAML, and the router waits for all of them."""
    serve = "trtllm-serve serve checkpoint --host localhost"
    assert command_lines("1.2", **SPLIT, **{"parallel.tensor": 2}) == [
        f"CUDA_VISIBLE_DEVICES=0,1 {serve} --port 8001 --config context.yaml &",
        f"CUDA_VISIBLE_DEVICES=2,3 {serve} --port 8002 --config generation.yaml &",
        f"CUDA_VISIBLE_DEVICES=4,5 {serve} --port 8003 --config generation.yaml &",
        "trtllm-serve disaggregated -c disagg.yaml -t 3600 -r 3600",
    ]


@pytest.mark.parametrize("version", LLM_API_VERSIONS)
def test_every_flag_is_one_trtllm_serve_has(version: str) -> None:
    """Both of its commands are called with flags their reference lists."""
    for line in command_lines(version) + command_lines(version, **SPLIT):
        words = shlex.split(line)
        words = words[words.index("trtllm-serve") + 1 :]
        flags = [word for word in words if word.startswith("-")]
        assert flags
        assert set(flags) <= set(FACTS["commands"][words[0]]), line


def test_the_routers_file_is_what_upstream_reads() -> None:
    """As many addresses as instances, none twice, and no key that would be taken for a server's argument."""
    router = yaml.safe_load(serving_files(manifest_of("1.4rc", **SPLIT), name="engine")["disagg.yaml"])
    assert set(router) <= set(FACTS["router"]["top"])
    both = [router["context_servers"], router["generation_servers"]]
    assert all(set(servers) <= set(FACTS["router"]["servers"]) for servers in both)
    assert [len(servers["urls"]) == servers["num_instances"] for servers in both] == [True, True]
    urls = [url for servers in both for url in servers["urls"]]
    assert len(set(urls)) == len(urls) == 3
    assert f"{router['hostname']}:{router['port']}" not in urls


def test_the_two_kinds_of_server_differ_in_the_overlap_scheduler_alone() -> None:
    """Context servers have none; both hold the longest prompt in the buffer between them."""
    made = documents("1.3", **SPLIT)
    context, generation = made["context.yaml"], made["generation.yaml"]
    assert context.pop("disable_overlap_scheduler") is True
    assert context == generation
    buffer = generation["cache_transceiver_config"]["max_tokens_in_buffer"]
    assert buffer == 4096  # the recipe's longest prompt, in whole blocks


@pytest.mark.parametrize(("version", "inputs"), [("1.2", 17), ("1.3", 21), ("1.4rc", 21)])
def test_an_adapter_can_be_chosen_where_the_version_reads_it(version: str, inputs: int) -> None:
    """Triton's model has lora_id and its siblings from 1.3 on (PR 14079), and only where adapters are accepted."""
    assert len(llmapi_inputs(manifest_of(version, **LORA))) == inputs
    assert len(llmapi_inputs(manifest_of(version))) == 17


def test_metrics_are_switched_on_for_trtllm_serve() -> None:
    """Without the one there is no Prometheus page, without the other its gauges stand still."""
    for version in LLM_API_VERSIONS:
        served = documents(version)["trtllm-serve.yaml"]
        assert served["return_perf_metrics"] is served["enable_iter_perf_stats"] is True
        assert not {"model", "tokenizer", "triton_config"} & served.keys()
