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
    (tmp_path / "manifest.json").touch()
    with pytest.raises(SystemExit) as ended:
        serve_repo.main([str(tmp_path), "--stop", "--drain-within", "0", "--json", "-v"])
    assert ended.value.code == 0


@pytest.mark.parametrize(
    ("folder", "status", "said"), [("missing", 1, "no such folder"), ("", 2, "not a model repository")]
)
def test_stop_names_a_folder_that_is_no_repository(
    tmp_path: Path, folder: str, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A misspelled folder is an error: its server may still be running elsewhere."""
    with pytest.raises(SystemExit) as ended:
        serve_repo.main([str(tmp_path / folder), "--stop"])
    assert ended.value.code == status
    assert said in capsys.readouterr().err
