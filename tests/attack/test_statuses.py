"""The exit status of a path: 1 where it is missing or cannot be read, 2 where something else is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attack.victim import Victims

RUN, ENGINE, REPOSITORY = "a run folder", "an engine folder", "a model repository"
# Each command line with a folder for @, and the kind that it wants.
FOLDERS = {
    "build-repo @ --out out": ENGINE,
    "predict-load @ --isl 8 --osl 4": ENGINE,
    "find-knee @ --isl 8 --osl 4 --objective ttft_s.p95=1 --out out": ENGINE,
    "evaluate-engine @": ENGINE,
    "report-load run --engine @ --gpu-price 2 --out out": ENGINE,
    "roll-engine repository @": ENGINE,
    "check-repo @": REPOSITORY,
    "serve-repo @ --tritonserver nothing": REPOSITORY,
    "build-deployment @ --out out": REPOSITORY,
    "roll-engine @ engine": REPOSITORY,
    "report-load @ --out out": RUN,
    "report-load --compare run @ --out out": RUN,
    "build-engine --precision fp8 --emulate --checkpoint @ --out out": "a checkpoint",
}
# Each command line with a file for @.
FILES = (
    "build-engine --precision fp8 --emulate --recipe @ --dry-run",
    "build-engine --precision fp8 --emulate --gpu @ --dry-run",
    "build-engine --precision fp8 --emulate --step-time-calibration @ --dry-run",
    "build-repo engine --tokenizer tokenizer --serving @ --out out",
    "serve-repo repository --tritonserver nothing --openai --openai-port 9137 --api-key-file @",
    "build-deployment repository --autoscaling @ --out out",
    "predict-load engine --scenario @",
    "predict-load engine --isl 8 --osl 4 --calibration @",
    "find-knee engine --isl 8 --osl 4 --objectives @ --out out",
    "report-load run --gate @ --out out",
    "report-load run --vendor mine --engine engine --prices @ --out out",
    "calibrate-engine --model llama-3-8b --gpu h100-sxm-80gb --precision fp8 --measurements @ --out out",
    "plan-capacity @ --out out",
    "plan-capacity --verify run --plan @",
    "unpack-checkpoint @ --out out",
)


def _run(victims: Victims, examples: Path, line: str, path: str) -> tuple[int | None, str]:
    name, *words = line.replace("@", path).split()
    ended = victims.run(name, words, examples)
    assert ended.broken(name) is None, ended
    return ended.status, ended.said.partition("error: ")[2]


@pytest.mark.parametrize(("line", "kind"), FOLDERS.items(), ids=FOLDERS)
def test_a_folder_of_another_kind_is_named_with_what_is_wanted(
    line: str, kind: str, victims: Victims, examples: Path
) -> None:
    """What it is, what is expected and what to give; a missing one is no usage error."""
    others = {"engine": ENGINE, "repository": REPOSITORY, "run": RUN}
    for other, is_kind in others.items():
        if is_kind != kind:
            status, said = _run(victims, examples, line, other)
            assert (status, said.partition("\n")[0]) == (2, f"{other}: {is_kind}, not {kind}")
            assert "hint: " in said
    status, said = _run(victims, examples, line, "keys.txt")
    assert status == 2
    assert said.startswith("keys.txt: is a file; expected")
    for path in ("missing", "loop"):
        assert _run(victims, examples, line, path)[0] == 1


@pytest.mark.parametrize("line", FILES)
def test_a_missing_file_is_a_failure_and_another_kind_a_usage_error(
    line: str, victims: Victims, examples: Path
) -> None:
    """Of files of the wrong kind: bytes that are no text."""
    (examples / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (examples / "circle.yaml").unlink(missing_ok=True)
    (examples / "circle.yaml").symlink_to("circle.yaml")
    statuses = [_run(victims, examples, line, path)[0] for path in ("missing.yaml", "circle.yaml", "bytes.yaml")]
    assert statuses == [1, 1, 2]
