"""Deployment files of a model repository: Docker Compose, Kubernetes, Prometheus, Grafana."""
