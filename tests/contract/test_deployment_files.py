"""Deployment files against what reads them: Kubernetes' schemas, Compose, a shell."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest

from engines.build.trtllm import container_image
from tests.deployments import KINDS, load_yaml
from tests.facts import read_facts

FACTS: dict[str, Any] = read_facts(Path(__file__).parent / "deployment_facts.yaml")
KUBERNETES = "1.31"
CRDS = {"servicemonitor", "prometheusrule"}
NOT_OBJECTS = {"prometheus-adapter"}


def _everything(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _everything(inner)


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_strict_yaml_or_json(rendered: dict[str, Path], kind: str) -> None:
    """No key twice, no tab, no trailing space, an end of line at the end."""
    files = [path for path in rendered[kind].rglob("*") if path.suffix in {".yaml", ".yml", ".json"}]
    assert len(files) == 18
    for path in files:
        load_yaml(path)
        text = path.read_text()
        assert text.endswith("\n"), path
        assert not re.search(r"\t|[ \t]+$", text, re.MULTILINE), path


@pytest.mark.parametrize("kind", KINDS)
def test_kubernetes_takes_its_manifests(rendered: dict[str, Path], kind: str) -> None:
    """Every object of Kubernetes' own passes its published schema, unknown fields refused."""
    checked = set()
    for path in (rendered[kind] / "kubernetes").rglob("*.yaml"):
        if path.stem not in CRDS | NOT_OBJECTS:
            kubernetes_validate.validate(load_yaml(path), KUBERNETES, strict=True)
            checked.add(load_yaml(path)["kind"])
    assert checked == {
        "ConfigMap", "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "NetworkPolicy"
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(CRDS))
def test_the_operators_objects_have_its_shape(rendered: dict[str, Path], name: str) -> None:
    """Kubernetes' schemas do not know them: held to the fields of the operator's reference."""
    jsonschema.validate(load_yaml(rendered["built"] / f"kubernetes/monitoring/{name}.yaml"), FACTS[name])


def test_objects_name_each_other(rendered: dict[str, Path]) -> None:
    """Selectors, volumes, ports and the autoscaler's target lead to objects that are there."""
    folder = rendered["built"] / "kubernetes"
    objects = {path.stem: load_yaml(path) for path in folder.rglob("*.yaml") if path.stem not in NOT_OBJECTS}
    pod = objects["deployment"]["spec"]["template"]
    labels = pod["metadata"]["labels"]
    for name, where in (("service", "selector"), ("poddisruptionbudget", "selector"), ("networkpolicy", "podSelector")):
        selector = objects[name]["spec"][where]
        assert (selector.get("matchLabels") or selector).items() <= labels.items(), name
    ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
    assert {port["targetPort"] for port in objects["service"]["spec"]["ports"]} == ports
    assert {endpoint["port"] for endpoint in objects["servicemonitor"]["spec"]["endpoints"]} <= ports
    assert (
        objects["horizontalpodautoscaler"]["spec"]["scaleTargetRef"]["name"]
        == objects["deployment"]["metadata"]["name"]
    )
    mounted = {mount["name"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {each["metadata"]["namespace"] for each in objects.values()} == {"inference"}


@pytest.mark.parametrize("kind", KINDS)
def test_pods_are_hardened(rendered: dict[str, Path], kind: str) -> None:
    """Nobody's root, nothing to write but memory and /tmp, no capability, no token: the restricted standard."""
    pod = load_yaml(rendered[kind] / "kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/tmp", "/dev/shm"}
    assert not [
        key for each in _everything(pod) if isinstance(each, dict) for key in each if key in {"hostPath", "privileged"}
    ]


@pytest.mark.parametrize(("kind", "gpus"), [("emulated", None), ("built", 1), ("two-gpus", 2)])
def test_gpus_are_the_engines(rendered: dict[str, Path], kind: str, gpus: int | None) -> None:
    """As many as it has ranks, of the compute capability it was built for, in Kubernetes and in Compose; or none."""
    pod = load_yaml(rendered[kind] / "kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
    node = {"nvidia.com/gpu.compute.major": "9", "nvidia.com/gpu.compute.minor": "0"}
    assert pod.get("nodeSelector") == (node if gpus else None)
    triton = load_yaml(rendered[kind] / "compose.yaml")["services"]["triton"]
    devices = triton.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices")
    assert devices == ([{"driver": "nvidia", "count": gpus, "capabilities": ["gpu"]}] if gpus else None)
    assert triton["image"] == pod["containers"][0]["image"] == container_image("1.2.1")


def test_a_pod_lives_until_its_longest_reply_is_done(rendered: dict[str, Path]) -> None:
    """The grace covers announcing, draining and exit; the hook's own limits are those it was computed from."""
    pod = load_yaml(rendered["built"] / "kubernetes/deployment.yaml")["spec"]["template"]["spec"]
    plan = json.loads((rendered["built"] / "manifest.json").read_text())
    hook = pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    before, within = (int(hook[hook.index(flag) + 1]) for flag in ("--before", "--within"))
    assert within >= plan["longest_reply_s"] > 60
    assert plan["longest_reply_from"] == "predicted"
    assert pod["terminationGracePeriodSeconds"] == before + within + 15


def test_compose_uses_keys_that_exist_and_loopback_only(rendered: dict[str, Path]) -> None:
    """Every key is the specification's; no port is published elsewhere; no secret stands in the file."""
    compose = load_yaml(rendered["built"] / "compose.yaml")
    assert set(compose) == {"name", "services", "volumes"}
    assert set(compose["services"]) == {"triton", "prometheus", "grafana"}
    for service in compose["services"].values():
        assert set(service) <= set(FACTS["compose_service_keys"])
        assert set(service.get("healthcheck", {})) <= set(FACTS["compose_healthcheck_keys"])
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        for volume in service["volumes"]:
            if isinstance(volume, dict):
                assert set(volume) == set(FACTS["compose_bind_keys"])
                assert volume["read_only"]
                if volume["source"].startswith("./"):
                    assert (rendered["built"] / volume["source"]).exists()
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert not [value for value in service.get("environment", {}).values() if re.fullmatch(r"[0-9a-f]{16,}", value)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_script_is_one_a_shell_reads(rendered: dict[str, Path], kind: str) -> None:
    """Its syntax holds; a built engine is refused under another version, before Triton is started."""
    script = rendered[kind] / "server" / "serve.sh"
    subprocess.run(["sh", "-n", str(script)], check=True)
    if kind != "emulated":
        done = subprocess.run(
            ["sh", str(script)],
            env={"PATH": "/usr/bin:/bin", "TMPDIR": str(script.parent)},
            capture_output=True,
            text=True,
            check=False,
        )
        (script.parent / "admin.key").unlink()
        assert done.returncode == 2
        assert "was built by TensorRT-LLM 1.2.1, this image holds none" in done.stderr


def test_two_ranks_are_two_servers_of_which_one_listens(rendered: dict[str, Path]) -> None:
    """MPI starts one for each rank; the first has the ports, the other the engine's model alone."""
    script = (rendered["two-gpus"] / "server" / "serve.sh").read_text().replace("\\\n", " ")
    (line,) = [line for line in script.splitlines() if line.startswith("mpirun")]
    first, second = re.split(r"\s':'\s|\s:\s", line)
    assert "--http-port" in first
    assert "--load-model=tensorrt_llm" in second
    assert all(f"--allow-{each}=false" in second for each in ("http", "grpc", "metrics"))


def test_pods_run_the_script_that_was_tested(rendered: dict[str, Path]) -> None:
    """The ConfigMap holds the very files of server/."""
    held = load_yaml(rendered["built"] / "kubernetes/configmap.yaml")["data"]
    assert held == {path.name: path.read_text() for path in (rendered["built"] / "server").iterdir()}
