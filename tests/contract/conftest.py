"""Deployments that several files of contract tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deployments import KINDS, rendered_deployment


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Render the deployment of each kind of engine."""
    return {kind: rendered_deployment(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}
