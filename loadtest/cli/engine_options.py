"""The engine that a prediction describes, from a manifest or from flags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.calibration import Calibration, read_calibration, require_match
from engines.console import command_line
from engines.files import Document, made_by, sha256_of
from engines.manifest import EngineManifest, StepTimeChoice, read_manifest
from engines.planning import PYTORCH_SPECULATION, emulated_manifest, make_plan, rates_of, resolve_recipe
from engines.spec import engine_profile_named
from loadtest.simulate import calibrated
from loadtest.traffic import LengthStats


def calibration_of(path: Path | None) -> Calibration | None:
    """Read a calibration; None if no file is given."""
    return None if path is None else read_calibration(path)


def engine_of(
    flags: dict[str, Any], engine_dir: Path | None, known: Calibration | None, lengths: list[LengthStats]
) -> EngineManifest:
    """Return the engine of a folder, or plan one for the given lengths, with step times as flags or calibration say."""
    manifest = planned(flags, known, lengths) if engine_dir is None else read_manifest(engine_dir)
    manifest = manifest.model_copy(update={"step_time": _with_step_time(manifest, flags)})
    if known is None:
        return manifest
    require_match(
        known,
        gpu=manifest.gpu.name,
        precision=manifest.precision.name,
        tensor_parallel=manifest.parallel.tensor,
        path=flags["calibration"],
    )
    return calibrated(manifest, known, sha256_of(flags["calibration"]))


def _with_step_time(manifest: EngineManifest, flags: dict[str, Any]) -> StepTimeChoice:
    """Return an engine's step-time settings, overridden by flags."""
    choice = manifest.step_time
    if flags.get("engine_profile") is not None:
        profile = engine_profile_named(flags["engine_profile"])
        choice = StepTimeChoice.expected(choice.source, profile, manifest.placed)
    return choice.model_copy(update={"source": flags["step_time"] or choice.source})


def _speculative(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's keys of speculative decoding; the methods of the LLM API need its backend."""
    mode = flags.get("speculative")
    keys = {
        "speculative.mode": mode,
        "speculative.draft_model": flags.get("draft_model"),
        "speculative.max_draft_len": flags.get("max_draft_len"),
        "speculative.max_total_draft_tokens": flags.get("max_total_draft_tokens"),
        "speculative.acceptance": rates_of(flags.get("acceptance")),
    }
    return keys | ({"backend": "pytorch"} if mode in PYTORCH_SPECULATION else {})


def planned(flags: dict[str, Any], known: Calibration | None, lengths: list[LengthStats]) -> EngineManifest:
    """Plan an engine for the given lengths. Limits come from flags, else from the calibration."""
    engine = None if known is None else known.engine
    by_flag = {
        "model": flags["model_name"],
        "gpu": flags["gpu"],
        "precision": flags["precision"],
        "parallel.tensor": flags["tp"],
        "engine_profile": flags.get("engine_profile"),
        "step_time": flags["step_time"],
        "kv_cache.format": flags["kv_cache"] or (known.kv_cache if known else None),
        "limits.max_batch_size": flags["max_batch_size"] or (engine.max_batch_size if engine else None),
        "limits.max_num_tokens": flags["max_num_tokens"] or (engine.max_num_tokens if engine else None),
        **_speculative(flags),
    }
    by_lengths = {
        "limits.max_seq_len": max(each.longest for each in lengths),
        "workload.longest_isl": max(each.longest_isl for each in lengths),
        "workload.longest_osl": max(each.longest_osl for each in lengths),
        "workload.isl": round(max(each.isl for each in lengths)),
        "workload.osl": round(max(each.osl for each in lengths)),
    }
    resolved = resolve_recipe(None, by_flag | by_lengths, typed=by_flag)
    plan = make_plan(resolved, head=Document(made_by=made_by(command_line("predict-load"))))
    return emulated_manifest(plan, resolved.recipe)
