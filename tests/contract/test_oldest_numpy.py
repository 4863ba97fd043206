"""What this project takes of NumPy is in the oldest version that it allows: TensorRT-LLM's image has NumPy 1."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# The models' Python of the local Triton has NumPy 1 too, for the stub of the wheel.
PYTHON = Path(sys.prefix) / "opt" / "triton" / "py" / "bin" / "python"
_MISSING = """
import functools, json, sys
import numpy, numpy.random, numpy.typing
assert numpy.__version__.startswith("1.26"), numpy.__version__
missing = []
for name in json.load(sys.stdin):
    try:
        functools.reduce(getattr, name.split(".")[1:], numpy)
    except AttributeError:
        missing.append(name)
print(json.dumps(missing))
"""


def _names_in(source: Path) -> Iterator[str]:
    """Yield the names of NumPy that a file takes, as `np.random.Generator` or by `from numpy import`."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "numpy":
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        names: list[str] = []
        base = node
        while isinstance(base, ast.Attribute):
            names.insert(0, base.attr)
            base = base.value
        if names and isinstance(base, ast.Name) and base.id == "np":
            depth = 2 if names[0] in {"random", "linalg", "typing", "lib"} else 1
            yield ".".join(("numpy", *names[:depth]))


def test_every_name_of_numpy_is_in_its_oldest_version() -> None:
    """`numpy.trapezoid`, new in NumPy 2, had failed in the image where power readings were averaged."""
    if not PYTHON.is_file():
        pytest.skip("the local Triton is not installed: make setup, or install-triton")
    sources = [each for room in ("engines", "loadtest", "triton_repo") for each in (ROOT / room).rglob("*.py")]
    names = sorted({name for source in sources for name in _names_in(source)})
    assert {"numpy.array", "numpy.random.Generator"} <= set(names)
    asked = json.dumps([*names, "numpy.trapezoid"])
    done = subprocess.run([PYTHON, "-c", _MISSING], input=asked, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["numpy.trapezoid"]
