"""Published or measured deployments: `case.yaml` and `points.csv` of a folder."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import Field

from engines.files import Strict, validate

VALIDATION = Path(__file__).parents[1]
QUANTITIES = ("tokens_per_s", "itl", "ttft")
PER_TOKEN = "tpot"  # of cases with speculation, whose ITL is the time per step


class Speculated(Strict):
    """The speculative decoding of a case's points; `acceptance` by position, cut to each point's draft length."""

    mode: str
    draft_model: str
    acceptance: tuple[float, ...] | None = None


class Case(Strict):
    """`case.yaml`.

    Attributes:
        row: Row of the table of goals.
        engine_profile: What predicts it.
        kind: `measured` here by `make real`, or `published`.
        model, gpu: Known names; of a measured case, folder and file of its own, from the case's folder.
        calibration: What was calibrated on other loads of a measured deployment, from the case's folder.
        load: `open_loop`: requests a second; `closed_loop`: users; `at_once`: a queue of so many requests; `trace`: the
            requests of `scenario_file`, a scenario in the case's folder.
        requests: Requests of an open loop, or of a closed one at each level; of a queue the point itself says it, as
            its load, or in a column of its own where the load is the batch.
        full_batch_window: A queue's rate is that between the time when a full batch has its first tokens and the time
            when all but a full batch (and one) have ended, as ML.ENERGY's benchmark measures.
        itl_of_chunks: The load generator counted the end of each reply as one more gap, of no length: published gaps
            are those of a reply of one token more.
        isl, osl: Lengths where they vary, `{osl}` the point's own mean; the points' own otherwise.
        itl: Which statistic of the gaps was published; `ttft` likewise.
        max_batch_size: The point's load where `load`.
        scenario: How the load generator behaved, where `predict-load` differs.
        tuned: The profile's numbers were fitted to these points; False: nothing of them was used.
        fast: Part of the quick subset.
        speculative: Mode, draft model and acceptance (None: the default) of the points with a draft length; those
            without are of the same deployment without speculation.
        wants: Mean absolute errors asked for, in percent, by quantity; TTFT is a median where `ttft_median`.
        rounded_to_ms: Unit of the published latencies, where that is a source of error by itself.
        leave_out: Why a published statistic is not compared.
        aisimulate: NVIDIA's simulator is asked, too.
    """

    row: str
    engine_profile: str
    kind: Literal["published", "measured"] = "published"
    model: str
    gpu: str
    precision: str
    calibration: str | None = None
    kv_cache: str | None = None
    step_time: str | None = None
    max_batch_size: int | Literal["load"]
    max_num_tokens: int
    load: Literal["open_loop", "closed_loop", "at_once", "trace"]
    requests: int | None = None
    isl: str | None = None
    osl: str | None = None
    itl: Literal["mean", "p50"] = "mean"
    ttft: Literal["mean", "p50"] = "mean"
    full_batch_window: bool = False
    itl_of_chunks: bool = False
    scenario_file: str | None = None
    scenario: dict[str, Any] | None = None
    speculative: Speculated | None = None
    tuned: bool
    fast: bool = False
    wants: dict[str, float] = Field(default_factory=dict)
    ttft_median: bool = False
    rounded_to_ms: float | None = None
    leave_out: str | None = None
    aisimulate: bool = False
    source: str
    licence: str


class Measured(NamedTuple):
    """A published point; None: not published. Seconds, tokens a second."""

    load: float
    isl: int
    osl: int
    values: dict[str, float | None]
    where: str
    requests: int | None = None
    max_draft_len: int | None = None
    max_total_draft_tokens: int | None = None


def read_case(folder: Path) -> Case:
    """Return the case of a folder; errors as `files.validate`."""
    case = validate(yaml.safe_load((folder / "case.yaml").read_text(encoding="utf-8")), Case, where=str(folder))
    return case if case.kind == "published" else _placed(case, folder)


def _placed(case: Case, folder: Path) -> Case:
    """Return a measured case with its own files' paths: from the repository's root where they are below it."""

    def place(name: str | None) -> str | None:
        if name is None:
            return None
        path = (folder / name).resolve()
        return str(path.relative_to(VALIDATION.parent)) if path.is_relative_to(VALIDATION.parent) else str(path)

    names = ("model", "gpu", "calibration", "scenario_file")
    return case.model_copy(update={name: place(getattr(case, name)) for name in names})


def read_points(folder: Path) -> list[Measured]:
    """Return the published points of a case, gaps between tokens as every other case counts them."""
    case = read_case(folder)
    with (folder / "points.csv").open(encoding="utf-8", newline="") as file:
        return [
            Measured(
                float(row["load"]),
                int(row["isl"]),
                int(row["osl"]),
                {
                    "tokens_per_s": _number(row.get("tokens_per_s")),
                    "itl": _number(row.get("itl_ms"), _itl_scale(case, int(row["osl"]))),
                    "ttft": _number(row.get("ttft_ms"), 1e-3),
                    PER_TOKEN: _number(row.get("tpot_ms"), 1e-3),
                },
                row.get("where", ""),
                *(
                    int(row[name]) if row.get(name) else None
                    for name in ("requests", "max_draft_len", "max_total_draft_tokens")
                ),
            )
            for row in csv.DictReader(file)
        ]


def _itl_scale(case: Case, osl: int) -> float:
    """Return the seconds that a published millisecond of ITL stands for."""
    return 1e-3 * (osl / (osl - 1) if case.itl_of_chunks else 1.0)


def _number(text: str | None, scale: float = 1.0) -> float | None:
    return float(text) * scale if text else None
