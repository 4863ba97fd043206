"""The rendered repository: what Triton's own schema and TensorRT-LLM's tensors say of it, and of every damage to it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from engines.errors import CommandError, UserError
from engines.files import Document, MadeBy, write_json
from engines.manifest import EngineManifest
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.audit.require_valid import check_repository, read_config
from triton_repo.repository.render import Server, environment, fill, render_repository
from triton_repo.settings.repository_manifest import MODELS, ServingSettings, read_repository

HEAD = MadeBy(command="test", version="0")


@pytest.fixture(scope="module")
def manifest() -> EngineManifest:
    """Plan the default engine."""
    asked = resolve_recipe(None, {})
    return emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a byte-level tokenizer of a few tokens."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = Tokenizer(models.BPE({letter: index for index, letter in enumerate("abc")}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder


def _render(
    folder: Path, manifest: EngineManifest, tokenizer: Path | None, server: Server = "triton", **settings: object
) -> Path:
    engine = folder / "engine"
    engine.mkdir(parents=True)
    write_json(engine / "manifest.json", manifest)
    out = folder / "repository"
    render_repository(
        engine,
        out,
        settings=ServingSettings.model_validate(settings),
        tokenizer=tokenizer,
        served_at=None,
        force=False,
        made_by=HEAD,
        server=server,
    )
    return out


@pytest.fixture(scope="module")
def rendered(manifest: EngineManifest, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Render the emulated engine's repository."""
    return _render(tmp_path_factory.mktemp("rendered"), manifest, tokenizer, queue={"max_queue_size": 7})


@pytest.fixture
def repository(rendered: Path, tmp_path: Path) -> Path:
    """Return a copy to damage."""
    copy = tmp_path / "repository"
    shutil.copytree(rendered, copy)
    return copy


def test_every_model_parses_into_tritons_own_schema(rendered: Path, manifest: EngineManifest) -> None:
    """Names, batch limits, decoupling and the queue's size are the manifest's and the settings'."""
    for model in MODELS:
        config = read_config(rendered / model / "config.pbtxt")
        assert config.name == model
        assert config.max_batch_size == manifest.limits.max_batch_size
        assert config.model_transaction_policy.decoupled == (model in {"tensorrt_llm", "tensorrt_llm_bls"})
    engine = read_config(rendered / "tensorrt_llm" / "config.pbtxt")
    assert engine.dynamic_batching.default_queue_policy.max_queue_size == 7
    assert engine.backend == "python"
    assert engine.parameters["emulated"].string_value == "true"


def test_a_built_engine_is_served_by_tensorrt_llms_backend(
    manifest: EngineManifest, tokenizer: Path, tmp_path: Path
) -> None:
    """Only the `tensorrt_llm` model differs: its backend, its engine's path, and no emulator in the folder."""
    built = manifest.model_copy(update={"kind": "built", "engine": "engine"})
    folder = _render(tmp_path, built, tokenizer)
    config = read_config(folder / "tensorrt_llm" / "config.pbtxt")
    assert config.backend == "tensorrtllm"
    assert config.parameters["gpt_model_path"].string_value == str(tmp_path / "engine" / "engine")
    assert config.parameters["gpt_model_type"].string_value == "inflight_fused_batching"
    assert "emulated" not in config.parameters
    assert not list((folder / "tensorrt_llm" / "1").iterdir())


def test_a_checkpoint_is_no_engine(manifest: EngineManifest, tokenizer: Path, tmp_path: Path) -> None:
    """What was not compiled is refused, and nothing is written."""
    with pytest.raises(UserError, match="contains a checkpoint, not an engine"):
        _render(tmp_path / "tensorrt", manifest.model_copy(update={"kind": "checkpoint"}), tokenizer)
    assert not (tmp_path / "repository").exists()


DAMAGES = {
    "misspelled key": ("ensemble", r"max_batch_size", "max_batch_sise", "did you mean 'max_batch_size'"),
    "batch limit": ("tensorrt_llm", r"max_batch_size: \d+", "max_batch_size: 3", "max_batch_size"),
    "dims": ("preprocessing", r'("INPUT_ID"\s+data_type: TYPE_INT32\s+dims: )\[ -1 \]', r"\1[ 1 ]", "'INPUT_ID': dims"),
    "type": ("postprocessing", "TYPE_STRING", "TYPE_INT32", "'OUTPUT': data_type"),
    "not optional": ("tensorrt_llm", "optional: true", "", "optional is False"),
    "placeholder": ("postprocessing", r'"skip_special_tokens"', '"${skip}"', r"\$\{skip\} was never filled"),
    "wiring": ("ensemble", 'value: "_INPUT_ID"', 'value: "_INPUT_IDS"', "_INPUT_ID"),
    "policy": ("tensorrt_llm", "guaranteed_no_evict", "max_utilization", "batch_scheduler_policy is"),
    "coupled": ("tensorrt_llm", "decoupled: true", "decoupled: false", "decoupled is False"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_each_damage_is_found_and_named(repository: Path, damage: str) -> None:
    """One wrong word in a config.pbtxt is refused, with the file and what is wrong."""
    model, pattern, replacement, said = DAMAGES[damage]
    path = repository / model / "config.pbtxt"
    text = path.read_text()
    damaged = re.sub(pattern, replacement, text, count=1)
    assert damaged != text
    path.write_text(damaged)
    with pytest.raises(CommandError) as refused:
        check_repository(repository)
    whole = f"{refused.value.message} {refused.value.hint}"
    assert str(path) in whole
    assert re.search(said, whole)


@pytest.mark.parametrize(
    "missing", ["ensemble/config.pbtxt", "preprocessing/1/model.py", "preprocessing/1/tokenizer/tokenizer.json"]
)
def test_each_missing_file_is_named(repository: Path, missing: str) -> None:
    """A repository without one of its files is refused before a server is started."""
    (repository / missing).unlink()
    with pytest.raises(CommandError, match=r"no such file|contains no tokenizer"):
        check_repository(repository)


def test_the_repository_leads_back_to_its_engine(rendered: Path) -> None:
    """The manifest carries the engine's hash and the engine's own manifest."""
    repository = read_repository(rendered)
    assert repository.made_from[0].path.endswith("engine/manifest.json")
    assert repository.engine.model.name == "deepseek-r1-0528-qwen3-8b"


BROKEN = {
    "a value that is not there": "name: {{ nothing }}",
    "a placeholder of upstream's": "max_batch_size: ${triton_max_batch_size}",
    "a setting left open": 'parameters: { key: "policy" value: { string_value: "auto" } }',
    "a value that is none": "count: {{ none }}",
    "a switch in Python's spelling": "decoupled: {{ true }}",
    "a template in what was filled in": "name: {{ '{{ inner }}' }}",
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_template_that_leaves_something_open_is_found(fault: str) -> None:
    """The renderer proves its result: whatever a template left unfilled ends it, with template and line."""
    templates = environment(jinja2.DictLoader({"config.pbtxt.j2": f"# first line\n{BROKEN[fault]}\n"}))
    with pytest.raises((RuntimeError, jinja2.UndefinedError)) as refused:
        fill(templates, "config.pbtxt.j2", {})
    if isinstance(refused.value, RuntimeError):
        assert "config.pbtxt.j2, line 2" in str(refused.value)


def test_templates_run_in_a_sandbox() -> None:
    """What a template could do to the process that fills it, it cannot."""
    templates = environment(jinja2.DictLoader({"evil": "{{ ''.__class__.__mro__ }}"}))
    with pytest.raises(jinja2.exceptions.SecurityError):
        fill(templates, "evil", {})


def test_a_tokenizers_code_stays_where_it_is(manifest: EngineManifest, tokenizer: Path, tmp_path: Path) -> None:
    """Of a hostile tokenizer folder only data is taken: no Python, no pickle, and a notice of what named them."""
    hostile = tmp_path / "hostile"
    shutil.copytree(tokenizer, hostile)
    named = {"auto_map": {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", None]}, "eos_token": "a"}
    (hostile / "tokenizer_config.json").write_text(json.dumps(named))
    for name in ("tokenization_evil.py", "tokenizer.pkl", "pytorch_model.bin"):
        (hostile / name).write_text("raise SystemExit('run')")
    (hostile / "secret").symlink_to("/etc/passwd")
    folder = _render(tmp_path / "out", manifest, hostile)
    taken = {path.name for path in (folder / "preprocessing" / "1" / "tokenizer").iterdir()}
    assert taken == {"tokenizer.json", "tokenizer_config.json"}
    assert any(notice.code == "tokenizer-code" for notice in read_repository(folder).notices)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "[" * 50_000),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"a":' * 50_000),
    ],
)
def test_a_tokenizer_that_is_none_is_one_clear_error(
    manifest: EngineManifest, tokenizer: Path, tmp_path: Path, name: str, text: str
) -> None:
    """Damaged and hostile files are refused before anything is written."""
    damaged = tmp_path / "damaged"
    shutil.copytree(tokenizer, damaged)
    (damaged / name).write_text(text)
    with pytest.raises(UserError, match=name):
        _render(tmp_path / "out", manifest, damaged)
    assert not (tmp_path / "out" / "repository").exists()


@pytest.mark.parametrize("field", ["engine", "tokenizer"])
def test_a_manifest_cannot_lead_out_of_its_folder(
    manifest: EngineManifest, tokenizer: Path, tmp_path: Path, field: str
) -> None:
    """An engine's manifest that names `../..` is refused, whatever lies there."""
    leading = manifest.model_copy(update={"kind": "built", "engine": "engine", field: "../../secret"})
    given = None if field == "tokenizer" else tokenizer
    with pytest.raises(UserError, match="points outside the engine's folder"):
        _render(tmp_path / "out", leading, given)


def test_a_name_cannot_leave_its_quotes(manifest: EngineManifest, tokenizer: Path, tmp_path: Path) -> None:
    """A path with quotes and backslashes stays one value of config.pbtxt."""
    wild = tmp_path / 'a"} backend: "python'
    folder = _render(wild, manifest, tokenizer)
    config = read_config(folder / "tensorrt_llm" / "config.pbtxt")
    assert config.parameters["tokenizer_dir"].string_value.startswith(str(wild))


def test_the_llm_apis_model_is_rendered_for_the_pytorch_backend(
    manifest: EngineManifest, tokenizer: Path, tmp_path: Path
) -> None:
    """One model, its model.yaml beside code that loads upstream's; emulated, the twin's."""
    pytorch = manifest.model_copy(update={"kind": "checkpoint", "backend": "pytorch"})
    folder = _render(tmp_path / "built", pytorch, tokenizer)
    assert [path.name for path in sorted(folder.iterdir())] == [".contents.json", "manifest.json", "tensorrt_llm"]
    code = (folder / "tensorrt_llm" / "1" / "model.py").read_text()
    compile(code, "model.py", "exec")
    assert "/app/all_models/llmapi/tensorrt_llm/1" in code
    assert check_repository(folder) == ["tensorrt_llm: 17 inputs, 16 outputs"]
    twin = _render(tmp_path / "twin", manifest.model_copy(update={"backend": "pytorch"}), tokenizer)
    assert "EmulatedLlmApiModel" in (twin / "tensorrt_llm" / "1" / "model.py").read_text()


def test_trtllm_serve_gets_its_yaml_alone(tmp_path: Path) -> None:
    """With metrics on, and the checkpoint's place in the manifest; a key it does not know is found."""
    asked = resolve_recipe(None, {"backend": "pytorch"})
    pytorch = emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)
    folder = _render(tmp_path, pytorch.model_copy(update={"kind": "checkpoint"}), None, server="trtllm-serve")
    names = [path.name for path in sorted(folder.iterdir())]
    assert names == [".contents.json", "manifest.json", "trtllm-serve.yaml"]
    document = yaml.safe_load((folder / "trtllm-serve.yaml").read_text())
    assert document["return_perf_metrics"] is True
    assert "triton_config" not in document
    repository = read_repository(folder)
    assert (repository.models, repository.loads) == ((), str(tmp_path / "engine" / "checkpoint"))
    assert check_repository(folder) == []
    (folder / "trtllm-serve.yaml").write_text(yaml.safe_dump(document | {"max_beams": 1}))
    with pytest.raises(CommandError, match="max_beams"):
        check_repository(folder)


def test_an_emulated_trtllm_serve_is_the_models_that_stand_in(
    manifest: EngineManifest, tokenizer: Path, tmp_path: Path
) -> None:
    """The in-flight models for the OpenAI front to ask, beside the YAML."""
    folder = _render(tmp_path, manifest.model_copy(update={"backend": "pytorch"}), tokenizer, server="trtllm-serve")
    assert (folder / "trtllm-serve.yaml").is_file()
    assert read_repository(folder).models == MODELS
    assert "EmulatedEngineModel" in (folder / "tensorrt_llm" / "1" / "model.py").read_text()
    assert check_repository(folder)


def test_trtllm_serve_serves_no_compiled_engine(manifest: EngineManifest, tokenizer: Path, tmp_path: Path) -> None:
    """One error, before anything is written."""
    with pytest.raises(UserError, match="PyTorch backend"):
        _render(tmp_path, manifest, tokenizer, server="trtllm-serve")
    assert not (tmp_path / "repository").exists()


def test_upstreams_model_is_what_the_entry_point_loads(
    manifest: EngineManifest, tokenizer: Path, tmp_path: Path
) -> None:
    """The entry point finds the model's code and its helpers in the folder it is told; elsewhere it says so."""
    upstream = tmp_path / "upstream"
    upstream.mkdir()
    (upstream / "helpers.py").write_text("WORD = 'found'\n")
    (upstream / "model.py").write_text(
        "from dataclasses import dataclass\nimport helpers\n\n\n"
        "@dataclass\nclass TritonPythonModel:\n    word: str = helpers.WORD\n"
    )
    pytorch = manifest.model_copy(update={"kind": "checkpoint", "backend": "pytorch"})
    folder = _render(tmp_path / "out", pytorch, tokenizer, llmapi={"model_code": str(upstream)})
    code = "import sys, runpy; print(runpy.run_path(sys.argv[1])['TritonPythonModel']().word)"
    model = folder / "tensorrt_llm" / "1" / "model.py"
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=False)
    assert done.stdout == "found\n", done.stderr
    (upstream / "model.py").unlink()
    done = subprocess.run([sys.executable, "-c", code, model], capture_output=True, text=True, check=False)
    assert "llmapi.model_code" in done.stderr


def test_a_placeholder_in_a_value_is_refused(manifest: EngineManifest, tokenizer: Path, tmp_path: Path) -> None:
    """A path with `${X}` in it is the user's mistake, told as one, and nothing is written."""
    built = manifest.model_copy(update={"kind": "built", "engine": "engine"})
    with pytest.raises(UserError, match=r"lora_prefetch_dir: '/x/\$\{ADAPTERS\}' contains a placeholder"):
        _render(tmp_path, built, tokenizer, lora={"prefetch_dir": "/x/${ADAPTERS}"})
    assert not (tmp_path / "repository").exists()


def test_a_repository_of_an_older_version_says_what_to_do(repository: Path) -> None:
    """Its manifest is not read half: the error names the key, and how to make the repository anew."""
    told = json.loads((repository / "manifest.json").read_text())
    told["settings"] = {"max_queue_size": 7, "bls_instances": 1}
    (repository / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(UserError, match=r"settings\.max_queue_size") as refused:
        check_repository(repository)
    assert "build-repo ENGINE_DIR --force" in str(refused.value.hint)


@pytest.mark.parametrize("variant", ["tensorrt_llm", "llmapi"])
def test_an_emulated_engine_brings_all_its_code(
    tmp_path: Path, manifest: EngineManifest, tokenizer: Path, variant: str
) -> None:
    """Its module and the batcher are imported from the repository's own copies, with nothing of ours beside them."""
    folder = _render(tmp_path, manifest, tokenizer) / "tensorrt_llm" / "1"
    imported = f"import sys; sys.path.insert(0, {str(folder)!r}); import triton_repo.models.{variant}; "
    own = "sorted(m.__file__ for n, m in sys.modules.items() if n.split('.')[0] in ('engines', 'triton_repo'))"
    done = subprocess.run([sys.executable, "-I", "-c", f"{imported}print(*{own}, sep=chr(10))"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [path for path in done.stdout.splitlines() if not path.startswith(str(folder))] == []
