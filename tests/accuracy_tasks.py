"""Small tasks for lm-evaluation-harness, and small data sets in the layout of the Hugging Face hub.

The columns are the data sets' own; the rows are made up here.
"""

from __future__ import annotations

import json
from pathlib import Path

CAPITALS = [("France", "Paris"), ("Japan", "Tokyo"), ("Italy", "Rome"), ("Russia", "Moscow")]
CHOICE = """
task: capitals
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "The capital of {{country}} is"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
target_delimiter: " "
num_fewshot: 0
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
REPLY = """
task: completions
dataset_path: json
dataset_kwargs: {data_files: {test: capitals.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "Question: What is the capital of {{country}}?\\nAnswer: The capital of {{country}} is"
doc_to_target: "{{city}}"
generation_kwargs: {until: [".", "\\n"], max_gen_toks: 3}
filter_list: [{name: none, filter: [{function: remove_whitespace}, {function: take_first}]}]
num_fewshot: 0
metric_list: [{metric: exact_match, ignore_case: true, aggregation: mean, higher_is_better: true}]
"""

HUB: dict[str, tuple[str, tuple[str, ...], dict[str, object]]] = {
    "openai/gsm8k": ("main", ("train", "test"), {"question": "What is 2 + 3?", "answer": "2 + 3 = <<2+3=5>>5\n#### 5"}),
    "cais/mmlu": (
        "anatomy",
        ("test", "validation", "dev"),
        {"question": "What pumps blood?", "subject": "anatomy", "choices": ["ear", "heart", "eye", "arm"], "answer": 1},
    ),
    "Rowan/hellaswag": (
        "default",
        ("train", "validation", "test"),
        {
            "ind": 1,
            "activity_label": "Cooking",
            "ctx_a": "A man boils water.",
            "ctx_b": "he",
            "ctx": "A man boils water. he",
            "endings": ["adds pasta.", "flies away.", "eats a car.", "is a fish."],
            "label": "0",
        },
    ),
    "allenai/ai2_arc": (
        "ARC-Easy",
        ("train", "validation", "test"),
        {
            "id": "1",
            "question": "Which is hot?",
            "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
            "answerKey": "B",
        },
    ),
    "openai/openai_humaneval": (
        "openai_humaneval",
        ("test",),
        {
            "task_id": "HumanEval/0",
            "prompt": "def one():\n    return 1\n\n\ndef two():\n    return",
            "canonical_solution": " 2\n",
            "test": "def check(candidate):\n    assert candidate() == 2\n",
            "entry_point": "two",
        },
    ),
}
# Stands for `code_eval`, which is not distributed with the harness: it asks for the same permission, and runs the code.
CODE_METRIC = """
import os

import datasets
import evaluate


class CodeEval(evaluate.Metric):
    def _info(self):
        columns = {
            "predictions": datasets.Sequence(datasets.Value("string")),
            "references": datasets.Value("string"),
        }
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(columns))

    def _compute(self, predictions, references, k=(1,)):
        if os.environ.get("HF_ALLOW_CODE_EVAL") != "1":
            raise ValueError("set HF_ALLOW_CODE_EVAL")
        passed = []
        for (program,), test in zip(predictions, references):
            try:
                exec(program + test, {})
                passed.append(1)
            except Exception:
                passed.append(0)
        return {"pass@1": sum(passed) / len(passed)}, passed
"""


def write_hub(folder: Path) -> None:
    """Write one row of every known data set as `hf download --local-dir` leaves it, and the metric of HumanEval."""
    for name, (config, splits, row) in HUB.items():
        place = folder / name
        files = "".join(f"  - split: {split}\n    path: {config}/{split}.jsonl\n" for split in splits)
        for split in splits:
            (place / config).mkdir(parents=True, exist_ok=True)
            (place / config / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        (place / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{files}---\n")
    (folder / "code_eval").mkdir()
    (folder / "code_eval" / "code_eval.py").write_text(CODE_METRIC)


def write_tasks(folder: Path) -> None:
    """Write both tasks to `folder/tasks`, and their data to `folder`."""
    (folder / "tasks").mkdir()
    (folder / "tasks" / "capitals.yaml").write_text(CHOICE)
    (folder / "tasks" / "completions.yaml").write_text(REPLY)
    cities = [city for _, city in CAPITALS]
    rows = [
        {"country": country, "city": city, "choices": cities, "answer": index}
        for index, (country, city) in enumerate(CAPITALS)
    ]
    (folder / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
