"""What could serve the demand: engines planned, engines built, runs measured; each knows what its figures rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from engines.calibration import Calibration, read_calibration
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import Document, MadeBy, Source, Strict, source_of
from engines.manifest import MANIFEST_NAME, EngineManifest, read_manifest
from engines.planning import ask, emulated_manifest, make_plan
from engines.spec import gpu_named
from loadtest.capacity.inputs import Demand, MeasuredRun
from loadtest.capacity.simulation import LengthProfile, Pessimism
from loadtest.results import REQUESTS_NAME, RUN_NAME
from loadtest.simulate import calibrated

Basis = Literal["measured", "calibrated", "predicted", "emulated"]
# What a row rests on, best first. `emulated` is a server around our own step times, or a calibration on one: it says
# nothing of a GPU, and is ranked below a plain prediction.
RANK: dict[Basis, int] = {"measured": 0, "calibrated": 1, "predicted": 2, "emulated": 3}
ONE_SIDED_95 = 1.645  # standard deviations that one draw in twenty of a normal distribution exceeds

# How far an uncalibrated prediction was off on 58 published points of a served Llama-3-8B (H100 FP8, A100 FP16): the
# logarithm of the factor that one point in twenty exceeds, by step-time source; too many tokens/s, too short an ITL or
# TTFT. tests/unit/loadtest/capacity/test_candidates.py works them out again from tests/fidelity/published.csv.
UNCALIBRATED: dict[str, dict[str, float]] = {
    "roofline": {"tokens_per_s": 0.61, "itl_s": 0.60, "ttft_s": 1.25},
    "silicon": {"tokens_per_s": 0.84, "itl_s": 0.80, "ttft_s": 1.51},
}


class Candidate(Strict):
    """One way to serve the demand with replicas of one kind.

    Attributes:
        basis: What its figures rest on.
        manifest: The engine as the simulation takes it, a calibration laid over it; None of a run, or where refused.
        worse: By quantity, the logarithm of the factor by which it is worse than predicted one time in twenty; empty of
            a measured run.
        refused: Why it cannot serve the demand; None where it can be tried.
        run: The measured run it is.
    """

    name: str
    basis: Basis
    gpu: str
    precision: str
    tensor_parallel: int
    manifest: EngineManifest | None = None
    worse: dict[str, float] = Field(default_factory=dict)
    calibration: str | None = None
    refused: str | None = None
    run: MeasuredRun | None = None
    sources: tuple[Source, ...] = ()

    @property
    def pair(self) -> tuple[str, str, int]:
        """What has to be alike for one basis to beat another."""
        return self.gpu, self.precision, self.tensor_parallel

    @property
    def pessimism(self) -> Pessimism:
        """The unfavourable end of the prediction's interval, one time in twenty worse.

        Iterations are slowed by the larger of the errors in tokens/s and ITL, and queues grow with them. What TTFT may
        be off beyond that, it is lengthened by on top.
        """
        slower = max(self.worse.get("tokens_per_s", 0.0), self.worse.get("itl_s", 0.0))
        return Pessimism(math.exp(slower), math.exp(max(0.0, self.worse.get("ttft_s", 0.0) - slower)))


class _Known(NamedTuple):
    path: Path
    calibration: Calibration


def candidates_of(demand: Demand, folder: Path, shape: LengthProfile, *, made_by: MadeBy) -> list[Candidate]:
    """Return every candidate, those that cannot serve the demand with their reason.

    Raises:
        MissingError, UserError: A calibration, engine or run that is named cannot be read.
    """
    choices = demand.candidates
    known = [_Known(folder / path, read_calibration(folder / path)) for path in choices.calibrations]
    found = list(_planned(demand, shape, known, made_by)) if choices.planned else []
    found += [_built(folder / path, shape, known) for path in choices.engines]
    found += [_measured(folder, run) for run in choices.runs]
    if not found:
        raise UserError("candidates: none are asked for", hint="planned: true, or name engines or runs")
    return found


def _planned(demand: Demand, shape: LengthProfile, known: list[_Known], made_by: MadeBy) -> Iterator[Candidate]:
    limits, choices = demand.limits, demand.candidates
    for gpu, precision, tensor in product(limits.gpus, limits.precisions, limits.tensor_parallel):
        seen: set[str] = set()
        slower = _slower((gpu_named(gpu).name, precision, tensor), known, choices.step_time)
        for batch, tokens in product(choices.max_batch_size, choices.max_num_tokens):
            made = _plan(demand, shape, (gpu_named(gpu).name, precision, tensor), (batch, tokens), slower, made_by)
            key = made.name if made.manifest is not None else made.refused or ""
            if key in seen:
                continue
            seen.add(key)
            yield _with_calibration(made, known)


def _slower(pair: tuple[str, str, int], known: list[_Known], source: str) -> float:
    """Return how much slower than predicted an engine of a pair may be, for the planner's own search."""
    for _, each in known:
        if (each.gpu, each.precision, each.tensor_parallel) == pair:
            return math.exp(ONE_SIDED_95 * each.log_error.get("itl_s", 0.0))
    return math.exp(UNCALIBRATED["silicon" if source == "auto" else source]["itl_s"])


def _plan(
    demand: Demand,
    shape: LengthProfile,
    pair: tuple[str, str, int],
    limits: tuple[int | str, int | str],
    slower: float,
    made_by: MadeBy,
) -> Candidate:
    gpu, precision, tensor = pair
    flags = {
        "model": demand.model,
        "gpu": gpu,
        "precision": precision,
        "parallel.tensor": tensor,
        "step_time": demand.candidates.step_time,
        "engine_profile": demand.candidates.engine_profile,
        "limits.max_batch_size": limits[0],
        "limits.max_num_tokens": limits[1],
        "workload.input_tokens": round(shape.mean_isl),
        "workload.output_tokens": round(shape.mean_osl),
        "workload.longest_input_tokens": shape.longest_isl,
        "workload.longest_output_tokens": shape.longest_osl,
        **_plan_objectives(demand, slower),
    }
    refused: str | None = None
    try:
        asked = ask(None, {key: value for key, value in flags.items() if value != "auto"})
        plan = make_plan(asked, head=Document(made_by=made_by))
        manifest = emulated_manifest(plan, asked.recipe)
    except (UserError, TargetMissedError) as error:
        refused = f"{error.message}; {error.hint}" if error.hint else error.message
        name = _name(gpu, precision, tensor)
        return Candidate(
            name=name, basis="predicted", gpu=gpu, precision=precision, tensor_parallel=tensor, refused=refused
        )
    return _of_manifest(manifest)


def _plan_objectives(demand: Demand, slower: float) -> dict[str, float]:
    """Return what the planner's own search is to keep: the demand's limits as its steady state knows them."""
    wanted = demand.objectives
    itl = wanted.itl_s or wanted.tpot_s
    found: dict[str, float] = {}
    if wanted.ttft_s:
        found["objectives.ttft_s"] = max(wanted.ttft_s.values()) / slower
    if itl:
        found["objectives.itl_s"] = min(itl.values()) / slower
    if wanted.itl_s:
        found["objectives.longest_gap_s"] = max(wanted.itl_s.values()) / slower
    return found


def _name(gpu: str, precision: str, tensor: int) -> str:
    return f"{gpu} {precision}" + (f" tp{tensor}" if tensor > 1 else "")


def _of_manifest(manifest: EngineManifest, sources: tuple[Source, ...] = ()) -> Candidate:
    tensor = manifest.parallel.tensor
    limits = manifest.limits
    pair = _name(manifest.gpu.name, manifest.precision.name, tensor)
    return Candidate(
        name=f"{pair} b{limits.max_batch_size} t{limits.max_num_tokens}",
        basis="predicted",
        gpu=manifest.gpu.name,
        precision=manifest.precision.name,
        tensor_parallel=tensor,
        manifest=manifest,
        worse=UNCALIBRATED[manifest.step_time.source],
        sources=sources,
    )


def _built(folder: Path, shape: LengthProfile, known: list[_Known]) -> Candidate:
    manifest = read_manifest(folder)
    made = _of_manifest(manifest, (source_of(folder / MANIFEST_NAME),))
    made = made.model_copy(update={"name": f"{made.name} ({folder.name})"})
    longest = manifest.limits.max_input_len
    if shape.longest_isl > longest:
        refused = f"prompts of up to {shape.longest_isl} tokens, the engine was built for {longest}"
        return made.model_copy(update={"refused": refused})
    return _with_calibration(made, known)


def _with_calibration(candidate: Candidate, known: list[_Known]) -> Candidate:
    """Lay the calibration of the candidate's hardware and precision over it, where there is one."""
    manifest = candidate.manifest
    if manifest is None:
        return candidate
    for path, each in known:
        of = (each.gpu, each.precision, each.tensor_parallel, each.kv_cache)
        if of == (*candidate.pair, manifest.precision.kv_cache):
            source = source_of(path)
            basis: Basis = "calibrated" if each.measured_on == "measured" else "emulated"
            return candidate.model_copy(
                update={
                    "manifest": calibrated(manifest, each, source.sha256),
                    "basis": basis,
                    "worse": {str(name): ONE_SIDED_95 * error for name, error in each.log_error.items()},
                    "calibration": str(path),
                    "sources": (*candidate.sources, source),
                }
            )
    return candidate


def _measured(folder: Path, run: MeasuredRun) -> Candidate:
    path = folder / run.path
    if not (path / RUN_NAME).is_file():
        raise MissingError(f"{path}: not a run folder: no {RUN_NAME} in it", hint="run-load makes them")
    gpu = gpu_named(run.gpu).name
    return Candidate(
        name=f"{_name(gpu, run.precision, run.tensor_parallel)} ({path.name})",
        basis="measured",
        gpu=gpu,
        precision=run.precision,
        tensor_parallel=run.tensor_parallel,
        run=run.model_copy(update={"path": str(path)}),
        sources=tuple(source_of(path / name) for name in (RUN_NAME, REQUESTS_NAME)),
    )
