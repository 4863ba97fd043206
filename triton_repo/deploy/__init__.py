"""Deployment files of a model repository: Docker Compose, Kubernetes, Prometheus, Grafana."""

from triton_repo.deploy.plan import Deployment, DeploymentPlan, plan_deployment
from triton_repo.deploy.render import render_deployment

__all__ = ["Deployment", "DeploymentPlan", "plan_deployment", "render_deployment"]
