"""Stands in for the tritonserver of NVIDIA's image: the real local Triton, with the emulated twin of the built engine.

Everything of the repository is served as it stands, but for the model that only NVIDIA's backend can load: in its place
comes what build-repo makes for the same engine, emulated. Flags and environment reach the real server unchanged.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ENGINE = "tensorrt_llm"
REPOSITORY = "--model-repository="


def twin_of(repository: Path) -> Path:
    """Return the folder of the twin, made anew beside the repository."""
    home = repository.parent / f"{repository.name}-twin"
    shutil.rmtree(home, ignore_errors=True)
    engine = home / "engine"
    engine.mkdir(parents=True)
    document = json.loads((repository / "manifest.json").read_text())
    manifest, logits = document["engine"], document["resolved"]["types"]["logits"]
    manifest |= {"kind": "emulated", "engine": None, "checkpoint": None, "tokenizer": "tokenizer"}
    (engine / "manifest.json").write_text(json.dumps(manifest))
    tokenizer = next(path for path in repository.rglob("tokenizer.json")).parent
    shutil.copytree(tokenizer, engine / "tokenizer")
    build = [str(Path(sys.executable).with_name("build-repo")), str(engine), "--out", str(home / "emulated")]
    subprocess.run([*build, "--set", f"types.logits={logits}"], check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(repository, home / "repository", ignore=shutil.ignore_patterns("server.*", ENGINE))
    shutil.copytree(home / "emulated" / ENGINE, home / "repository" / ENGINE)
    return home / "repository"


def main(local_triton: Path) -> None:
    """Become the real server."""
    from triton_repo.server import local_triton as local  # noqa: PLC0415 (of the environment under test)

    runtime = local.local_runtime(local_triton)
    (given,) = [word for word in sys.argv if word.startswith(REPOSITORY)]
    twin = twin_of(Path(given.removeprefix(REPOSITORY)))
    words = [f"{REPOSITORY}{twin}" if word == given else word for word in sys.argv[1:]]
    environment = {**os.environ, "PATH": f"{runtime.python_bin}:{os.environ['PATH']}"}
    environment["LD_LIBRARY_PATH"] = str(runtime.libraries)
    server = str(runtime.server)
    os.execve(server, [server, *words, f"--backend-directory={runtime.backends}"], environment)


if __name__ == "__main__":
    main(Path(sys.argv.pop(1)))
