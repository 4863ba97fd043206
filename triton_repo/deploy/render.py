"""Write a deployment's folder."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import jinja2
import yaml

from engines.autoscaling import Controller
from engines.files import write_json, write_text
from engines.outputs import whole_folder
from engines.units import GIB
from triton_repo.deploy.dashboard import DATASOURCE, dashboard_json
from triton_repo.deploy.monitoring import rules_document, scaling
from triton_repo.deploy.plan import DeploymentPlan
from triton_repo.deploy.scaling import behavior, keda_query
from triton_repo.server import control

PLAN_NAME = "manifest.json"
PASSWORDS_NAME = ".env"
# Versions whose files these are; newer ones read them too. Prometheus's own rules are tested with Debian's 2.42.
IMAGES = {"prometheus": "prom/prometheus:v2.53.0", "grafana": "grafana/grafana:11.1.0"}
_VARIABLE = re.compile(r"^[^$`\"\\\\]*(\$key|\$\{[A-Z_]+:-\d+\}|\$@)$")
KUBERNETES = (
    "configmap", "deployment", "service", "poddisruptionbudget", "horizontalpodautoscaler", "networkpolicy",
    "monitoring/servicemonitor", "monitoring/prometheusrule", "monitoring/prometheus-adapter", "monitoring/dashboard",
)  # fmt: skip


def render_deployment(plan: DeploymentPlan, out: Path, *, force: bool) -> None:
    """Write every file of a deployment; the folder appears whole or not at all, with the passwords of the replaced one.

    Raises:
        UserError: `out` exists and `force` is not set.
    """
    environment = _environment()
    values = _values(plan)
    with whole_folder(out, made_by=plan.made_by, force=force, users=(PASSWORDS_NAME,)) as folder:
        write_json(folder / PLAN_NAME, plan)
        script = environment.get_template("serve-trtllm.sh.j2" if values["serve"] else "serve.sh.j2").render(values)
        write_text(folder / "server" / "serve.sh", script)
        if not values["serve"]:
            shutil.copyfile(control.__file__, folder / "server" / "control.py")
        values["scripts"] = {path.name: path.read_text("utf-8") for path in sorted((folder / "server").iterdir())}
        rules = yaml.safe_dump(rules_document(plan), sort_keys=False, width=120)
        values |= {"rules": rules, "dashboard": dashboard_json(plan)}
        write_text(folder / "prometheus" / "rules.yml", rules)
        write_text(folder / "grafana" / "dashboard.json", values["dashboard"])
        for template, target in _targets(plan).items():
            write_text(folder / target, environment.get_template(template).render(values))
        for path in (folder / "server").iterdir():
            path.chmod(0o644)  # read by the container's own user


def _targets(plan: DeploymentPlan) -> dict[str, str]:
    """Return the file that each template becomes."""
    targets = {
        "compose.yaml.j2": "compose.yaml",
        "prometheus.yml.j2": "prometheus/prometheus.yml",
        "grafana/datasource.yaml.j2": "grafana/provisioning/datasources/prometheus.yaml",
        "grafana/dashboards.yaml.j2": "grafana/provisioning/dashboards/dashboards.yaml",
    }
    targets |= {f"kubernetes/{name}.yaml.j2": f"kubernetes/{name}.yaml" for name in KUBERNETES}
    return targets if plan.scaling is None else targets | _scalers(plan.scaling.law.controller)


def _scalers(controller: Controller) -> dict[str, str]:
    """Return the files of both controllers: the simulated law's is applied with the rest, the other stands apart."""
    files = {"hpa": "horizontalpodautoscaler.yaml", "keda": "scaledobject.yaml"}
    return {
        f"kubernetes/{file}.j2": f"kubernetes/{'' if name == controller else 'alternative/'}{file}"
        for name, file in files.items()
    }


def _law_values(plan: DeploymentPlan) -> dict[str, Any]:
    """Return what the templates say of a simulated control law."""
    if plan.scaling is None:
        return {"law": None}
    found = plan.scaling
    cold = found.cold_start
    note = (
        f"simulated for {found.row}: {found.missed_minutes:g} of {found.simulated_minutes:g} minutes miss an "
        f"objective, {found.gpu_hours:g} GPU hours; a replica starts in {cold.total_s:g} s ({cold.source})"
    )
    return {
        "law": found.law,
        "law_note": note if found.law.controller == "hpa" else f"{note}; follows one metric of all replicas",
        "behavior": behavior(found.law),
        "keda_query": keda_query(found.law, plan.deployment.name),
        "threshold": f"{found.law.target:g}",
    }


def _values(plan: DeploymentPlan) -> dict[str, Any]:
    return {
        **_law_values(plan),
        "plan": plan,
        "name": plan.deployment.name,
        "namespace": plan.deployment.namespace,
        "serve": plan.variant == "trtllm_serve",
        "metrics": plan.metrics,
        "command": _in_shell(plan.command),
        "images": IMAGES,
        "datasource": DATASOURCE,
        "scaling": scaling(plan),
        "capability": plan.compute_capability.split("."),
        "memory": f"{plan.memory_bytes // GIB}Gi",
        "shm": f"{plan.shm_bytes // GIB}Gi",
    }


def _in_shell(command: list[str]) -> str:
    """Return a command line as a shell reads it, the script's variables left to it and nothing else.

    >>> print(_in_shell(["serve", "--load=*", "--in=/$HOME", "--key=$key"]).replace(chr(92), "+"))
    serve +
        '--load=*' +
        '--in=/$HOME' +
        "--key=$key"
    """
    return " \\\n    ".join(f'"{part}"' if _VARIABLE.search(part) else shlex.quote(part) for part in command)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("triton_repo.deploy", "templates"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters["q"] = json.dumps  # a JSON string is a YAML string and, without $ or `, a shell string too
    return environment
