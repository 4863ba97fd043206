"""The Dockerfile, as far as it can be judged without a container engine."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from engines.build.trtllm import CONTAINER_TAGS, container_image
from triton_repo.deploy.plan import PORTS

DOCKERFILE = Path(__file__).parents[2] / "Dockerfile"
LAST_WITH_ENGINES = max(CONTAINER_TAGS, key=lambda version: [int(part) for part in version.split(".")])


def test_hadolint_finds_nothing() -> None:
    """The linter passes every instruction and every shell line in it."""
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_holds_the_last_version_with_engines() -> None:
    """The pinned tag is the one that `build-engine` names for that version."""
    tag = CONTAINER_TAGS[LAST_WITH_ENGINES]
    assert f"ARG TRITON_TAG={tag}-trtllm-python-py3" in DOCKERFILE.read_text()


def test_it_runs_as_nobody_in_particular_and_says_when_it_is_ready() -> None:
    """After the last USER comes no other, it is not root, and a health check asks Triton's own readiness."""
    text = DOCKERFILE.read_text()
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users
    assert users[-1] not in {"root", "0"}
    assert "HEALTHCHECK" in text
    assert "/v2/health/ready" in text


def test_deployments_run_the_image_that_the_dockerfile_builds_on() -> None:
    """Compose and Kubernetes name the Dockerfile's base image, the ports it exposes, and the home that it sets."""
    text = DOCKERFILE.read_text()
    tag = re.findall(r"^ARG TRITON_TAG=(\S+)$", text, re.MULTILINE)
    base = re.findall(r"^FROM (nvcr\.io\S+):\$\{TRITON_TAG\}$", text, re.MULTILINE)
    assert [f"{name}:{label}" for name, label in zip(base, tag, strict=True)] == [container_image(LAST_WITH_ENGINES)]
    exposed = re.findall(r"^EXPOSE (.+)$", text, re.MULTILINE)[0].split()
    assert set(map(str, PORTS.values())) <= set(exposed)
    (home,) = re.findall(r"\bHOME=(\S+)", text)
    templates = DOCKERFILE.parent / "triton_repo" / "deploy" / "templates"
    assert f"HOME: {home}\n" in (templates / "compose.yaml.j2").read_text()
    assert f"{{name: HOME, value: {home}}}" in (templates / "kubernetes" / "deployment.yaml.j2").read_text()


def test_what_the_image_copies_is_sent_to_its_build() -> None:
    """.dockerignore leaves out everything but what it names."""
    sent = {line[1:] for line in DOCKERFILE.with_name(".dockerignore").read_text().splitlines() if line.startswith("!")}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
    copied = {name for copy in copies for name in copy.split()}
    assert "engines" in copied
    assert copied <= sent
