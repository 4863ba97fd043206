"""What was once a traceback, or passed for a success: each is refused in one line that says what is wrong."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from tests.attack.examples import CLOSED
from tests.attack.victim import Victims

PLAN = "build-engine --precision fp8 --emulate --dry-run"
PREDICT = "predict-load engine --osl 4"
SERVE = "serve-repo repository --tritonserver nothing"
REFUSED = {
    f"{PLAN} --tp 3": "32 attention heads and 8 KV heads",
    f"{PLAN} --max-batch-size 0": "--max-batch-size: must be greater than or equal to 1",
    f"{PLAN} --max-batch-size 1e30": "'1e30' is not a whole number",
    f"{PLAN} --isl 1000000000": "less than or equal to 16777216",
    f"{PLAN} --ttft-ms inf": "inf is not a number from",
    "predict-load --model llama-3-8b --gpu h100-sxm-80gb --precision fp8 --isl 8 --osl 4 --concurrency 1 "
    "--max-batch-size 0": "'--max-batch-size': 0 is not in the range x>=1",
    "calibrate-engine --measurements points.csv --model llama-3-8b --gpu h100-sxm-80gb --precision fp8 "
    "--max-num-tokens 0": "'--max-num-tokens': 0 is not in the range x>=1",
    "find-knee engine --objective ttft_s.p95=1 --isl 8 --osl 4 --max-requests 0": "0 is not in the range x>=1",
    "find-knee engine --objective a,b": "--objective a,b: expected QUANTITY.STATISTIC=SECONDS",
    "find-knee engine --objective ttft_s.p95=1,itl_s.p99=1": "one --objective for each limit",
    "find-knee engine --objective ttft_s=1": "statistics: mean, p50, p90, p95, p99, p999, max",
    "find-knee engine --objective ttft_s.p95=1 --objective ttft_s.p95=2": "ttft_s.p95 is given twice",
    "find-knee engine --objective ttft_s.p95=1 --from 10 --to 5": "--from 10 is above --to 5",
    "find-knee engine --objective ttft_s.p95=1 --from 0": "0.0 is not in the range x>0",
    "find-knee engine --objective ttft_s.p95=1 --by concurrency --to 3.7": "--to 3.7: a number of users is whole",
    "find-knee engine --objective errors_ratio=2": "--objective errors_ratio=2: must be less than or equal to 1",
    f"{PREDICT} --isl 8 --concurrency 1 --max-batch-size 4 --tp 2": "--tp, --max-batch-size: not with an engine folder",
    f"{PREDICT} --isl 1e9 --concurrency 1": "a number from 0 to 16,777,216 is expected",
    "predict-load engine --scenario digits.yaml": "a number from 0 to 16,777,216 is expected",
    f"{PREDICT} --isl 8 --rate inf": "'--rate': inf is not a number from",
    f"{PREDICT} --isl 8 --rate nan": "--rate nan",
    f"{PREDICT} --isl 8 --concurrency 10000000": "less than or equal to 65536",
    f"{PREDICT} --isl 8 --concurrency 1 --scenario loop": "loop",
    f"{PREDICT} --isl 8191 --requests 2 --concurrency 1": "none of 2 measured requests would succeed",
    "predict-load engine --scenario late.yaml": "'at_s' is '1e308'",
    f"{SERVE} --address=": "--address: it is empty",
    f"{SERVE} --address ::1": "--address ::1: not an IPv4 address",
    f"{SERVE} --address ..": "--address ..: not an IPv4 address",
    f"{SERVE} --http-port 70000": "70000 is not in the range 1<=x<=65535",
    f"{SERVE} --http-port 0": "0 is not in the range 1<=x<=65535",
    f"{SERVE} --http-port 8001": "--http-port and --grpc-port are both 8001",
    f"{SERVE} --openai --openai-port 8002": "--metrics-port and --openai-port are both 8002",
    f"{SERVE} --openai --openai-port 9137 --api-key-file latin1": "latin1: not UTF-8 text",
    f"{SERVE} --openai --openai-port 9137 --api-key-file pipe": "pipe: is a device, a pipe or a socket",
    "build-repo /proc/self/mem --out out": "/proc/self/mem",
    "build-repo engine --tokenizer tokenizer --serving pipe --out out": "pipe: is a device, a pipe or a socket",
    "build-repo engine --tokenizer tokenizer --serving loop --out out": "loop: cannot be read: Too many levels",
    "build-deployment trace.csv/x --out out": "trace.csv/x",
    "build-engine --precision fp8 --checkpoint checkpoint --calibration-text pipe --until checkpoint --out out": (
        "pipe: is a device, a pipe or a socket"
    ),
    "unpack-checkpoint huge.gguf --out out": "9,223,372,036,854,775,808 tensors",
    "describe-machine --out . --dry-run": "--out .: --gpu takes a .yaml file",
    "evaluate-engine --url http:// --model x --tokenizer tokenizer --tasks gsm8k": "no host given",
    "evaluate-engine engine --tasks gsm8k": "an emulated engine answers with made-up text, which has no accuracy",
    "evaluate-engine --tasks gsm8k": "nothing to evaluate",
    "run-load --url http://[::1 --isl 8 --osl 4 --out out": "Invalid IPv6 URL",
    "run-load --url http://a..b --isl 8 --osl 4 --out out": "label empty or too long",
    "run-load --url http://127.0.0.1:0 --isl 8 --osl 4 --out out": "no server listens on port 0",
    "run-load --repeat 1000000000 --out out": "1000000000 is not in the range 1<=x<=1000",
    "run-load --workers 65535 --out out": "--workers 65535: at most ",
    "run-load --worker --master-host example.invalid --within 1": "--master-host example.invalid: Name or service",
    "run-load --worker --master-host a..b --within 1": "--master-host a..b: encoding with 'idna' codec failed",
    "run-load --master --expect-workers 1 --bind a..b --isl 8 --osl 4 --out out": "--bind a..b: encoding with 'idna'",
    "build-repo engine --engine-url http://[::1 --out out": "not of the form http://HOST:PORT",
    "calibrate-engine": "no measurements were given",
    "check-repo engine": "engine: an engine folder, not a model repository",
    "calibrate-engine --measurements points.csv --gpu h100-sxm-80gb --precision fp8 --model llama-3-8b --force "
    "--out engine/plan.json": "engine/plan.json is part of",
    f"run-load --url {CLOSED} --tokenizer tokenizer --isl 8 --osl 4 --out out": "127.0.0.1",
}
# Each command that writes, and the most a file may grow to: its disk is then full.
FULL_DISK = {
    "build-engine --precision fp8 --emulate --out out": 4096,
    "build-repo engine --tokenizer tokenizer --out out": 4096,
    "build-deployment repository --out out": 4096,
    "predict-load engine --isl 8 --osl 4 --concurrency 1 --requests 50 --out out": 4096,
    "report-load run --out out": 16_384,
    "find-knee engine --objective ttft_s.p95=1 --isl 8 --osl 4 --max-requests 64 --out out": 1024,
    "plan-capacity demand.yaml --workers 1 --fresh --out out": 4096,
    "calibrate-engine --measurements points.csv --model llama-3-8b --gpu h100-sxm-80gb --precision fp8 --out c": 512,
}


@pytest.mark.parametrize(("line", "complaint"), REFUSED.items(), ids=REFUSED)
def test_is_refused_in_one_line(line: str, complaint: str, victims: Victims, examples: Path) -> None:
    """What the issue lists, each with what its one line says."""
    (examples / "huge.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 63, 1 << 63))
    (examples / "late.csv").write_text("at_s,isl,osl\n0,8,4\n1e308,8,4\n")
    (examples / "late.yaml").write_text("arrivals: {process: trace, path: late.csv}\n")
    (examples / "digits.yaml").write_text(f"concurrency: [1]\nlengths: {{isl: 8, osl: {'9' * 400}}}\n")
    name, *words = line.split()
    ended = victims.run(name, words, examples)
    assert ended.status in {1, 2}, ended
    assert ended.broken(name) is None, ended
    assert complaint in ended.said


@pytest.mark.parametrize(("line", "max_bytes"), FULL_DISK.items(), ids=FULL_DISK)
def test_a_full_disk_ends_in_one_line(line: str, max_bytes: int, victims: Victims, examples: Path) -> None:
    """Nothing half-written is left where the disk cannot take a file, and the line says so."""
    name, *words = line.split()
    ended = victims.run(name, words, examples, file_bytes=max_bytes)
    has_out = (examples / "out").exists()
    shutil.rmtree(examples / "out", ignore_errors=True)
    assert ended.status == 1, ended
    assert ended.broken(name) is None, ended
    assert "File too large" in ended.said
    assert not has_out
