"""Flags of `serve-repo` that exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_repo.cli.serve_repo import serve_repo


def test_stop_refuses_what_it_ignores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A port names no server to stop: the repository's own is stopped. How long it may drain is kept."""
    with pytest.raises(SystemExit) as ended:
        serve_repo.main([str(tmp_path), "--stop", "--http-port", "9000"])
    assert ended.value.code == 2
    assert "--stop: --http-port has no effect" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        serve_repo.main([str(tmp_path), "--stop", "--drain-within", "0", "--json", "-v"])
    assert ended.value.code == 0
