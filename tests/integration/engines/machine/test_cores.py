"""Cores asked for, and work pinned to them."""

from __future__ import annotations

import os

import pytest

from engines.errors import UserError
from engines.machine.cores import available_cores, parse_cores, run_pinned


def test_pinned_work_has_the_cores_and_as_many_threads() -> None:
    """The operating system says where the work ran; its libraries were told one thread a core."""
    core = available_cores()[-1:]
    assert run_pinned(core, os.sched_getaffinity, 0) == set(core)
    assert run_pinned(core, os.getenv, "OPENBLAS_NUM_THREADS") == "1"


@pytest.mark.parametrize("text", ["", "a", "1-", "3-1", "0,9", "-1", "4"])
def test_cores_that_are_not_there_are_refused(text: str) -> None:
    """A list that is none, a range backwards, a core beyond the last."""
    with pytest.raises(UserError, match="--cores"):
        parse_cores(text, (0, 1, 2))


def test_a_core_that_is_not_available_is_named() -> None:
    """Of a container's cores 0 and 2, core 1 is none."""
    with pytest.raises(UserError, match="core 1 is not available"):
        parse_cores("0-2", (0, 2))
