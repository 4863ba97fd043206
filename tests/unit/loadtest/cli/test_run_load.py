"""Flags of `run-load` that would have no effect."""

from __future__ import annotations

import pytest

from loadtest.cli.run_load import run_load


@pytest.mark.parametrize("flag", ["--concurrency=3", "--scenario=chat", "--out=run", "--master", "--url=http://h:1"])
def test_a_worker_takes_no_flag_of_a_load(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its load comes from the master; the flag would be ignored, and the worker would wait for its time limit."""
    with pytest.raises(SystemExit) as ended:
        run_load.main(["--worker", "--port", "9", "--within", "0", flag])
    assert ended.value.code == 2
    name = flag.partition("=")[0]
    assert f"--worker: {name} has no effect, because the load comes from the master" in capsys.readouterr().err


def test_a_worker_without_a_master_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """The flags of a worker pass, and the missing master is what is reported."""
    with pytest.raises(SystemExit) as ended:
        run_load.main(["--worker", "--port", "9", "--within", "0", "-v", "--master-host", "127.0.0.1"])
    assert ended.value.code == 1
    assert "no master answered at 127.0.0.1:9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "needed"),
    [
        (["--web-port", "9000"], "--web-ui"),
        (["--web-ui-linger", "5"], "--web-ui"),
        (["--bind", "127.0.0.1"], "--master"),
        (["--within", "5"], "--master"),
        (["--master-host", "h"], "--worker"),
    ],
)
def test_a_flag_without_the_one_that_it_needs_is_refused(
    flags: list[str], needed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be ignored: no page at that port, no worker at that address."""
    with pytest.raises(SystemExit) as ended:
        run_load.main(flags)
    assert ended.value.code == 2
    assert f"{flags[0]} has no effect without {needed}" in capsys.readouterr().err
