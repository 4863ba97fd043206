"""The Dockerfile, as far as it can be judged without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from engines.build.trtllm import CONTAINER_TAGS, LAST_ENGINE_VERSION

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"


def test_hadolint_finds_nothing() -> None:
    """The linter passes every instruction and every shell line in it."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_holds_the_last_version_with_engines() -> None:
    """The pinned tag is the one that `build-engine` names for that version."""
    tag = CONTAINER_TAGS[".".join(str(part) for part in LAST_ENGINE_VERSION)]
    assert f"ARG TRITON_TAG={tag}-trtllm-python-py3" in DOCKERFILE.read_text()


def test_it_runs_as_nobody_in_particular_and_says_when_it_is_ready() -> None:
    """After the last USER comes no other, it is not root, and a health check asks Triton's own readiness."""
    text = DOCKERFILE.read_text()
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users
    assert users[-1] not in {"root", "0"}
    assert "HEALTHCHECK" in text
    assert "/v2/health/ready" in text
