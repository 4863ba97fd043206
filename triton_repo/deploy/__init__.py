"""Deployment files of a model repository: Docker Compose, Kubernetes, Prometheus, Grafana."""

from triton_repo.deploy.plan import Deployment, DeploymentPlan, plan_deployment
from triton_repo.deploy.render import render_deployment
from triton_repo.deploy.scaling import read_law, require_planned_engine

__all__ = ["Deployment", "DeploymentPlan", "plan_deployment", "read_law", "render_deployment", "require_planned_engine"]
