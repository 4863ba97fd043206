"""What could serve the demand: engines planned, engines built, runs measured; each knows what its figures rest on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

from engines.calibration import Calibration, read_calibration
from engines.emulator import SchedulerPolicy
from engines.errors import MissingError, TargetMissedError, UserError
from engines.files import Document, MadeBy, Source, Strict, source_of
from engines.manifest import MANIFEST_NAME, EngineManifest, StepTimeChoice, read_manifest
from engines.planning import emulated_manifest, make_plan, resolve_recipe
from engines.spec import DEFAULT_ENGINE_PROFILE, engine_profile_named, gpu_named
from engines.steptime import uncertainty
from loadtest.capacity.inputs import Demand, MeasuredRun
from loadtest.capacity.simulation import Interval, LengthProfile, Slowdown
from loadtest.results import REQUESTS_NAME, RUN_NAME
from loadtest.simulate import calibrated

Basis = Literal["measured", "calibrated", "predicted", "emulated"]
# What a row rests on, best first. `emulated` is a server around our own step times, or a calibration on one: it says
# nothing of a GPU, and is ranked below a plain prediction.
RANK: dict[Basis, int] = {"measured": 0, "calibrated": 1, "predicted": 2, "emulated": 3}
EVICTING = " evicting"  # ends the name of an engine that reserves no KV blocks
ONE_SIDED_95 = 1.645  # standard deviations that one draw in twenty of a normal distribution exceeds


class Candidate(Strict):
    """One way to serve the demand with replicas of one kind.

    Attributes:
        basis: What its figures rest on.
        manifest: The engine as the simulation takes it, a calibration laid over it; None of a run, or where refused.
        interval: Both ends of its prediction, on step and host times; 1 of a measured run.
        interval_source: Where the interval comes from.
        refused: Why it cannot serve the demand; None where it can be tried.
        run: The measured run it is.
        evicts: It is an engine that is tried without reservations too, but evicts instead of reserving.
    """

    name: str
    basis: Basis
    gpu: str
    precision: str
    tensor_parallel: int
    manifest: EngineManifest | None = None
    interval: Interval = Interval()
    interval_source: str = ""
    calibration: str | None = None
    refused: str | None = None
    run: MeasuredRun | None = None
    evicts: bool = False
    sources: tuple[Source, ...] = ()

    @property
    def pair(self) -> tuple[str, str, int]:
        """What has to be alike for one basis to beat another."""
        return self.gpu, self.precision, self.tensor_parallel


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
        raise UserError("candidates: none requested", hint="set planned: true, or name engines or runs")
    return found


def _planned(demand: Demand, shape: LengthProfile, known: list[_Known], made_by: MadeBy) -> Iterator[Candidate]:
    limits, choices = demand.limits, demand.candidates
    for gpu, precision, tensor in product(limits.gpu_names, limits.precisions, limits.tensor_parallel):
        seen: set[str] = set()
        pair = (gpu_named(gpu).name, precision, tensor)
        for batch, tokens in product(choices.max_batch_size, choices.max_num_tokens):
            made = _plan(demand, shape, pair, (batch, tokens), made_by)
            for each in _by_policy(made, demand, shape):
                key = each.name if each.manifest is not None else each.refused or ""
                if key not in seen:
                    seen.add(key)
                    yield _with_calibration(each, known)


def _by_policy(made: Candidate, demand: Demand, shape: LengthProfile) -> Iterator[Candidate]:
    """Yield an engine by each scheduler policy to be tried.

    Where what is reserved never keeps a slot empty, no request is ever evicted either, and the policies are one.
    """
    manifest = made.manifest
    if manifest is None:
        yield made
        return
    asked = demand.candidates.scheduler_policy
    policies: tuple[SchedulerPolicy, ...] = (asked,) if asked != "auto" else ("guaranteed_no_evict",)
    reserved = min(shape.mean_isl + shape.max_tokens, manifest.limits.max_seq_len)
    slots = manifest.kv_cache.blocks * manifest.kv_cache.tokens_per_block / reserved
    if manifest.runtime.scheduler_policy != "guaranteed_no_evict":  # as its engine always does
        policies = (manifest.runtime.scheduler_policy,)
    elif asked == "auto" and slots < manifest.limits.max_batch_size:
        policies = ("guaranteed_no_evict", "max_utilization")
    for policy in policies:
        runtime = manifest.runtime.model_copy(update={"scheduler_policy": policy})
        name = made.name + (EVICTING if policy == "max_utilization" else "")
        changed = {"name": name, "manifest": manifest.model_copy(update={"runtime": runtime})}
        yield made.model_copy(update={**changed, "evicts": len(policies) > 1 and policy == "max_utilization"})


def _plan(
    demand: Demand,
    shape: LengthProfile,
    pair: tuple[str, str, int],
    limits: tuple[int | str, int | str],
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
        "workload.longest_output_tokens": shape.max_tokens,
        **_plan_objectives(demand),
    }
    refused: str | None = None
    try:
        asked = resolve_recipe(None, {key: value for key, value in flags.items() if value != "auto"})
        plan = make_plan(asked, head=Document(made_by=made_by))
        manifest = emulated_manifest(plan, asked.recipe)
    except (UserError, TargetMissedError) as error:
        refused = f"{error.message}; {error.hint}" if error.hint else error.message
        name = _name(gpu, precision, tensor)
        return Candidate(
            name=name, basis="predicted", gpu=gpu, precision=precision, tensor_parallel=tensor, refused=refused
        )
    return _of_manifest(manifest)


def _plan_objectives(demand: Demand) -> dict[str, float]:
    """Return what the planner's own search is to keep: the demand's limits as its steady state knows them.

    Limits come from the middle of the prediction: an engine made for its unfavourable end would be too small for all
    that is likely.
    """
    wanted = demand.objectives
    itl = wanted.itl_s or wanted.tpot_s
    found: dict[str, float] = {}
    if wanted.ttft_s:
        found["objectives.ttft_s"] = max(wanted.ttft_s.values())
    if itl:
        found["objectives.itl_s"] = min(itl.values())
    if wanted.itl_s:
        found["objectives.longest_gap_s"] = max(wanted.itl_s.values())
    return found


def _name(gpu: str, precision: str, tensor: int) -> str:
    return f"{gpu} {precision}" + (f" tp{tensor}" if tensor > 1 else "")


def _of_manifest(manifest: EngineManifest, sources: tuple[Source, ...] = ()) -> Candidate:
    manifest = _with_prior(manifest)
    interval, provenance = _uncalibrated(manifest)
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
        interval=interval,
        interval_source=provenance,
        sources=sources,
    )


def _with_prior(manifest: EngineManifest) -> EngineManifest:
    """Return an engine's manifest with what its profile expects of a deployment that nobody has measured."""
    choice = manifest.step_time
    if choice.profile is not None or choice.calibration is not None:
        return manifest
    profile = engine_profile_named(DEFAULT_ENGINE_PROFILE)
    factors = profile.factors_on(manifest.gpu, manifest.model)
    changed = StepTimeChoice(source=choice.source, profile=profile.name, factors=factors, host=profile.host)
    return manifest.model_copy(update={"step_time": changed})


def _uncalibrated(manifest: EngineManifest) -> tuple[Interval, str]:
    """Return both ends of a prediction that no measurement of its own stands behind, and where they come from."""
    profile = engine_profile_named(manifest.step_time.profile or DEFAULT_ENGINE_PROFILE)
    found = uncertainty(profile, precision=manifest.precision.name)
    slow, fast = Slowdown(found.step_high, found.host_high), Slowdown(found.step_low, found.host_low)
    return Interval(slow, fast), found.provenance


def _calibrated(calibration: Calibration) -> Interval:
    """Return both ends of a calibrated prediction, from its errors on what it had not seen."""
    worst = max(calibration.log_error.get("tokens_per_s", 0.0), calibration.log_error.get("itl_s", 0.0))
    factor = math.exp(ONE_SIDED_95 * worst)
    return Interval(Slowdown(factor, factor), Slowdown(1 / factor, 1 / factor))


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
                    "interval": _calibrated(each),
                    "interval_source": f"{path}: its errors on points it had not seen",
                    "calibration": str(path),
                    "sources": (*candidate.sources, source),
                }
            )
    return candidate


def _measured(folder: Path, run: MeasuredRun) -> Candidate:
    path = folder / run.path
    if not (path / RUN_NAME).is_file():
        raise MissingError(f"{path}: not a run folder: no {RUN_NAME} in it", hint="give a run folder of run-load")
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
