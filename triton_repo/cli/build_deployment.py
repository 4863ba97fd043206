"""The command `build-deployment`: its flags and its help."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console

FOLDER = click.Path(path_type=Path)
GROUPS = {
    "Deployment": ("--name", "--namespace", "--image", "--claim", "--replicas", "--max-replicas"),
    "Autoscaling": ("--autoscaling", "--prometheus-url"),
    "Objectives and timing": ("--ttft-objective", "--longest-reply", "--drain-before"),
}


@click.command(
    "build-deployment",
    cls=console.Command,
    groups=GROUPS,
    example="build-deployment artifacts/repositories/NAME --replicas 2",
)
@click.argument("repository", type=FOLDER)
@click.option(
    "--name",
    default=None,
    help="Name of all deployed resources.  [default: the repository folder's name, as far as naming rules allow]",
)
@click.option("--namespace", default="inference", show_default=True, help="Kubernetes namespace.")
@click.option(
    "--image",
    default="auto",
    show_default=True,
    help="Server image. auto: NVIDIA's image with the engine's TensorRT-LLM version.",
)
@click.option(
    "--claim", default="auto", show_default=True, help="PersistentVolumeClaim with the models. auto: NAME-models."
)
@click.option("--replicas", type=int, help="Minimum number of replicas.  [default: 2, or the plan's]")
@click.option(
    "--max-replicas", type=int, help="Maximum number of replicas for the autoscaler.  [default: 4, or the plan's]"
)
@click.option("--autoscaling", type=FOLDER, help="Control law of a capacity plan: its autoscaling.json.")
@click.option("--prometheus-url", help="Prometheus that KEDA queries.  [default: the Prometheus operator's]")
@click.option(
    "--longest-reply",
    "longest_reply_s",
    type=float,
    help="Duration of the longest reply, in seconds.  [default: predicted]",
)
@click.option(
    "--ttft-objective",
    "ttft_objective_s",
    default=2.0,
    show_default=True,
    help="Alert threshold for the time to the first response, in seconds.",
)
@click.option(
    "--drain-before",
    "drain_before_s",
    default=10,
    show_default=True,
    help="Seconds to keep serving before draining.",
)
@console.writing_flags
@console.common_flags
def build_deployment(**flags: Any) -> None:
    """Write the deployment files of a model repository: Docker Compose, Kubernetes, Prometheus, Grafana.

    The files match the engine: an image with its TensorRT-LLM version, its number of GPUs, a grace period for its
    longest reply, alerts at its limits. Default output: artifacts/deployments/NAME.
    """
    from triton_repo.cli.actions.build_deployment import run

    run(**flags)
