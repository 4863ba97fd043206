"""Candidates for a demand: planned engines, existing engines, measured runs; each with the basis of its figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Literal, NamedTuple

from engines.calibration import Calibration, read_calibration
from engines.emulator import SchedulerPolicy
from engines.errors import TargetMissedError, UserError
from engines.files import Document, MadeBy, Source, Strict, source_of
from engines.manifest import MANIFEST_NAME, EngineManifest, StepTimeChoice, read_manifest
from engines.planning import (
    PYTORCH_SPECULATION,
    BuildPlan,
    SpeculativeChoices,
    emulated_manifest,
    make_plan,
    resolve_recipe,
)
from engines.spec import DEFAULT_ENGINE_PROFILE, ModelSpec, engine_profile_named, resolve_gpu, resolve_model
from engines.steptime import Z_95, Slowdown, uncertainty
from loadtest.capacity.accuracy import CandidateAccuracy, Evaluations, evaluations_of
from loadtest.capacity.inputs import Demand, MeasuredRun
from loadtest.capacity.simulation import Interval, LengthProfile
from loadtest.results import REQUESTS_NAME, RUN_NAME, run_path
from loadtest.scenario import Goodput
from loadtest.simulate import calibrated

Basis = Literal["measured", "calibrated", "predicted", "emulated"]
# Basis of a row's figures, best first. `emulated` is a server around this project's own step times, or a calibration on
# one: it is not evidence about a GPU, and ranks below a plain prediction.
RANK: dict[Basis, int] = {"measured": 0, "calibrated": 1, "predicted": 2, "emulated": 3}
NO_LIMIT_S = 1e6  # an objective that the demand does not have; a recipe's are finite
EVICTING = " evicting"  # suffix for an engine that reserves no KV blocks


class Candidate(Strict):
    """One way to serve the demand, with replicas of one kind.

    Attributes:
        basis: What its figures are based on.
        manifest: The engine to simulate, with any calibration applied; None for a run, or if refused.
        interval: Both ends of the prediction interval, for step and host times; 1 for a measured run.
        interval_source: Origin of the interval.
        refused: Why it cannot serve the demand; None if it is to be searched.
        run: The measured run, if it is one.
        evicts: It is a variant of another candidate, with evictions instead of reservations.
        accuracy: What it loses against the baseline; None if that was not measured.
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
    accuracy: CandidateAccuracy | None = None
    sources: tuple[Source, ...] = ()

    @property
    def pair(self) -> tuple[str, str, int]:
        """The hardware and precision within which one basis outranks another."""
        return self.gpu, self.precision, self.tensor_parallel


class _Known(NamedTuple):
    path: Path
    calibration: Calibration


def candidates_of(demand: Demand, folder: Path, shape: LengthProfile, *, made_by: MadeBy) -> list[Candidate]:
    """Return every candidate, including those that cannot serve the demand, with the reason.

    Raises:
        MissingError, UserError: A named calibration, engine or run cannot be read, or the results of an evaluation; or
            the model to plan engines of is unknown, or has a shorter context than the demand's mean request.
    """
    choices = demand.candidates
    if choices.planned:
        _refuse_long(resolve_model(demand.model), shape)
    known = [_Known(folder / path, read_calibration(folder / path)) for path in choices.calibrations]
    found = list(_planned(demand, shape, known, made_by)) if choices.planned else []
    found += [_built(folder / path, shape, known) for path in choices.engines]
    found += [_measured(folder, run) for run in choices.runs]
    if not found:
        raise UserError("candidates: none requested", hint="set planned: true, or name engines or runs")
    evaluations = evaluations_of(demand, folder)
    return found if evaluations is None else [_with_accuracy(each, evaluations) for each in found]


def _refuse_long(model: ModelSpec, shape: LengthProfile) -> None:
    """Refuse requests of which a model's context holds few."""
    mean_tokens, most = shape.mean_isl + shape.mean_osl, model.max_position_embeddings
    if mean_tokens > most:
        raise UserError(
            f"prompts and replies have {mean_tokens:,.0f} tokens on average; the context of {model.name} is {most:,}",
            hint="shorten the demand's lengths, or plan a model with a longer context",
        )


def _with_accuracy(candidate: Candidate, evaluations: Evaluations) -> Candidate:
    """Return the candidate with what it loses, refused if that is more than the demand allows."""
    manifest = candidate.manifest
    found = evaluations.of(candidate.precision, None if manifest is None else manifest.precision.kv_cache)
    return candidate.model_copy(
        update={
            "accuracy": found,
            "refused": candidate.refused or evaluations.refusal(found),
            "sources": (*candidate.sources, *evaluations.sources),
        }
    )


def _planned(demand: Demand, shape: LengthProfile, known: list[_Known], made_by: MadeBy) -> Iterator[Candidate]:
    limits, choices = demand.limits, demand.candidates
    for gpu, precision, tensor in product(limits.gpu_names, limits.precisions, limits.tensor_parallel):
        seen: set[str] = set()
        pair = (gpu, precision, tensor)
        for speculative, batch, tokens in product(choices.speculative, choices.max_batch_size, choices.max_num_tokens):
            made = _plan(demand, shape, pair, (batch, tokens), speculative, made_by)
            for each in _by_policy(made, demand, shape):
                key = each.name if each.manifest is not None else each.refused or ""
                if key not in seen:
                    seen.add(key)
                    yield _with_calibration(each, known)


def _by_policy(made: Candidate, demand: Demand, shape: LengthProfile) -> Iterator[Candidate]:
    """Yield an engine once for each scheduler policy to try.

    If reservations never keep a slot empty, no request is ever evicted either, and the policies are equivalent.
    """
    manifest = made.manifest
    if manifest is None:
        yield made
        return
    requested = demand.candidates.scheduler_policy
    policies: tuple[SchedulerPolicy, ...] = (requested,) if requested != "auto" else ("guaranteed_no_evict",)
    reserved = min(shape.mean_isl + shape.max_tokens, manifest.limits.max_seq_len)
    slots = manifest.kv_cache.blocks * manifest.kv_cache.tokens_per_block / reserved
    if manifest.runtime.scheduler_policy != "guaranteed_no_evict":  # the engine's own policy
        policies = (manifest.runtime.scheduler_policy,)
    elif requested == "auto" and slots < manifest.limits.max_batch_size:
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
    speculative: Literal["none"] | SpeculativeChoices,
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
        "workload.isl": round(shape.mean_isl),
        "workload.osl": round(shape.mean_osl),
        "workload.longest_isl": shape.longest_isl,
        "workload.longest_osl": shape.max_tokens,
        **_speculative_keys(speculative),
        **_plan_objectives(demand),
    }
    refused: str | None = None
    try:
        requested = resolve_recipe(None, {key: value for key, value in flags.items() if value != "auto"})
        plan = make_plan(requested, head=Document(made_by=made_by))
        _require_predicted(plan)
        manifest = emulated_manifest(plan, requested.recipe)
    except (UserError, TargetMissedError) as error:
        refused = f"{error.message}; {error.hint}" if error.hint else error.message
        gpu = resolve_gpu(gpu).name
        return Candidate(
            name=_name(gpu, precision, tensor),
            basis="predicted",
            gpu=gpu,
            precision=precision,
            tensor_parallel=tensor,
            refused=refused,
        )
    return _of_manifest(manifest)


def _speculative_keys(speculative: Literal["none"] | SpeculativeChoices) -> dict[str, object]:
    """Return the recipe's keys of speculative decoding; the methods of the LLM API need its backend."""
    if speculative == "none":
        return {}
    values = speculative.model_dump(exclude_defaults=True)
    keys: dict[str, object] = {f"speculative.{name}": value for name, value in values.items()}
    return keys | ({"backend": "pytorch"} if speculative.mode in PYTORCH_SPECULATION else {})


def _require_predicted(plan: BuildPlan) -> None:
    """Refuse a plan whose speculation no figure would include.

    Raises:
        UserError: It has one.
    """
    text = next((notice.text for notice in plan.notices if notice.code == "speculative-not-predicted"), None)
    if text is not None:
        raise UserError(text, hint="candidates.speculative: acceptance, one rate for each position")


def _plan_objectives(demand: Demand) -> dict[str, float]:
    """Return the limits for the engine planner's own search: those of the demand's limits that a steady state has.

    They apply at the middle of the prediction: an engine sized for its unfavourable end would be too small for most
    likely outcomes. What the demand does not limit, here too has no limit: a recipe's own defaults are no objectives of
    this demand, and a small GPU may miss them even with one request at a time.
    """
    wanted = demand.objectives
    itl = wanted.itl_s or wanted.tpot_s
    of_each = wanted.goodput or Goodput()
    found = {
        "objectives.ttft_s": max(wanted.ttft_s.values(), default=of_each.ttft_s or NO_LIMIT_S),
        "objectives.itl_s": min(itl.values(), default=of_each.tpot_s or NO_LIMIT_S),
    }
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
        name=f"{pair} b{limits.max_batch_size} t{limits.max_num_tokens}{_speculation_text(manifest)}",
        basis="predicted",
        gpu=manifest.gpu.name,
        precision=manifest.precision.name,
        tensor_parallel=tensor,
        manifest=manifest,
        interval=interval,
        interval_source=provenance,
        sources=sources,
    )


def _speculation_text(manifest: EngineManifest) -> str:
    found = manifest.speculative
    return "" if found is None else f" {found.method} {found.draft_len}"


def _with_prior(manifest: EngineManifest) -> EngineManifest:
    """Return an engine's manifest with the default engine profile, unless it has a profile or a calibration."""
    choice = manifest.step_time
    if choice.profile is not None or choice.calibration is not None:
        return manifest
    profile = engine_profile_named(DEFAULT_ENGINE_PROFILE)
    changed = StepTimeChoice.expected(choice.source, profile, manifest.placed)
    return manifest.model_copy(update={"step_time": changed})


def _uncalibrated(manifest: EngineManifest) -> tuple[Interval, str]:
    """Return both ends of an uncalibrated prediction's interval, and their origin."""
    profile = engine_profile_named(manifest.step_time.profile or DEFAULT_ENGINE_PROFILE)
    found = uncertainty(profile, precision=manifest.precision.name)
    return Interval(found.slow, found.fast), found.provenance


def _calibrated(calibration: Calibration) -> Interval:
    """Return both ends of a calibrated prediction's interval, from its held-out errors."""
    worst = max(calibration.log_error.get("tokens_per_s", 0.0), calibration.log_error.get("itl_s", 0.0))
    factor = math.exp(Z_95 * worst)
    return Interval(Slowdown(factor, factor), Slowdown(1 / factor, 1 / factor))


def _built(folder: Path, shape: LengthProfile, known: list[_Known]) -> Candidate:
    manifest = read_manifest(folder).model_copy(update={"accuracy": ()})  # the demand names what to compare
    made = _of_manifest(manifest, (source_of(folder / MANIFEST_NAME),))
    made = made.model_copy(update={"name": f"{made.name} ({folder.name})"})
    longest = manifest.limits.max_input_len
    if shape.longest_isl > longest:
        refused = f"prompts have up to {shape.longest_isl} tokens, but the engine was built for {longest}"
        return made.model_copy(update={"refused": refused})
    return _with_calibration(made, known)


def _with_calibration(candidate: Candidate, known: list[_Known]) -> Candidate:
    """Return the candidate with the calibration of its hardware and precision applied, if there is one."""
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
                    "interval_source": f"{path}: its held-out errors",
                    "calibration": str(path),
                    "sources": (*candidate.sources, source),
                }
            )
    return candidate


def _measured(folder: Path, run: MeasuredRun) -> Candidate:
    path = folder / run.path
    run_path(path)
    gpu = resolve_gpu(run.gpu).name
    return Candidate(
        name=f"{_name(gpu, run.precision, run.tensor_parallel)} ({path.name})",
        basis="measured",
        gpu=gpu,
        precision=run.precision,
        tensor_parallel=run.tensor_parallel,
        run=run.model_copy(update={"path": str(path)}),
        sources=tuple(source_of(path / name) for name in (RUN_NAME, REQUESTS_NAME)),
    )
