"""The Kubernetes manifest that the how-to hands out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from loadtest.cli.run_load import run_load
from loadtest.scenario.schema import Scenario

MANIFEST = Path(__file__).parents[2] / "docs" / "how-to" / "load-from-several-machines.yaml"
DOCUMENTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text()))


def _named(kind: str, name: str) -> dict[str, Any]:
    return next(each for each in DOCUMENTS if (each["kind"], each["metadata"]["name"]) == (kind, name))


def _arguments(job: str) -> dict[str, str]:
    """Return the flags of a job's container, each with its value; the command must take them."""
    command, *flags = _named("Job", job)["spec"]["template"]["spec"]["containers"][0]["args"]
    assert command == "run-load"
    known = {name for option in run_load.params if isinstance(option, click.Option) for name in option.opts}
    found = dict(flag.partition("=")[::2] for flag in flags)
    assert set(found) <= known
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_the_manifest_is_valid(document: dict[str, Any]) -> None:
    """Every document holds to Kubernetes' own schema, without a key it does not know."""
    kubernetes_validate.validate(document, "1.31", strict=True)


def test_master_and_workers_find_each_other() -> None:
    """As many workers come as are waited for, at the service, port and labels of the master."""
    master, worker = _arguments("load-master"), _arguments("load-worker")
    service, policy = _named("Service", "load-master")["spec"], _named("NetworkPolicy", "load-master")["spec"]
    workers = _named("Job", "load-worker")["spec"]
    assert int(master["--expect-workers"]) == workers["parallelism"] == workers["completions"]
    assert worker["--master-host"] == "load-master"
    assert int(master["--port"]) == int(worker["--port"]) == service["ports"][0]["port"]
    assert policy["ingress"][0]["ports"][0]["port"] == int(master["--port"])
    labels = _named("Job", "load-master")["spec"]["template"]["metadata"]["labels"]
    assert service["selector"] == policy["podSelector"]["matchLabels"] == labels
    allowed = policy["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    assert allowed == workers["template"]["metadata"]["labels"]


def test_a_lost_worker_is_not_replaced() -> None:
    """Neither the run nor a worker is begun again by the cluster: it would be another load."""
    for job in ("load-master", "load-worker"):
        spec = _named("Job", job)["spec"]
        assert spec["backoffLimit"] == 0
        assert spec["template"]["spec"]["restartPolicy"] == "Never"


def test_the_scenario_is_one() -> None:
    """What the manifest's scenario asks for is understood."""
    values = yaml.safe_load(_named("ConfigMap", "load-scenario")["data"]["scenario.yaml"])
    assert Scenario.model_validate(values).is_open
