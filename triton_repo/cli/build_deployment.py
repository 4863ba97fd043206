"""The commands of operations: build-deployment and roll-engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from engines import console

FOLDER = click.Path(path_type=Path)


@click.command("build-deployment", cls=console.Command)
@click.argument("repository", type=FOLDER)
@click.option("--name", default=None, help="Of everything deployed.  [default: the model's, as far as names allow]")
@click.option("--namespace", default="inference", show_default=True, help="Kubernetes namespace.")
@click.option(
    "--image", default="auto", show_default=True, help="Server image; auto: NVIDIA's with the engine's version."
)
@click.option(
    "--claim", default="auto", show_default=True, help="PersistentVolumeClaim with the models; auto: NAME-models."
)
@click.option("--replicas", default=2, show_default=True, help="Servers, at least.")
@click.option("--max-replicas", default=4, show_default=True, help="Servers the autoscaler may make of them.")
@click.option(
    "--longest-reply", "longest_reply_s", type=float, help="Seconds of the longest reply.  [default: predicted]"
)
@click.option(
    "--ttft-objective", "ttft_objective_s", default=2.0, show_default=True, help="Seconds to the first response: alert."
)
@click.option(
    "--drain-before", "drain_before_s", default=10, show_default=True, help="Seconds to go on serving at first."
)
@console.writing_flags
@console.common_flags
def build_deployment(**flags: Any) -> None:
    """Write the deployment of a model repository: Docker Compose, Kubernetes, Prometheus, Grafana.

    Everything is rendered for the engine at hand: the image with its TensorRT-LLM, its GPUs, time enough to drain its
    longest reply, alerts at its limits. Writes --out, by default artifacts/deployments/NAME.
    """
    from triton_repo.cli.actions.build_deployment import run

    run(**flags)
