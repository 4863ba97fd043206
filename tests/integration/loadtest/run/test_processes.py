"""The processes that send the load: watched, and gone with the command."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from engines.errors import ToolError
from loadtest.client.endpoint import Endpoint
from loadtest.generator.plan import GeneratorPlan
from loadtest.run.processes import GeneratorProcesses, Generators
from loadtest.scenario.schema import Scenario


def _program(folder: Path, text: str) -> Path:
    """Return a script to run in the generator's place."""
    path = folder / "program.py"
    path.write_text("import json, os, sys, time\n" + text)
    return path


def _plan() -> GeneratorPlan:
    return GeneratorPlan(
        endpoint=Endpoint(host="h", port=1, protocol="triton-http"),
        scenario=Scenario(),
        prompts="p",
        records="r",
        under_way="u",
        began_monotonic_s=0.0,
    )


def _pids(generators: Generators) -> list[int]:
    """Return the process ids, the one that writes the records first."""
    return [process.pid for process in generators._running]


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_what_a_generator_says_is_heard_in_order(tmp_path: Path) -> None:
    """It is given its plan as one line, and each line of its answer is one thing said."""
    text = "plan = json.loads(input())\nprint(json.dumps({'host': plan['endpoint']['host']}))\nprint('{\"n\": 2}')\n"
    with Generators(GeneratorProcesses(), tmp_path, _program(tmp_path, text)) as generators:
        generators.begin(_plan(), "measured")
        assert list(generators.lines(within_s=20)) == [{"host": "h"}, {"n": 2}]


def test_a_failed_generator_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    """Its exit status and the end of its log are in the message."""
    program = _program(tmp_path, "input()\nsys.exit('the reason why')\n")
    with Generators(GeneratorProcesses(), tmp_path, program) as generators:
        generators.begin(_plan(), "measured")
        with pytest.raises(ToolError, match=r"(?s)exit status 1.*the reason why"):
            list(generators.lines(within_s=20))


def test_a_crashed_worker_is_named_with_its_last_words(tmp_path: Path) -> None:
    """The master ends well and only says that the worker was lost; why is in the worker's own log."""
    text = (
        "if sys.argv[1] == 'master': print('{\"port\": 77}', flush=True); input(); sys.exit()\n"
        "print('the reason why', file=sys.stderr, flush=True)\nos.abort()\n"
    )
    with Generators(GeneratorProcesses(workers=1), tmp_path, _program(tmp_path, text)) as generators:
        assert next(generators.lines(within_s=20)) == {"port": 77}
        generators._workers[0].wait(timeout=20)
    assert generators.failed_workers() == ["a worker process; ended by SIGABRT", "  | the reason why"]


def test_a_silent_generator_is_not_waited_for(tmp_path: Path) -> None:
    """One that hangs, even one that is stopped, is given up and killed."""
    with Generators(GeneratorProcesses(), tmp_path, _program(tmp_path, "input()\ntime.sleep(60)\n")) as generators:
        generators.begin(_plan(), "measured")
        os.kill(_pids(generators)[0], signal.SIGSTOP)
        began_s = time.monotonic()
        with pytest.raises(ToolError, match=r"no message from the load generator for 0\.5 s"):
            list(generators.lines(within_s=0.5))
    assert _gone(_pids(generators)[0])
    assert time.monotonic() - began_s < 30


def test_generators_end_when_their_input_does(tmp_path: Path) -> None:
    """Told to stop they may still say how it ended; none outlives the command, workers included."""
    text = 'for line in sys.stdin: pass\nprint(\'{"ended": "told"}\')\n'
    with Generators(GeneratorProcesses(), tmp_path, _program(tmp_path, text)) as generators:
        generators.stop()
        assert list(generators.lines(within_s=20)) == [{"ended": "told"}]
    text = "print('{\"port\": 77}', flush=True)\nfor line in sys.stdin: print(line, file=sys.stderr, flush=True)\n"
    with Generators(GeneratorProcesses(workers=2), tmp_path, _program(tmp_path, text)) as generators:
        generators.begin(_plan(), "measured")
        deadline_s = time.monotonic() + 20
        while not all((tmp_path / f"generator-{n}.log").stat().st_size for n in range(3)):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    assert len(_pids(generators)) == 3
    assert all(_gone(pid) for pid in _pids(generators))
    for worker in (1, 2):
        assert (tmp_path / f"generator-{worker}.log").read_text().split() == ["127.0.0.1", "77", "60"]
    assert (tmp_path / "generator-0.log").read_text().split()[-1] == "measured"


def test_one_process_is_the_default() -> None:
    """No master, no second process, unless asked for."""
    assert not GeneratorProcesses().has_master
    assert GeneratorProcesses().processes == 1
    assert GeneratorProcesses(workers=3).processes == 3
    assert GeneratorProcesses(expected=2).has_master


def test_no_test_process_imports_locust() -> None:
    """What directs the generators does not load what they load: Locust patches the whole process."""
    assert "locust" not in sys.modules
