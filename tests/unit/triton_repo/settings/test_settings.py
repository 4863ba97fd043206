"""Serving settings: what is derived from an engine's plan, what is refused, and how each is explained."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engines.errors import UserError
from engines.files import Document, MadeBy, write_json
from engines.manifest import EngineManifest, Parallel
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.cli import build_repo
from triton_repo.settings import ServingSettings, all_settings
from triton_repo.settings.engine_config import EngineConfig, read_engine_config
from triton_repo.settings.repository_manifest import Choice, read_repository
from triton_repo.settings.resolve import Resolved, given_in, resolve

HEAD = MadeBy(command="test", version="0")


def _planned(**flags: Any) -> EngineManifest:
    asked = resolve_recipe(None, flags)
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


@pytest.fixture(scope="module")
def emulated() -> EngineManifest:
    """Plan the default engine."""
    return _planned()


@pytest.fixture(scope="module")
def built(emulated: EngineManifest) -> EngineManifest:
    """Return the same, as if it had been compiled."""
    return emulated.model_copy(update={"kind": "built", "engine": "engine"})


@pytest.fixture(scope="module")
def unpaged() -> EngineManifest:
    """Plan an engine that loses paged context attention to its KV cache."""
    return _planned(**{"precision": "int8_sq", "gpu": "a100-sxm-80gb", "kv_cache.format": "int8"})


CONFIG = EngineConfig(
    version="1.2.1", ranks=1, max_batch_size=384, max_num_tokens=8192, max_seq_len=8192, max_input_len=4096,
    max_beam_width=1, tokens_per_block=32, paged_context=True, speculation=None, max_draft_len=0, gathers_context=False,
    gathers_generation=False, logits="fp32", weight_streaming=False, lora=False,
)  # fmt: skip


def _resolved(engine: EngineManifest, settings: dict[str, Any], config: EngineConfig | None = None) -> Resolved:
    given = dict.fromkeys(given_in(settings), "serving.yaml")
    return resolve(ServingSettings.model_validate(settings), given, engine, config)  # type: ignore[arg-type]


def _choice(resolved: Resolved, name: str) -> Choice:
    return next(choice for choice in resolved.choices if choice.name == name)


def test_nothing_is_left_open(emulated: EngineManifest, built: EngineManifest) -> None:
    """After resolution no setting is `auto`, and each has an origin; the plan's values are the engine's."""
    for engine in (emulated, built):
        resolved = _resolved(engine, {})
        assert all(setting.value != "auto" for setting in all_settings(resolved.settings))
        assert len(resolved.choices) == len(all_settings(ServingSettings()))
        assert _choice(resolved, "scheduling.policy").value == engine.runtime.scheduler_policy
        assert _choice(resolved, "limits.max_prompt_tokens").value == engine.limits.max_input_len
        assert _choice(resolved, "kv_cache.free_gpu_mem_fraction").origin == "derived"


def test_each_value_knows_who_chose_it(built: EngineManifest) -> None:
    """A value that was asked for, one of ours and one of upstream's are told apart."""
    resolved = _resolved(built, {"queue": {"max_queue_size": 8}})
    assert _choice(resolved, "queue.max_queue_size").origin == "serving.yaml"
    assert _choice(resolved, "runtime.stats_check_period_ms").origin == "upstream default"
    assert _choice(resolved, "scheduling.streaming").origin == "default"
    assert _choice(resolved, "text.bls_instances").value == 64


def test_an_engine_of_another_kind_gets_other_defaults(emulated: EngineManifest, built: EngineManifest) -> None:
    """Beside an emulated engine, processes share the CPU it runs on; a built one gets as many as it batches."""
    assert _resolved(emulated, {}).settings.text.bls_instances == 1
    assert _resolved(built, {}).settings.text.preprocessing_instances == 4


def test_what_has_no_effect_is_said(emulated: EngineManifest, built: EngineManifest) -> None:
    """An emulated engine names the settings it does not behave by; a built one has none but the time scale."""
    asked = {"runtime": {"cuda_graphs": True, "stats_check_period_ms": 50}, "emulation": {"time_scale": 2}}
    [notice] = _resolved(emulated, asked).notices
    assert "runtime.cuda_graphs" in notice.text
    assert "stats_check_period_ms" not in notice.text
    [notice] = _resolved(built, asked).notices
    assert notice.text.endswith("is not affected by emulation.time_scale")
    pytorch = emulated.model_copy(update={"backend": "pytorch"})
    [notice] = _resolved(pytorch, {"queue": {"max_queue_size": 3}}).notices
    assert "queue.max_queue_size" in notice.text


def test_several_gpus_are_told_how_to_start(built: EngineManifest) -> None:
    """Leader mode needs mpirun, orchestrator mode an environment variable."""
    split = built.model_copy(update={"parallel": Parallel(tensor=2, pipeline=1)})
    [notice] = _resolved(split, {}).notices
    assert "as 2 MPI ranks" in notice.text
    [notice] = _resolved(split, {"processes": {"mode": "orchestrator"}}).notices
    assert "which starts the workers" in notice.text


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "host cache without reuse": (
        {"kv_cache": {"host_bytes": 1 << 30, "reuse": False}}, "host_bytes 1073741824 without kv_cache.reuse"),
    "guided decoding without a vocabulary": ({"decoding": {"guided_backend": "xgrammar"}}, "belong together"),
    "a vocabulary without guided decoding": ({"decoding": {"tokenizer_info": "/x.json"}}, "belong together"),
    "lookahead without sizes": ({"decoding": {"mode": "lookahead"}}, "window_size, ngram_size"),
    "sizes without lookahead": ({"decoding": {"lookahead": {"window_size": 3}}}, "decoding.lookahead with"),
    "medusa choices without medusa": ({"decoding": {"medusa_choices": "{0},{1}"}}, "medusa_choices with"),
    "beams": ({"decoding": {"mode": "beam_search"}}, "beam width of 1"),
    "fast logits": ({"decoding": {"fast_logits": True}}, "orchestrator"),
    "priority": ({"queue": {"default_priority": 2}}, "not among 0 priority levels"),
    "graph cache": ({"runtime": {"cuda_graph_cache_size": 8}}, "without runtime.cuda_graphs"),
    "no spawning without an orchestrator": ({"processes": {"spawn_processes": False}}, "orchestrator mode"),
    "no spawning without ranks": (
        {"processes": {"mode": "orchestrator", "spawn_processes": False}}, "participant_ids"),
    "GPUs": ({"processes": {"gpu_device_ids": "0,1"}}, "the engine has 1 rank "),
    "nodes": ({"processes": {"num_nodes": 2}}, "2 for 1 ranks"),
    "detokenizers": ({"text": {"postprocessing_instances": 2}}, "tokens of one character"),
    "accumulating": ({"text": {"accumulate_tokens": True}, "scheduling": {"streaming": False}}, "sent in parts"),
    "prompt past the engine": ({"limits": {"max_prompt_tokens": 5000}}, "max_input_len 4096"),
    "reply past the engine": ({"limits": {"max_output_tokens": 9000}}, "max_seq_len 8192"),
    "cache below a sequence": ({"kv_cache": {"max_tokens": 100}}, "does not fit one sequence of 8192"),
    "sink without window": ({"kv_cache": {"sink_tokens": 4}}, "no sliding window"),
    "adapters": ({"lora": {"optimal_adapter_size": 65}}, "exceeds lora.max_adapter_size"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_each_contradiction_is_one_clear_error(built: EngineManifest, case: str) -> None:
    """Settings that cannot be are refused before a file is written, with one thing to try."""
    settings, said = REFUSED[case]
    with pytest.raises(UserError) as refused:
        _resolved(built, settings)
    assert said in refused.value.message
    assert refused.value.hint


OF_THE_ENGINE: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"runtime": {"gpu_weights_percent": 0.5}}, "without weight streaming"),
    "adapters": ({"lora": {"prefetch_dir": "/a"}}, "without LoRA"),
    "speculation": ({"decoding": {"mode": "medusa"}}, "no speculation"),
}


@pytest.mark.parametrize("case", OF_THE_ENGINE)
def test_the_engines_own_config_has_a_say(built: EngineManifest, case: str) -> None:
    """What the engine was not built for is refused where its config.json is here to tell."""
    settings, said = OF_THE_ENGINE[case]
    with pytest.raises(UserError, match=said):
        _resolved(built, settings, CONFIG)


def test_chunked_context_needs_paged_attention(unpaged: EngineManifest) -> None:
    """An engine without paged context attention is served without chunks and reuse, and refuses both."""
    assert not _resolved(unpaged, {}).settings.scheduling.chunked_context
    assert not _resolved(unpaged, {}).settings.kv_cache.reuse
    for settings in ({"scheduling": {"chunked_context": True}}, {"kv_cache": {"reuse": True}}):
        with pytest.raises(UserError, match="built without paged context attention"):
            _resolved(unpaged, settings)


def test_whole_prompts_must_fit_an_iteration(built: EngineManifest) -> None:
    """Chunking can be turned off only where the longest prompt fits an iteration."""
    small = built.model_copy(update={"limits": built.limits.model_copy(update={"max_num_tokens": 2048})})
    with pytest.raises(UserError, match="does not fit the longest prompt"):
        _resolved(small, {"scheduling": {"chunked_context": False}})
    short = {"scheduling": {"chunked_context": False}, "limits": {"max_prompt_tokens": 2048}}
    assert not _resolved(small, short).settings.scheduling.chunked_context


def test_lookahead_sizes_must_draft_what_the_engine_was_built_for(built: EngineManifest) -> None:
    """An engine of 83 draft tokens serves windows 7, 7, 7 and no others."""
    config = replace(CONFIG, speculation="lookahead", max_draft_len=83)
    sizes = {"window_size": 7, "ngram_size": 7, "verification_set_size": 7}
    wanted = {"decoding": {"mode": "lookahead", "lookahead": sizes}}
    assert _resolved(built, wanted, config).settings.decoding.lookahead.window_size == 7
    sizes["ngram_size"] = 5
    with pytest.raises(UserError, match=r"drafts 55 tokens per step; .* built for 83"):
        _resolved(built, wanted, config)


def test_an_engines_config_is_read_as_it_is(tmp_path: Path) -> None:
    """Every fact comes from where TensorRT-LLM writes it; what is not there is not made up."""
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "version": "1.2.1",
                "pretrained_config": {"logits_dtype": "float16", "mapping": {"world_size": 2}},
                "build_config": {
                    "max_batch_size": 8,
                    "speculative_decoding_mode": 8,  # an integer flag, as TensorRT-LLM writes it
                    "max_draft_len": 83,
                    "plugin_config": {"use_paged_context_fmha": False, "tokens_per_block": 64},
                },
            }
        )
    )
    found = read_engine_config(tmp_path)
    assert (found.version, found.ranks, found.max_batch_size, found.logits) == ("1.2.1", 2, 8, "fp16")
    assert found.max_draft_len == 83
    assert (found.speculation, found.paged_context, found.tokens_per_block) == ("lookahead", False, 64)
    assert (found.max_seq_len, found.gathers_context, found.lora) == (None, None, None)


@pytest.mark.parametrize("text", ["[1]", "{", "[" * 100_000])
def test_a_config_that_is_none_is_one_clear_error(tmp_path: Path, text: str) -> None:
    """A list, half a file and brackets without end end in a sentence, not in a traceback."""
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        read_engine_config(tmp_path)


@pytest.fixture
def engine(emulated: EngineManifest, tmp_path: Path) -> Path:
    """Return an engine's folder."""
    (tmp_path / "engine").mkdir()
    write_json(tmp_path / "engine" / "manifest.json", emulated)
    return tmp_path / "engine"


def _build(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        build_repo.build_repo.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_explain_names_every_setting(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each setting with its value, its origin and where it goes: flags beat the YAML, the YAML beats the plan."""
    (tmp_path / "serving.yaml").write_text("queue: {max_queue_size: 5, delay_us: 7}\n")
    asked = ["--serving", tmp_path / "serving.yaml", "--set", "queue.max_queue_size=6", "--explain"]
    assert _build(engine, *asked) == 0
    said = capsys.readouterr().out.splitlines()
    lines = {head.split()[0]: head + place for head, place in pairwise(said)}
    assert {setting.name for setting in all_settings(ServingSettings())} <= lines.keys()
    assert lines["queue.max_queue_size"].split()[1:4] == ["=", "6", "(flag)"]
    assert lines["queue.delay_us"].split()[1:4] == ["=", "7", "(serving.yaml)"]
    assert "tensorrt_llm: batch_scheduler_policy" in lines["scheduling.policy"]
    assert not (tmp_path / "artifacts").exists()
    assert _build(engine, *asked, "--json") == 0
    settings = {choice["name"]: choice for choice in json.loads(capsys.readouterr().out)["settings"]}
    assert settings["queue.max_queue_size"]["origin"] == "flag"


def test_a_relayed_engine_is_explained_as_one(engine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cache and scheduler are the server's own, which need not run: its settings have no effect, the queue's do."""
    asked = ["--engine-url", "http://127.0.0.1:9/", "--set", "kv_cache.max_tokens=9000", "--max-queue-size", 4]
    assert _build(engine, *asked, "--explain", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    effects = {choice["name"]: choice["effect"] for choice in document["settings"]}
    assert (effects["kv_cache.max_tokens"], effects["scheduling.policy"]) == ("none", "none")
    assert (effects["queue.max_queue_size"], effects["emulation.time_scale"]) == ("yes", "none")
    notices = {notice["code"]: notice["text"] for notice in document["notices"]}
    assert notices["without-effect"] == "a relayed engine is not affected by kv_cache.max_tokens"
    assert "relayed to http://127.0.0.1:9: " in notices["relayed"]


def test_what_cannot_be_relayed_is_not_explained(
    built: EngineManifest, engine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A malformed URL, and an engine that is built, are refused as they would be without --explain."""
    assert _build(engine, "--engine-url", "127.0.0.1:9", "--explain") == 2
    assert "not of the form http://HOST:PORT" in capsys.readouterr().err
    write_json(engine / "manifest.json", built)
    assert _build(engine, "--engine-url", "http://127.0.0.1:9", "--explain") == 2
    assert "--engine-url requires an emulated engine" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("queue.max_queue_sise=6", "did you mean 'queue.max_queue_size'?"),
        ("queue.max_queue_size", "expected NAME=VALUE"),
        ("queue.max_queue_size=-1", "queue.max_queue_size"),
        ("queue.max_queue_size=[1", "not valid YAML"),
        ("processes.gpu_device_ids=0;;1", "processes.gpu_device_ids"),
    ],
)
def test_a_wrong_assignment_is_one_clear_error(
    engine: Path, capsys: pytest.CaptureFixture[str], assignment: str, said: str
) -> None:
    """A setting that is none, and a value that cannot be, name themselves."""
    assert _build(engine, "--set", assignment, "--explain") == 2
    assert said in capsys.readouterr().err


def test_the_dry_run_is_a_serving_yaml(engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What --dry-run prints can be given back, and changes nothing."""
    Tokenizer(WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    dry_run = ("--dry-run", "--tokenizer", tmp_path)
    assert _build(engine, *dry_run) == 0
    said = capsys.readouterr().out
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(json.loads(said)))
    assert _build(engine, "--serving", tmp_path / "again.yaml", *dry_run) == 0
    assert capsys.readouterr().out == said


@pytest.mark.parametrize(
    ("flags", "said"), [((), "the engine has no tokenizer"), (("--tokenizer", "missing"), "no such folder")]
)
def test_the_dry_run_refuses_a_tokenizer_that_the_build_would_refuse(
    engine: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], said: str
) -> None:
    """Both check the same one: the given one, or the engine's own."""
    assert _build(engine, "--dry-run", *flags) == 1
    assert said in capsys.readouterr().err


def test_an_engine_folder_is_no_repository(emulated: EngineManifest, tmp_path: Path) -> None:
    """Both have a `manifest.json`; the error says what the folder is, and what makes a repository of it."""
    write_json(tmp_path / "manifest.json", emulated)
    with pytest.raises(UserError, match="an engine folder, not a model repository") as caught:
        read_repository(tmp_path)
    assert f"build-repo {tmp_path}" in (caught.value.hint or "")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(UserError, match="missing key") as damaged:
        read_repository(tmp_path)
    assert "rebuild the repository" in (damaged.value.hint or "")
