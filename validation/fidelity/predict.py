"""The `predict-load` command of each point, and the published statistics of what it predicts."""

from __future__ import annotations

import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from click.testing import CliRunner

from loadtest.cli.predict_load import predict_load
from loadtest.results import read_records
from validation.fidelity.cases import PER_TOKEN, Case, Measured


class Predicted(NamedTuple):
    """What a command said of a point, with the ends of its interval."""

    command: str
    values: dict[str, float]
    low: dict[str, float]
    high: dict[str, float]


def arguments_of(case: Case, point: Measured) -> list[str]:
    """Return the arguments of `predict-load` for a point."""
    batch = int(point.load) if case.max_batch_size == "load" else case.max_batch_size
    flags: dict[str, object] = {
        "engine-profile": case.engine_profile,
        "model": case.model,
        "gpu": case.gpu,
        "precision": case.precision,
        "kv-cache": case.kv_cache,
        "step-time": case.step_time,
        "max-batch-size": batch,
        "max-num-tokens": case.max_num_tokens,
        "calibration": case.calibration,
        **_speculative_flags(case, point),
    }
    if case.load == "trace":
        flags |= {"scenario": case.scenario_file}
    else:
        osl = point.osl if case.osl is None else case.osl.format(osl=point.osl)
        flags |= {"isl": case.isl or point.isl, "osl": osl}
    if case.load == "open_loop":
        flags |= {"rate": f"{point.load:g}", "duration": f"{(case.requests or 0) / point.load:g}"}
    elif case.load != "trace":
        flags |= {"concurrency": point.requests or f"{point.load:g}"}
    if case.load == "closed_loop" and case.requests is not None:
        flags["requests"] = max(case.requests, 3 * int(point.load))
    found = [text for name, value in flags.items() if value is not None for text in (f"--{name}", str(value))]
    return [*found, "--at-once"] if case.load == "at_once" else found


def _speculative_flags(case: Case, point: Measured) -> dict[str, object]:
    chosen, draft_len = case.speculative, point.max_draft_len
    if chosen is None or draft_len is None:
        return {}
    rates = None if chosen.acceptance is None else ",".join(f"{rate:g}" for rate in chosen.acceptance[:draft_len])
    return {
        "speculative": chosen.mode,
        "draft-model": chosen.draft_model,
        "max-draft-len": draft_len,
        "max-total-draft-tokens": point.max_total_draft_tokens,
        "acceptance": rates,
    }


def predict_point(case: Case, point: Measured) -> Predicted:
    """Run `predict-load` for a point.

    Raises:
        RuntimeError: The command failed.
    """
    arguments = arguments_of(case, point)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if case.scenario is not None:
            (folder / "scenario.yaml").write_text(yaml.safe_dump(case.scenario), encoding="utf-8")
            arguments += ["--scenario", str(folder / "scenario.yaml")]
        result = CliRunner().invoke(predict_load, [*arguments, "--json", "--out", str(folder / "run")])
        if result.exit_code:
            raise RuntimeError(f"predict-load {shlex.join(arguments)}: {result.output}") from result.exception
        level = json.loads(result.stdout)["levels"][0]
        values = _of_queue(folder / "run", case, point) if case.load == "at_once" else _of_level(level, case)
        command = shlex.join(["predict-load", *arguments]).replace(str(folder / "scenario.yaml"), "scenario.yaml")
    ends = level["intervals"] or {}
    names = {"tokens_per_s": "tokens_per_s", "itl": "itl_s", "ttft": "ttft_s"}
    scale = {name: values[name] / ends[key]["mean"] for name, key in names.items() if key in ends and name in values}
    return Predicted(
        command,
        values,
        {name: ends[names[name]]["low"] * ratio for name, ratio in scale.items()},
        {name: ends[names[name]]["high"] * ratio for name, ratio in scale.items()},
    )


def _of_level(level: dict[str, Any], case: Case) -> dict[str, float]:
    """Return the published statistics of a level as `predict-load` prints it."""
    values = {"tokens_per_s": level["output_tokens_per_s"]}
    for name, statistic in (("itl", case.itl), ("ttft", case.ttft), (PER_TOKEN, "mean")):
        if level[f"{name}_s"] is not None:
            values[name] = level[f"{name}_s"][statistic]
    return values


def _of_queue(run: Path, case: Case, point: Measured) -> dict[str, float]:
    """Return what published tables say of a queue: tokens over the whole time, and means over every reply and gap."""
    records = list(read_records(run))
    if case.full_batch_window:
        return _of_full_batch([record.token_times_s for record in records], int(point.load))
    gaps = sum(len(record.token_times_s) - 1 for record in records)
    return {
        "tokens_per_s": sum(record.output_tokens for record in records) / max(record.done_s for record in records),
        "itl": sum(record.token_times_s[-1] - record.token_times_s[0] for record in records) / max(1, gaps),
        "ttft": float(np.mean([record.token_times_s[0] - record.sent_s for record in records])),
    }


def _of_full_batch(replies: Sequence[Sequence[float]], batch: int) -> dict[str, float]:
    """Return the tokens a second while the batch was full, and the median gap of all replies.

    Args:
        replies: When the tokens of each reply left, in seconds.
        batch: Sequences of a full batch.
    """
    begin_s = sorted(times[0] for times in replies)[batch - 1]
    end_s = sorted(times[-1] for times in replies)[len(replies) - batch - 2]
    every = np.concatenate([np.asarray(times) for times in replies])
    made = np.count_nonzero((every > begin_s) & (every <= end_s))
    gaps = np.concatenate([np.diff(times) for times in replies])
    return {"tokens_per_s": float(made / (end_s - begin_s)), "itl": float(np.median(gaps))}
