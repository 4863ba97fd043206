"""Triton's ModelConfig: tritonclient's own file of it, read without the package around that file.

The package imports gRPC and NumPy, which is half of the time that checking a repository takes.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import Any

_NAME = "tritonclient.grpc.model_config_pb2"


def _loaded() -> ModuleType:
    """Return the module under its own name, so that an import of the package later finds the same one."""
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError("No module named 'tritonclient'", name="tritonclient")
    path = f"{found.submodule_search_locations[0]}/grpc/model_config_pb2.py"
    spec = importlib.util.spec_from_file_location(_NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return sys.modules.setdefault(_NAME, module)


_pb2: Any = _loaded()
ModelConfig: Any = _pb2.ModelConfig
DataType: Any = _pb2.DataType
