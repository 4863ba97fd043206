"""What holds for every test's process, and which tests share a worker."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest

from engines.start import GARBAGE_OBJECTS

# These quantize in their own process. ModelOpt's import takes 6 s of CPU time: one worker pays it for all of them.
IMPORT_MODELOPT = {
    "tests/contract/test_checkpoint_loads.py",
    "tests/contract/test_modelopt_generations.py",
    "tests/integration/engines/accuracy/test_evaluate.py",
    "tests/integration/engines/build/test_llmapi.py",
    "tests/integration/engines/checkpoint/test_quantize.py",
}

# These share `server` of tests/e2e/conftest.py, one for each worker that has any of them: 5 s of CPU time.
USE_ONE_SERVER = {
    "tests/e2e/test_hostile.py",
    "tests/e2e/test_operations.py",
    "tests/e2e/test_road.py",
    "tests/e2e/test_traffic.py",
    "tests/e2e/test_upstream_requests.py",
}
SHARING = dict.fromkeys(IMPORT_MODELOPT, "ModelOpt") | dict.fromkeys(USE_ONE_SERVER, "one server")

# Read as Hugging Face's libraries are imported, whichever test does it first: a data set is not looked for on the hub.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def pytest_configure() -> None:
    """Search for garbage as rarely as our commands do: tests call them in this process, whose heap is far larger."""
    gc.set_threshold(GARBAGE_OBJECTS)
    os.environ |= OFFLINE
    os.environ.pop("COLUMNS", None)  # of the terminal that runs the tests: tables would be as narrow


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of one file on one worker, as --dist loadfile does, and those of files that share something."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # noqa: PLC0415 (only where tests run in parallel)

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return SHARING.get(file, file)

    return Scheduling(config, log)
