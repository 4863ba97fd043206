"""Two small tasks for lm-evaluation-harness: capitals to choose, and capitals to write."""

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
