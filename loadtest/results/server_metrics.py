"""The Prometheus series that are read, and their meaning; the only place with servers' metric names.

TensorRT-LLM in Triton (`nv_trt_llm_*`, `nv_gpu_*`), trtllm-serve (`trtllm_*`), this project's emulator (`emulator_*`),
vLLM, SGLang, Text Generation Inference, and NVIDIA's DCGM exporter. Names as documented by their projects in 2025 and
2026.

`waiting` counts the requests at the server that no step runs, including its queue. TensorRT-LLM in Triton publishes no
such number: its own `waiting` excludes the executor's queue and is 0 with a full batch, so it is not used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

Gauge = Literal[
    "decoding",
    "waiting",
    "kv_blocks_used",
    "kv_ratio",
    "gpu_power_w",
    "gpu_memory_bytes",
    "gpu_busy_ratio",
    "accept_length",
]
Counter = Literal[
    "iterations",
    "emulated_steps",
    "emulated_step_s",
    "gpu_energy_j",
    "modelled_energy_j",
    "generated_tokens",
    "first_tokens",
    "draft_steps",
    "draft_tokens",
    "accepted_tokens",
]
ACCEPTED_AT = "accepted_at_"  # the start of a counter's name: draft tokens accepted at a position, from 0
MEBIBYTE = 2.0**20

_NAME, _LABELS = r"([A-Za-z_:][\w:]*)", r"(\{(?:[^\"}]|\"(?:[^\"\\]|\\.)*\")*\})?"
_SERIES = re.compile(rf"^{_NAME}{_LABELS}$")
_SAMPLE = re.compile(rf"^({_NAME}{_LABELS})\s+(\S+)(?:\s+-?\d+)?$")  # an exporter may append a timestamp
_LABEL = re.compile(r'([A-Za-z_]\w*)\s*=\s*"((?:[^"\\]|\\.)*)"')


class Meaning(NamedTuple):
    """The meaning of a series.

    Attributes:
        label: A label and its required value; None: any.
        factor: Converts the value to the unit of the quantity.
        adds_up: Whether values of several models, GPUs or pages are summed; if not, averaged.
        by_label: A label whose value ends the quantity's name: there is one quantity for each.
    """

    name: str
    quantity: Gauge | Counter | str
    label: tuple[str, str] | None = None
    factor: float = 1.0
    adds_up: bool = True
    by_label: str | None = None


_BATCHER = "inflight_batcher_specific_metric"
_ENGINE = (
    Meaning("nv_trt_llm_inflight_batcher_metrics", "decoding", (_BATCHER, "generation_requests")),
    Meaning("nv_trt_llm_kv_cache_block_metrics", "kv_blocks_used", ("kv_cache_block_type", "used")),
    Meaning("nv_trt_llm_kv_cache_block_metrics", "kv_ratio", ("kv_cache_block_type", "fraction"), adds_up=False),
    Meaning("nv_trt_llm_general_metrics", "iterations", ("general_type", "iteration_counter")),
)
MEANINGS: tuple[Meaning, ...] = (
    *_ENGINE,
    # Of the emulated LLM API: the real one publishes no engine metrics in Triton.
    *(meaning._replace(name=meaning.name.replace("nv_trt_llm_", "emulator_")) for meaning in _ENGINE),
    Meaning("emulator_steps_total", "emulated_steps"),
    Meaning("emulator_step_seconds_total", "emulated_step_s"),
    Meaning("emulator_waiting_requests", "waiting"),
    Meaning("emulator_draft_steps_total", "draft_steps"),
    Meaning("emulator_draft_tokens_total", "draft_tokens"),
    Meaning("emulator_accepted_tokens_total", "accepted_tokens"),
    Meaning("vllm:num_requests_running", "decoding"),
    Meaning("vllm:num_requests_waiting", "waiting"),
    Meaning("vllm:gpu_cache_usage_perc", "kv_ratio", adds_up=False),  # 0 to 1 despite its name; until vLLM 0.9
    Meaning("vllm:kv_cache_usage_perc", "kv_ratio", adds_up=False),
    Meaning("vllm:iteration_tokens_total_count", "iterations"),
    Meaning("vllm:generation_tokens_total", "generated_tokens"),
    Meaning("vllm:time_to_first_token_seconds_count", "first_tokens"),
    Meaning("vllm:spec_decode_num_drafts_total", "draft_steps"),
    Meaning("vllm:spec_decode_num_draft_tokens_total", "draft_tokens"),
    Meaning("vllm:spec_decode_num_accepted_tokens_total", "accepted_tokens"),
    Meaning("vllm:spec_decode_num_accepted_tokens_per_pos_total", ACCEPTED_AT, by_label="position"),
    Meaning("sglang:num_running_reqs", "decoding"),
    Meaning("sglang:num_queue_reqs", "waiting"),
    Meaning("sglang:token_usage", "kv_ratio", adds_up=False),
    # Of trtllm-serve, since TensorRT-LLM 1.3; its queue excludes requests that have a slot but no KV blocks.
    Meaning("trtllm_num_generation_requests", "decoding"),
    Meaning("trtllm_num_requests_waiting", "waiting"),
    Meaning("trtllm_kv_cache_utilization", "kv_ratio", adds_up=False),
    Meaning("trtllm_kv_cache_used_blocks", "kv_blocks_used"),
    Meaning("trtllm_spec_decode_num_draft_tokens_total", "draft_tokens"),
    Meaning("trtllm_spec_decode_num_accepted_tokens_total", "accepted_tokens"),
    Meaning("trtllm_spec_decode_acceptance_length", "accept_length", adds_up=False),
    Meaning("tgi_batch_current_size", "decoding"),
    Meaning("tgi_queue_size", "waiting"),
    Meaning("nv_gpu_power_usage", "gpu_power_w"),
    Meaning("nv_energy_consumption", "gpu_energy_j"),  # joules since the server started
    Meaning("nv_gpu_memory_used_bytes", "gpu_memory_bytes"),
    Meaning("nv_gpu_utilization", "gpu_busy_ratio", adds_up=False),
    Meaning("DCGM_FI_DEV_POWER_USAGE", "gpu_power_w"),
    Meaning("DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION", "gpu_energy_j", factor=1e-3),  # millijoules
    Meaning("modelled_gpu_energy_joules_total", "modelled_energy_j"),  # of predict-load
    Meaning("emulator_gpu_energy_joules_total", "modelled_energy_j"),
    Meaning("DCGM_FI_DEV_FB_USED", "gpu_memory_bytes", factor=MEBIBYTE),
    Meaning("DCGM_FI_DEV_GPU_UTIL", "gpu_busy_ratio", factor=0.01, adds_up=False),
)
KEPT_PREFIXES = ("nv_trt_llm_", "emulator_", "nv_inference_pending_request_count", "nv_inference_count", "nv_gpu_")
KEPT_NAMES = frozenset(meaning.name for meaning in MEANINGS)


def is_kept(series: str) -> bool:
    """Whether a page's series is written to a run's samples.

    >>> is_kept('vllm:num_requests_running{model_name="m"}'), is_kept('vllm:e2e_request_latency_seconds_bucket{le="1"}')
    (True, False)
    """
    return series.startswith(KEPT_PREFIXES) or series.partition("{")[0] in KEPT_NAMES


def parse_series(text: str) -> tuple[str, dict[str, str]] | None:
    """Return name and labels of a Prometheus series, labels in any order; None if the text is malformed.

    >>> parse_series('up{model="a",version="1"}')
    ('up', {'model': 'a', 'version': '1'})
    """
    found = _SERIES.match(text)
    if found is None:
        return None
    return found[1], {name: _unescaped(value) for name, value in _LABEL.findall(found[2] or "")}


def parse_metrics(text: str) -> dict[str, float]:
    r"""Return the series of a Prometheus page that this project reads, by their full text.

    Lines that are no sample are left out. prometheus_client's parser reads the same (a test holds this one to it), but
    takes 0.14 s to import, a tenth of what a whole run may cost.

    >>> parse_metrics('# HELP x y\nemulator_steps_total{model="m"} 3\nother 1\n')
    {'emulator_steps_total{model="m"}': 3.0}
    """
    found = (_SAMPLE.match(line) for line in text.split("\n") if is_kept(line.split(" ", 1)[0]))
    return {match[1]: float(match[4]) for match in found if match}


def _unescaped(value: str) -> str:
    return re.sub(r"\\(.)", lambda found: "\n" if found[1] == "n" else found[1], value)


def _by_label(meaning: Meaning, labels: Mapping[str, str]) -> Meaning:
    return meaning._replace(quantity=f"{meaning.quantity}{labels.get(meaning.by_label or '', '0')}")


def meanings_of(series: Iterable[str]) -> dict[str, Meaning]:
    """Return the meaning of each series that has one."""
    found: dict[str, Meaning] = {}
    for text in series:
        parsed = parse_series(text)
        if parsed is None:
            continue
        name, labels = parsed
        for meaning in MEANINGS:
            if meaning.name == name and (meaning.label is None or labels.get(meaning.label[0]) == meaning.label[1]):
                found[text] = meaning if meaning.by_label is None else _by_label(meaning, labels)
    return found
