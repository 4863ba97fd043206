"""What the checks of one walk share: where things are, how commands are run, which server is up."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

from engines.errors import ToolError
from engines.files import one_line, read_json
from engines.http_fetch import FetchError, fetch
from engines.planning import BuildPlan
from engines.ports import free_ports
from triton_repo.gpu_check.processes import run_command

BUILD_LIMIT_S = 7200.0
SERVE_LIMIT_S = 900.0
HELP_LIMIT_S = 300.0
REPLY_LIMIT_S = 120.0
REPLY_LIMIT_BYTES = 1 << 24
# Small limits and a short calibration: the engine is to be right, not fast.
SMALL = {
    "--isl": 128,
    "--osl": 32,
    "--max-batch-size": 8,
    "--max-num-tokens": 1024,
    "--max-seq-len": 1024,
    "--calibration-samples": 16,
    "--calibration-tokens": 128,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a walk is asked for.

    Attributes:
        checkpoint: A Hugging Face checkpoint; None: SmolLM2, whose answer is known.
        precision: Of the engine.
        out: Folder of the report, the logs and all that is built.
    """

    checkpoint: Path | None
    precision: str
    out: Path


@dataclass(slots=True)
class Session:
    """The state of one walk.

    Attributes:
        link: The link being walked; names the log.
        url: HTTP address of the server that is up; None without one.
        metrics_url: Its metrics.
        build_error: Why build-engine ended, where it did after the compile stage.
    """

    settings: Settings
    version: str
    gpu: str = "auto"
    link: str = "start"
    url: str | None = None
    metrics_url: str | None = None
    build_error: ToolError | None = None
    _served: list[Path] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """Return the checkpoint's folder."""
        return self.settings.checkpoint or self.path("smollm2")

    @property
    def log(self) -> Path:
        """Return the log of the link being walked."""
        folder = self.settings.out / "logs"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / f"{self.link}.log"

    def path(self, name: str) -> Path:
        """Return where something that the walk makes is."""
        return self.settings.out / "made" / name

    def run(self, name: str, *arguments: object, limit_s: float = BUILD_LIMIT_S) -> str:
        """Run a command to completion and return its stdout. Raises as `run_command` does."""
        return run_command([name, *map(str, arguments)], log=self.log, limit_s=limit_s)

    def build_arguments(self, precision: str) -> list[object]:
        """Return the arguments of build-engine for a small engine of the checkpoint."""
        build_flags = {"--precision": precision, "--gpu": self.gpu, "--tensorrt-llm": self.version}
        return flat({"--checkpoint": self.checkpoint, **build_flags, **SMALL})

    def planned(self, precision: str, **more: object) -> BuildPlan:
        """Return the plan of an engine, by a dry run; `more` are flags, `_` for `-`."""
        flags = flat({f"--{name.replace('_', '-')}": value for name, value in more.items()})
        printed = self.run("build-engine", *self.build_arguments(precision), *flags, "--dry-run", "--json")
        path = self.path(f"plan-{self.link}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(printed, encoding="utf-8")
        return read_json(path, BuildPlan)

    def serve(self, repository: Path) -> None:
        """Start the server of a repository; serve-repo itself has it answer a request."""
        http, grpc, metrics = free_ports(3)
        ports = ["--http-port", http, "--grpc-port", grpc, "--metrics-port", metrics]
        limits = ["--ready-within", SERVE_LIMIT_S, "--stop-after", BUILD_LIMIT_S]
        self._served.append(repository)
        self.run("serve-repo", repository, *ports, *limits, "--detach", limit_s=SERVE_LIMIT_S + REPLY_LIMIT_S)
        self.url, self.metrics_url = f"http://127.0.0.1:{http}", f"http://127.0.0.1:{metrics}/metrics"

    def stop(self) -> None:
        """Stop every server that was started."""
        self.url = self.metrics_url = None
        while self._served:
            repository = self._served.pop()
            if repository.is_dir():
                self.run("serve-repo", repository, "--stop", limit_s=REPLY_LIMIT_S)


def flat(flags: dict[str, object]) -> list[object]:
    """Return flags and their values, one after the other.

    >>> flat({"--isl": 128, "--osl": 32})
    ['--isl', 128, '--osl', 32]
    """
    return [part for flag, value in flags.items() for part in (flag, value)]


def fetched(url: str, body: dict[str, Any] | None = None) -> str:
    """Return what a server answers; `body` makes it a POST of JSON.

    Raises:
        ToolError: It does not answer, or answers with an error.
    """
    data = None if body is None else json.dumps(body).encode()
    try:
        answer = fetch(urllib.request.Request(url, data), limit_s=REPLY_LIMIT_S, limit_bytes=REPLY_LIMIT_BYTES)
    except FetchError as error:
        raise ToolError(f"{url}: {error}") from error
    text = answer.body.decode(errors="replace")
    if answer.status != HTTPStatus.OK:
        raise ToolError(f"{url}: HTTP {answer.status}: {text[:300]}")
    return text


def fetched_object(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the JSON object that a server answers. Raises as `fetched` does, and if it answers with another value."""
    text = fetched(url, body)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ToolError(f"{url}: answered with something else than a JSON object: {one_line(text)!r}")
    return found
