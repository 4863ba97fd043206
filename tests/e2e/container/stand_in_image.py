"""An environment that stands in for the Dockerfile's image: made as the Dockerfile says, on what NVIDIA's image has.

What NVIDIA's image has is here a folder of packages outside the environment, which its Python sees: those that
TensorRT-LLM 1.2 requires, the real ModelOpt 0.37, transformers 4.57 and a numpy below 2 among them. Torch is that of
the tests' own environment. Programs that need a GPU are the stand-ins of this folder.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
HERE = Path(__file__).parent
CONTRACT = ROOT / "tests" / "contract"
LIMIT_S = 600
VERSION = "1.2.1"
# requirements.txt of TensorRT-LLM 1.2, as far as the tests' own environment has them; what they require comes along.
BROUGHT = (
    "accelerate", "click", "datasets", "diffusers", "einops", "jsonschema", "matplotlib", "mpmath", "ninja",
    "nvidia-ml-py", "omegaconf", "openai", "pandas", "peft", "pillow", "psutil", "pulp", "pydantic", "pyzmq",
    "safetensors", "scipy", "sentencepiece", "setuptools", "starlette", "tiktoken", "tokenizers", "torch", "uvicorn",
)  # fmt: skip
# The same file's pins, and what goes with them (numpy below 2), where the tests' own environment has otherwise.
PINNED = (
    "nvidia-modelopt==0.37.0", "transformers==4.57.3", "huggingface-hub<1", "numpy==1.26.4", "torchprofile==0.0.4",
    "datasets==3.1.0", "diffusers==0.35.2", "pandas==2.3.3", "pyarrow==22.0.0", "pytz==2025.2",
)  # fmt: skip
# Environments of `make setup`: the pins that they have are linked from there, compiled already; pip installs the rest.
SET_UP = tuple(Path(sys.prefix) / "opt" / name for name in ("modelopt-0.37", "triton/py"))
EITHER = ("protobuf", "grpcio")  # the two that the Dockerfile lets move


@dataclass(frozen=True)
class Image:
    """The environment, and where it lies.

    Attributes:
        home: Folder with `bin` and `lib`, and what the image keeps elsewhere: `examples`, `all_models`, `backends`.
        brought: Version of each package of NVIDIA's image, before ours was installed.
    """

    home: Path
    brought: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        """Return the environment of the container's processes: the Dockerfile's ENV, and nothing of the tests' own."""
        stated = dict(each.split("=", 1) for line in dockerfile("ENV") for each in shlex.split(line))
        home = self.home / "user"
        home.mkdir(exist_ok=True)
        path = f"{self.home / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "LANG"))}
        # "no" turns --no-compile on: of an option that is a negation, pip reads the value of what it negates.
        pip = {"PIP_NO_COMPILE": "no"}
        return {**kept, **stated, **pip, "HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"}

    def run(self, command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run a line of shell in the environment."""
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],
            cwd=cwd,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


def dockerfile(instruction: str) -> list[str]:
    """Return the arguments of each instruction of a kind in the Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    return re.findall(rf"^{instruction} (.*)$", text, re.MULTILINE)


def make_image(home: Path, local_triton: Path) -> Image:
    """Make NVIDIA's image, as far as it can be without a GPU, and install our wheel in it as the Dockerfile does."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    site = next(home.glob("lib/python3*/site-packages"))
    packages = home / "dist-packages"
    packages.mkdir()
    _bring_pinned(packages)
    _link_packages(packages, BROUGHT)
    (site / "image.pth").write_text(str(packages))
    _write_programs(home, packages, local_triton)
    image = Image(home, _versions(home))
    _install_wheel(image)
    return image


def installed(image: Image) -> dict[str, str]:
    """Return every package the environment's Python sees, with its version."""
    return _versions(image.home)


def _versions(home: Path) -> dict[str, str]:
    listed = subprocess.run(
        [home / "bin" / "pip", "list", "--format=freeze"], check=True, capture_output=True, text=True
    )
    pairs = (line.split("==", 1) for line in listed.stdout.splitlines() if "==" in line)
    return {str(canonicalize_name(name)): version for name, version in pairs}


def _install(arguments: Iterable[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True, timeout=LIMIT_S)


def _bring_pinned(target: Path) -> None:
    """Link the pinned packages that another environment has in that version; install the others."""
    missing = []
    for pin in PINNED:
        found = _set_up(Requirement(pin))
        if found is None:
            missing.append(pin)
        else:
            _link(target, found)
    _install(["--no-deps", "--no-compile", "--target", str(target), *missing])


def _set_up(pin: Requirement) -> metadata.Distribution | None:
    places = [str(home / "lib" / f"python3.{sys.version_info.minor}" / "site-packages") for home in SET_UP]
    found = metadata.distributions(name=pin.name, path=places)
    return next((each for each in found if pin.specifier.contains(each.version)), None)


def _install_wheel(image: Image) -> None:
    """Do what the Dockerfile does with pip, line by line: build the wheel from what is copied, then install it."""
    source, wheels = image.home / "source", image.home / "wheels"
    source.mkdir()
    for line in dockerfile("COPY"):
        *names, target = line.split()
        if names[0].startswith("--from"):
            continue
        for name in names:
            into = source / target if (ROOT / name).is_dir() else source / Path(name).name
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
            copy(ROOT / name, into)
    steps = [line for line in dockerfile("RUN") if "pip" in line]
    assert len(steps) == 3, "the Dockerfile builds the wheel, installs it, installs the small checkpoint"
    for step in steps:
        # This machine's cache is used; the build backend is the tests' own; paths of the image are the environment's.
        command = step.replace("--no-cache-dir ", "").replace("/tmp/wheels", str(wheels))
        if "pip wheel" in step:
            command = command.replace("pip wheel", f"{shlex.quote(sys.executable)} -m pip wheel --no-build-isolation")
        done = image.run(command, source)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def _link_packages(target: Path, names: Iterable[str]) -> None:
    """Link packages of the tests' environment, and what they require, into a folder; what is there already stays."""
    waiting, seen = list(names), {str(canonicalize_name(Requirement(pin).name)) for pin in PINNED}
    waiting += [found for pin in PINNED for found in _required(target, pin)]
    while waiting:
        name = str(canonicalize_name(waiting.pop()))
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        waiting += _needed(distribution)
        _link(target, distribution)


def _link(target: Path, distribution: metadata.Distribution) -> None:
    for top in {Path(str(file)).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
        source = Path(str(distribution.locate_file(top)))
        if source.exists() and not (target / top).exists():
            (target / top).symlink_to(source)


def _required(folder: Path, pin: str) -> list[str]:
    name = Requirement(pin).name
    (distribution,) = metadata.distributions(name=name, path=[str(folder)])
    return _needed(distribution)


def _needed(distribution: metadata.Distribution) -> list[str]:
    requirements = [Requirement(text) for text in distribution.requires or ()]
    return [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]


def _write_programs(home: Path, packages: Path, local_triton: Path) -> None:
    """Put the stand-ins where the image has what they stand in for."""
    python = home / "bin" / "python3"
    facts = CONTRACT / "trtllm_interface.yaml"
    programs: dict[str, tuple[Path, list[str]]] = {
        "trtllm-build": (HERE / "trtllm_build.py", [str(facts)]),
        "trtllm-serve": (HERE / "trtllm_serve.py", []),
        "tritonserver": (HERE / "tritonserver.py", [str(local_triton)]),
        "nvidia-smi": (HERE / "nvidia_smi.py", []),
    }
    for name, (script, arguments) in programs.items():
        _write_script(home / "bin" / name, [str(python), str(script), *arguments])
    _link_packages(packages, ["pip"])
    _write_script(home / "bin" / "pip", [str(python), "-m", "pip", "--disable-pip-version-check"])
    examples = home / "examples"
    (examples / "models" / "core" / "qwen").mkdir(parents=True)
    shutil.copyfile(HERE / "run.py", examples / "run.py")
    converter = examples / "models" / "core" / "qwen" / "convert_checkpoint.py"
    shutil.copyfile(HERE / "convert_checkpoint.py", converter)
    (home / "backends" / "tensorrtllm").mkdir(parents=True)
    _write_tensorrt_llm(packages)
    _write_templates(home / "all_models" / "inflight_batcher_llm")


def _write_script(path: Path, words: list[str]) -> None:
    path.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    path.chmod(0o755)


def _write_tensorrt_llm(packages: Path) -> None:
    facts = packages / f"tensorrt_llm-{VERSION}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: {VERSION}\n")
    models = packages / "tensorrt_llm" / "models"
    models.mkdir(parents=True)
    (packages / "tensorrt_llm" / "__init__.py").write_text(f'__version__ = "{VERSION}"\n')
    shutil.copyfile(HERE / "tensorrt_llm_models_init.py", models / "__init__.py")
    shutil.copyfile(HERE / "tensorrt_llm_modeling_utils.py", models / "modeling_utils.py")


def _write_templates(folder: Path) -> None:
    """Write the image's own templates as far as the facts have them: tensors, and the engine's parameters."""
    facts = yaml.safe_load((CONTRACT / "triton_interface.yaml").read_text())
    for model in ("preprocessing", "postprocessing", "tensorrt_llm", "ensemble", "tensorrt_llm_bls"):
        text = [f'name: "{model}"']
        for kind in ("input", "output"):
            for name, line in facts[model][f"{kind}s"].items():
                text.append(f'{kind} [ {{ name: "{name}" data_type: TYPE_{line.split()[0]} dims: [ -1 ] }} ]')
        keys = facts["parameters"].get(model, ())
        text += [f'parameters {{ key: "{key}" value {{ string_value: "${{{key}}}" }} }}' for key in keys]
        (folder / model).mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text("\n".join(text))
