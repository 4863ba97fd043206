"""Environments of servers and clients by other authors, each in a folder of its own below the environment's `opt`.

`make servers` installs what is missing (5 GB; llama.cpp is compiled, six minutes on one core) and runs the tests.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engines.console import progress
from validation.real.vllm import require_vllm

OPT = Path(sys.prefix) / "opt"
# By folder: what pip installs there. LiteLLM after 1.108 asks for a package of its proxy that no index has.
REQUIREMENTS = {
    "litellm": ("litellm[proxy]==1.108.7",),
    "llama-cpp": ("llama-cpp-python[server]==0.3.36",),
    "transformers": ("transformers[serving]==5.19.0", "accelerate", "requests", "torch==2.13.0"),
}
VLLM = "vllm"
STAMP = ".installed"


def python_of(name: str) -> Path | None:
    """Return the Python of an environment; None if it is not installed."""
    python = OPT / name / "bin" / "python"
    return python if python.is_file() else None


def main() -> None:
    """Install every environment that is missing."""
    require_vllm(OPT / VLLM, may_install=True)
    for name, requirements in REQUIREMENTS.items():
        folder = OPT / name
        if (folder / STAMP).is_file():
            continue
        progress(f"installing {' '.join(requirements)} into {folder}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *requirements], check=True)
        (folder / STAMP).write_text("\n".join(requirements), encoding="utf-8")


if __name__ == "__main__":
    main()
