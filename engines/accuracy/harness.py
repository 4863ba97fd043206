"""The door to lm-evaluation-harness: its tasks, run on data at hand, and its results as this project's records."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from engines.console import DATA_VARIABLE
from engines.errors import MissingError, ToolError, UserError
from engines.files import one_line
from engines.manifest import AccuracyResult

PACKAGE = "lm_eval"
# Tasks run by default where their data is at hand, and the name of the data set on the Hugging Face hub.
KNOWN_TASKS = {
    "gsm8k": "openai/gsm8k",
    "mmlu": "cais/mmlu",
    "hellaswag": "Rowan/hellaswag",
    "arc_easy": "allenai/ai2_arc",
    "arc_challenge": "allenai/ai2_arc",
    "humaneval": "openai/openai_humaneval",
}
# The harness's folders that define these, of the hundreds that it has.
_KNOWN_FOLDERS = ("arc", "gsm8k", "hellaswag", "humaneval", "mmlu/default")
# The metric that losses are computed from: the first of these that a task has, else its first.
_MAIN_METRICS = ("acc_norm,none", "acc,none", "exact_match,flexible-extract")
_PROBABILITIES = {"loglikelihood", "loglikelihood_rolling", "multiple_choice"}
_CODE_VARIABLE = "HF_ALLOW_CODE_EVAL"  # without which the metric of HumanEval refuses to run
_SEED = 1234  # of the few-shot examples: the harness's own default


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """Which tasks to run, and how.

    Attributes:
        data: Folder of data sets, each at the path of its name on the hub: `DATA/openai/gsm8k`. None: the data sets in
            the Hugging Face cache.
        task_folder: Folder of the user's own task files.
        limit: Questions of each data set; None: all.
        few_shot: Solved examples in the prompt; None: as the task states.
        max_tokens: Longest reply; None: as the task states, else 256.
        runs_code: Whether code that the model wrote may be run (HumanEval).
    """

    tasks: tuple[str, ...]
    data: Path | None = None
    task_folder: Path | None = None
    limit: int | None = None
    few_shot: int | None = None
    max_tokens: int | None = None
    chat: bool = False
    runs_code: bool = False


def require_harness() -> None:
    """Refuse to go on without the harness, and keep it from the network.

    Raises:
        MissingError: It is not installed.
    """
    missing = [name for name in (PACKAGE, "transformers", "aiohttp", "tenacity") if find_spec(name) is None]
    if missing:
        raise MissingError(
            f"accuracy tasks need {', '.join(missing)}, which is not installed",
            hint="pip install 'engine-to-capacity[evaluate]'",
        )
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TQDM_DISABLE": "1"}
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)


def tasks_at_hand(data: Path | None) -> list[str]:
    """Return the known tasks whose data set is in the folder."""
    return [] if data is None else [task for task, name in KNOWN_TASKS.items() if (data / name).is_dir()]


class Tasks:
    """Tasks of the harness with their data, read once and put to one model or several.

    Raises:
        MissingError: A data set is not at hand.
        UserError: A task is unknown or damaged, or runs code without permission.
    """

    def __init__(self, questions: Questions) -> None:
        require_harness()
        self.questions = questions
        manager = _manager_for(questions)
        unknown = [name for name in questions.tasks if name not in manager.all_tasks]
        if unknown:
            raise UserError(
                f"unknown task {', '.join(unknown)}",
                hint="a task of lm-evaluation-harness, or of your own in --task-folder",
            )
        if questions.runs_code:
            os.environ[_CODE_VARIABLE] = "1"
        with _in_folder(questions.data):
            self._loaded = self._load(manager)
        self._set_up()

    @property
    def needs_probabilities(self) -> list[str]:
        """Tasks that score given continuations, for which a server must return the prompt's log probabilities."""
        return [name for name, task in self._each() if task.get_config("output_type") in _PROBABILITIES]

    def results_of(self, model: Any, *, measured_on: Literal["checkpoint", "server"]) -> list[AccuracyResult]:
        """Put the questions to a model of the harness and return every metric.

        Raises:
            ToolError: The harness or the server failed.
        """
        evaluator = importlib.import_module("lm_eval.evaluator")
        with _in_folder(self.questions.data), _as_tool_error():
            found = evaluator.evaluate(
                lm=model,
                task_dict=self._loaded,
                limit=self.questions.limit,
                apply_chat_template=self.questions.chat,
                fewshot_as_multiturn=self.questions.chat,
                confirm_run_unsafe_code=self.questions.runs_code,
            )
        return [result for name in self._names(found) for result in self._results(found, name, measured_on)]

    def _load(self, manager: Any) -> Any:
        exceptions = importlib.import_module("datasets.exceptions")
        absent = (ConnectionError, FileNotFoundError, exceptions.DatasetNotFoundError)
        try:
            return manager.load(list(self.questions.tasks))
        except absent as error:
            names = dict.fromkeys(KNOWN_TASKS.get(task, "") for task in self.questions.tasks)
            name = next((each for each in names if each and each in str(error)), "OWNER/NAME")
            where = f"${DATA_VARIABLE}" if self.questions.data is None else str(self.questions.data)
            raise MissingError(
                f"{', '.join(self.questions.tasks)}: a data set is not at hand: {_line(error)}",
                hint=f"hf download --repo-type dataset {name} --local-dir {where}/{name}; nothing is downloaded here",
            ) from error
        except KeyError as error:
            raise UserError(
                f"{', '.join(self.questions.tasks)}: its data set has no split or column {error}"
            ) from error
        except (ValueError, TypeError, OSError) as error:
            if _CODE_VARIABLE in str(error):  # HumanEval's task tries its metric as it is loaded
                raise _runs_code(", ".join(self._that_run_code(manager))) from error
            raise UserError(f"{', '.join(self.questions.tasks)}: the harness cannot load it: {_line(error)}") from error

    def _that_run_code(self, manager: Any) -> list[str]:
        """Return the tasks that cannot be loaded without permission to run code: the harness does not say which."""
        found = []
        for name in self.questions.tasks:
            try:
                manager.load([name])
            except (ValueError, OSError) as error:
                found += [name] if _CODE_VARIABLE in str(error) else []
        return found

    def _each(self) -> list[tuple[str, Any]]:
        return list(self._loaded["tasks"].items())

    def _set_up(self) -> None:
        """Set few-shot examples and reply lengths, as the harness's own command does."""
        questions = self.questions
        for name, task in self._each():
            if task.get_config("unsafe_code") and not questions.runs_code:
                raise _runs_code(name)
            stated = task.get_config("num_fewshot")
            wanted = stated if questions.few_shot is None or stated == 0 else questions.few_shot
            task.set_config(key="num_fewshot", value=wanted or 0)
            task.set_fewshot_seed(seed=_SEED)
            if questions.max_tokens is not None and task.get_config("output_type") == "generate_until":
                settings = {"max_gen_toks": questions.max_tokens}
                task.set_config(key="generation_kwargs", value=settings, update=True)

    def _names(self, found: Any) -> list[str]:
        """Return the requested tasks; of a tag, its members."""
        named = [name for name in self.questions.tasks if name in found["results"]]
        members = {each for name in named for each in _leaves(found, name)}
        return [*named, *(name for name, _ in self._each() if name not in members)]

    def _results(self, found: Any, name: str, measured_on: Literal["checkpoint", "server"]) -> Iterator[AccuracyResult]:
        figures = found["results"][name]
        metrics = [key for key in figures if _is_metric(key, figures[key])]
        main = next((key for key in (*_MAIN_METRICS, *metrics) if key in metrics), None)
        samples = [sample for leaf in _leaves(found, name) for sample in found["samples"][leaf]]
        for key in metrics:
            metric, _, chosen = key.partition(",")
            own = [sample for sample in samples if sample["filter"] == chosen]
            error = figures.get(f"{metric}_stderr,{chosen}")
            yield AccuracyResult(
                task=name,
                metric=metric if chosen == "none" else key,
                is_main=key == main,
                value=float(figures[key]),
                standard_error=float(error) if isinstance(error, int | float) else None,
                questions=len(own),
                limit=self.questions.limit,
                few_shot=max(int(found["n-shot"].get(leaf, 0)) for leaf in _leaves(found, name)),
                chat=self.questions.chat,
                versions={"task": str(found["versions"].get(name)), PACKAGE: metadata.version(PACKAGE)},
                date=datetime.now(UTC).date().isoformat(),
                measured_on=measured_on,
                questions_sha256=_fingerprint(own),
                correct=_correct([sample.get(metric) for sample in own], float(figures[key])),
            )


def _runs_code(name: str) -> UserError:
    return UserError(
        f"{name} runs code that the model wrote", hint="add --run-code, in a container or a throw-away account"
    )


def _manager_for(questions: Questions) -> Any:
    """Return an index with the tasks: of the known ones and the user's own if it has them all, else of every task.

    Of a group or a tag the small index may lack members, so it is taken for groups only if they are known ones, whose
    members it has, and the user has no tasks that could replace them.
    """
    folder = _text_of(questions.task_folder)
    known = _manager(folder, is_whole=False)
    enough = {*known.all_subtasks, *(KNOWN_TASKS if folder is None else ())} & {*known.all_tasks}
    return known if enough.issuperset(questions.tasks) else _manager(folder, is_whole=True)


@cache
def _manager(task_folder: str | None, *, is_whole: bool) -> Any:
    """Return the harness's index of its tasks, all (thousands of files) or the known ones, and of the user's own."""
    tasks = importlib.import_module("lm_eval.tasks")
    own = [] if task_folder is None else [task_folder]
    if is_whole:
        return tasks.TaskManager(include_path=own)
    folders = [Path(str(tasks.__file__)).parent / name for name in _KNOWN_FOLDERS]
    found = [str(folder) for folder in folders if folder.is_dir()]
    return tasks.TaskManager(include_path=[*found, *own], include_defaults=False)


def _leaves(found: Any, name: str) -> list[str]:
    """Return the tasks that a group consists of, at any depth; of a task, itself."""
    children = found.get("group_subtasks", {}).get(name)
    return [leaf for child in children for leaf in _leaves(found, child)] if children else [name]


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and not key.partition(",")[0].endswith("_stderr") and isinstance(value, int | float)


def _fingerprint(samples: Sequence[Any]) -> str:
    return hashlib.sha256("".join(f"{s['doc_hash']}{s['prompt_hash']}" for s in samples).encode()).hexdigest()


def _correct(scores: Sequence[Any], value: float) -> str | None:
    """Return a score of 0 or 1 per question as text; None if the metric is another, or not the scores' mean.

    >>> _correct([1.0, 0, True], 2 / 3), _correct([0.5, 1], 0.75), _correct([1, 0], 0.9)
    ('101', None, None)
    """
    if not scores or any(score not in (0, 1) for score in scores):
        return None
    text = "".join(str(int(score)) for score in scores)
    return text if abs(text.count("1") / len(text) - value) < 1e-9 else None  # noqa: PLR2004 (rounding)


def _text_of(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _line(error: BaseException) -> str:
    return one_line(error, 300) or type(error).__name__


@contextlib.contextmanager
def _in_folder(folder: Path | None) -> Iterator[None]:
    """Work in the data folder: `datasets` takes a name that is a folder there for the data set itself."""
    with contextlib.nullcontext() if folder is None else contextlib.chdir(folder):
        yield


@contextlib.contextmanager
def _as_tool_error() -> Iterator[None]:
    aiohttp, tenacity = importlib.import_module("aiohttp"), importlib.import_module("tenacity")
    failures: tuple[type[Exception], ...] = (
        OSError,
        TimeoutError,
        KeyError,
        NotImplementedError,
        aiohttp.ClientError,
        tenacity.RetryError,
    )
    try:
        yield
    except failures as error:
        raise ToolError(f"the evaluation failed: {type(error).__name__}: {_line(error)}") from error
