"""The implementation of `build-deployment`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from engines import console
from engines.build import MODEL_YAML
from engines.files import made_by, to_json, validate
from engines.outputs import paths_named, refuse_existing
from triton_repo.audit import check_repository, read_config
from triton_repo.deploy import (
    Deployment,
    DeploymentPlan,
    plan_deployment,
    read_law,
    render_deployment,
    require_planned_engine,
)
from triton_repo.settings import read_repository


def run(repository: Path, **flags: Any) -> None:
    """Write the deployment files of a model repository: Docker Compose, Kubernetes, Prometheus, Grafana."""
    check_repository(repository)
    settings = {key: flags[key] for key in Deployment.model_fields if flags[key] is not None}
    typed = {key: f"--{key.removesuffix('_s').replace('_', '-')}" for key in settings}
    settings.setdefault("name", _name_from(repository.absolute().name))
    law_file = flags["autoscaling"]
    manifest = read_repository(repository)
    scaling = None if law_file is None else read_law(law_file, variant=manifest.variant)
    if scaling is not None:
        require_planned_engine(scaling, manifest.engine, path=law_file)
        settings = {"replicas": scaling.law.min_replicas, "max_replicas": scaling.law.max_replicas, **settings}
    plan = plan_deployment(
        repository,
        _engine_folder(repository),
        validate(settings, Deployment, where="flags", flags=typed),
        made_by=made_by(console.command_line("build-deployment")),
        scaling=scaling,
    )
    if flags["dry_run"]:
        console.show(to_json(plan).rstrip())
        return
    out = flags["out"] or Path("artifacts/deployments") / plan.deployment.name
    refuse_existing(out, force=flags["force"], inputs=[repository, *paths_named(flags)], command="build-deployment")
    render_deployment(plan, out, force=flags["force"])
    if flags["as_json"]:
        console.show(to_json(plan).rstrip())
        return
    _show_plan(plan)
    console.wrote(
        out,
        f"docker compose --file {console.quoted(out / 'compose.yaml')} up, "
        f"or kubectl apply --filename {console.quoted(out / 'kubernetes')}",
    )


def _name_from(folder: str) -> str:
    """Return a folder's name in the form that Kubernetes accepts.

    >>> _name_from("Qwen3_8B.fp8")
    'qwen3-8b-fp8'
    """
    name = "-".join(part for part in re.split(r"[^a-z0-9]+", folder.lower()) if part)
    return f"triton-{name}"[:40].rstrip("-") if not name[:1].isalpha() else name[:40].rstrip("-")


def _engine_folder(repository: Path) -> Path | None:
    """Return the folder of the engine, or of the checkpoint, that the `tensorrt_llm` model loads; None if unknown."""
    manifest = read_repository(repository)
    if manifest.variant == "trtllm_serve":
        return Path(manifest.loads) if manifest.loads else None
    of_llm_api = repository / "tensorrt_llm" / "1" / MODEL_YAML
    if of_llm_api.is_file():
        return Path(yaml.safe_load(of_llm_api.read_text(encoding="utf-8"))["model"])
    config = read_config(repository / "tensorrt_llm" / "config.pbtxt")
    path = config.parameters["gpt_model_path"].string_value
    return Path(path) if path else None


def _show_plan(plan: DeploymentPlan) -> None:
    console.show(f"{plan.model}: {plan.kind}")
    console.show(f"image {plan.image}, GPUs {plan.gpus}, memory {plan.memory_bytes / 2**30:.0f} GiB")
    console.show(f"longest reply {plan.longest_reply_s:g} s ({plan.longest_reply_from}); grace {plan.termination_s} s")
    for notice in plan.notices:
        console.say(f"notice: {notice}")
