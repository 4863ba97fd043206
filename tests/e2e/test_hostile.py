"""Malformed, oversized and malicious requests, over HTTP and gRPC: the server answers afterwards, and wrote nothing.

Cases are drawn from a seed. HOSTILE_CASES draws more of them than the suite does; HOSTILE_SEED others.
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server, start, succeed
from streams import Stream, text

pytestmark = pytest.mark.e2e
CASES = int(os.environ.get("HOSTILE_CASES", "1000"))
SEED = int(os.environ.get("HOSTILE_SEED", "1"))
ANSWERS_EVERY = 50
LIMIT_S = 5
MAX_BYTES = 48_000_000  # docs/explanation/security.md: past about 100 MB Triton 2.51 dies of a body
MODELS = ("ensemble", "tensorrt_llm_bls", "tensorrt_llm", "preprocessing", "postprocessing")
SERVICE = "/inference.GRPCInferenceService/"


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, engine: Path) -> Iterator[Server]:
    """Serve an engine of a fast clock, to itself."""
    repository = tmp_path_factory.mktemp("victim") / "repository"
    succeed("build-repo", engine, "--out", repository, "--time-scale", 0.05, "--max-queue-size", 64)
    running = start(repository)
    yield running
    running.end()


def _processes(server: Server) -> set[tuple[int, str]]:
    """Return the server's processes, its models' among them, each with when it began."""
    found = {server.pid}
    while True:
        children = {int(pid) for each in found for pid in _children(each)}
        if children <= found:
            return {(pid, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]) for pid in found}
        found |= children


def _children(pid: int) -> list[str]:
    return [pid for task in Path(f"/proc/{pid}/task").iterdir() for pid in (task / "children").read_text().split()]


def _files(server: Server) -> set[str]:
    """Return what is in the repository and in the server's own folder, less its log."""
    home = Path(f"/proc/{max(pid for pid, _ in _processes(server) if 'tritonserver' in _name(pid))}/cwd").resolve()
    folders = (server.repository, home)
    return {str(path) for folder in folders for path in folder.rglob("*") if path.name != "server.log"}


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text()


def _answers(server: Server) -> None:
    """Hold the server to one true reply over each protocol."""
    body = json.dumps({"text_input": "still there?", "max_tokens": 3, "stream": True}).encode()
    with urllib.request.urlopen(f"{server.url}/v2/models/ensemble/generate_stream", body, timeout=30) as reply:
        assert len([line for line in reply if line.strip()]) == 3
    stream = Stream(server.grpc, "ensemble", text(3)).read()
    assert (len(stream.answered), stream.error) == (3, None)
    stream.leave()


def _send(server: Server, path: str, body: bytes, headers: dict[str, str]) -> int:
    """POST, and return the status; 0 where the connection ended without one."""
    request = urllib.request.Request(f"{server.url}{path}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=LIMIT_S) as reply:
            reply.read()
            return int(reply.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (OSError, ValueError):
        return 0


def _value(rng: random.Random, depth: int = 0) -> Any:
    """Draw a JSON value that no tensor wants."""
    plain: list[Callable[[], Any]] = [
        lambda: rng.choice([None, True, False, "", "\x00", "\ud800", "../../etc/passwd", "${jndi:x}", "{{7*7}}"]),
        lambda: rng.choice([0, -1, 2**31, 2**63, -(2**63), 2**64, 1e308, -0.0, 1e-320]),
        lambda: rng.choice(["a", "\U0001f469\u200d\U0001f680", "\ufeff", "<think>"]) * rng.choice([1, 100, 20_000]),
        lambda: [rng.randrange(-(2**40), 2**40) for _ in range(rng.choice([1, 7, 500]))],
    ]
    if depth < 3:
        plain += [
            lambda: [_value(rng, depth + 1) for _ in range(rng.randrange(4))],
            lambda: {str(_value(rng, 3)): _value(rng, depth + 1) for _ in range(rng.randrange(4))},
        ]
    return rng.choice(plain)()


def _generate_body(rng: random.Random) -> dict[str, Any]:
    """Draw a request that is right but for one to four values."""
    body: dict[str, Any] = rng.choice([
        {"text_input": "hello", "max_tokens": 3, "stream": True},
        {"input_ids": [1, 2, 3], "input_lengths": 3, "request_output_len": 3, "streaming": True},
        {"QUERY": "hello", "REQUEST_OUTPUT_LEN": 3},
        {"TOKENS_BATCH": [[1, 2]], "SEQUENCE_LENGTH": [2]},
    ])  # fmt: skip
    more = ["temperature", "end_id", "stop_words", "bad_words", "beam_width", "seed", "lora_weights", "stop", "id",
            "return_log_probs", "guided_decoding_guide", "embedding_bias", "draft_input_ids", "parameters"]  # fmt: skip
    for _ in range(rng.randrange(1, 5)):
        body[rng.choice([*body, *more])] = _value(rng)
    return body


def _infer_body(rng: random.Random) -> dict[str, Any]:
    """Draw a request of the KServe protocol whose shapes, types and parameters do not fit its data."""
    tensor = {
        "name": rng.choice(["QUERY", "input_ids", "text_input", "TOKENS_BATCH", "x" * 5000]),
        "shape": rng.choice([[1, 1], [1, -1], [1, 2**62], [0], [], [2**31, 2**31], [-(2**63)], "x"]),
        "datatype": rng.choice(["BYTES", "INT32", "FP32", "BOOL", "FP8", "", 7]),
        "data": _value(rng),
        "parameters": rng.choice([
            {},
            {"binary_data_size": rng.choice([0, 4, -1, 2**40])},
            {"shared_memory_region": "/etc/passwd", "shared_memory_byte_size": 2**40, "shared_memory_offset": 2**63},
            {"classification": 2**31},
        ]),
    }  # fmt: skip
    return {"inputs": [tensor] * rng.choice([1, 2, 300]), "outputs": [{"name": rng.choice(["INPUT_ID", "x"])}]}


def _http_case(server: Server, rng: random.Random) -> int:
    model = rng.choice(MODELS)
    body = json.dumps(rng.choice([_generate_body, _infer_body])(rng)).encode()[:MAX_BYTES]
    if rng.random() < 0.3:
        body = _spoilt(body, rng)
    headers = rng.choice([
        {}, {}, {}, {"Inference-Header-Content-Length": rng.choice(["0", "-5", "x", str(2**63), str(len(body) + 9)])},
        {"Content-Encoding": rng.choice(["gzip", "deflate", "br"])}, {"admin-key": "x" * 9000},
    ])  # fmt: skip
    path = rng.choice([
        f"/v2/models/{model}/generate_stream", f"/v2/models/{model}/generate_stream", f"/v2/models/{model}/generate",
        f"/v2/models/{model}/infer", f"/v2/models/{model}/versions/{rng.choice(['1', '../1', '-1', '9' * 30])}/infer",
        "/v2/models/..%2F..%2F..%2Fetc%2Fpasswd/infer", "/v2/models/../../etc/generate", "/v2/models/%00/generate",
        "/v2/models/" + "a" * 9000, "/v2/" + "../" * 500 + "etc/passwd",
    ])  # fmt: skip
    return _send(server, path, body, headers)


def _spoilt(body: bytes, rng: random.Random) -> bytes:
    """Cut, flip or repeat bytes of a body."""
    cut = bytearray(body[: rng.randrange(len(body) + 1)] or b"x")
    for _ in range(rng.choice([0, 1, 50])):
        cut[rng.randrange(len(cut))] = rng.randrange(256)
    return (bytes(cut) * rng.choice([1, 1, 1, 40]))[:MAX_BYTES]


def _raw_case(server: Server, rng: random.Random) -> int:
    """Send bytes that are hardly HTTP, and hang up."""
    said = rng.choice([
        rng.randbytes(rng.choice([1, 100, 70_000])),
        b"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\nx",
        b"POST /v2/models/ensemble/generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nx",
        b"POST /v2/models/ensemble/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 20_000,
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
    ])  # fmt: skip
    with socket.create_connection(("127.0.0.1", rng.choice([server.http, server.grpc, server.metrics])), 5) as raw:
        raw.settimeout(0.2)
        try:
            raw.sendall(said)
            raw.recv(1000)
        except OSError:
            return 0
    return 1


def _grpc_case(channel: grpc.Channel, rng: random.Random) -> int:
    """Call a method with a message that is wrong, or spoilt bytes for one."""
    message = service_pb2.ModelInferRequest(
        model_name=rng.choice([*MODELS, "../x", "", "\x00"]), id=rng.choice(["", "x"])
    )
    for _ in range(rng.randrange(4)):
        tensor = message.inputs.add(name=rng.choice(["QUERY", "input_ids", "text_input", "TOKENS_BATCH", "no"]))
        tensor.datatype = rng.choice(["BYTES", "INT32", "FP32", "nonsense", ""])
        tensor.shape.extend(rng.choice([[1, 1], [1, -1], [1, 2**62], [0], [], [2**31, 2**31]]))
        if rng.random() < 0.5:
            message.raw_input_contents.append(rng.randbytes(rng.choice([0, 3, 4, 5000])))
        if rng.random() < 0.2:
            tensor.parameters["shared_memory_region"].string_param = "/dev/shm/x"
            tensor.parameters["shared_memory_byte_size"].int64_param = 2**40
    data = message.SerializeToString()
    if rng.random() < 0.3:
        data = _spoilt(data, rng)
    method = rng.choice(
        ["ModelStreamInfer", "ModelInfer", "ModelMetadata", "ModelConfig", "ModelStatistics", "Nothing"]
    )
    call = channel.unary_stream(SERVICE + method, None, None)(data, timeout=LIMIT_S)
    try:
        return sum(1 for _ in call)
    except grpc.RpcError as error:
        return -int(error.code().value[0])


def test_hostile_requests_do_no_harm(victim: Server) -> None:
    """After every case the same processes run, answer, and have written nothing anywhere."""
    rng = random.Random(SEED)
    processes, files = _processes(victim), _files(victim)
    _answers(victim)
    refused = 0
    with grpc.insecure_channel(f"127.0.0.1:{victim.grpc}") as channel:
        for number in range(CASES):
            kind = rng.choices(["http", "grpc", "raw"], [5, 4, 1])[0]
            if kind == "http":
                refused += _http_case(victim, rng) != 200
            elif kind == "grpc":
                refused += _grpc_case(channel, rng) < 0
            else:
                _raw_case(victim, rng)
            if number % ANSWERS_EVERY == ANSWERS_EVERY - 1:
                _answers(victim)
                assert _processes(victim) == processes, f"after case {number} of seed {SEED}"
    assert refused > CASES / 3
    assert _processes(victim) == processes
    assert _files(victim) == files


@pytest.mark.parametrize("size", [1_000_000, MAX_BYTES])
def test_an_oversized_body_is_refused_in_words(victim: Server, size: int) -> None:
    """A text that no tokens allowed could hold is refused before it is tokenized, however large it is."""
    processes = _processes(victim)
    body = json.dumps({"text_input": "x" * size, "max_tokens": 3, "stream": True}).encode()
    request = urllib.request.Request(f"{victim.url}/v2/models/ensemble/generate_stream", body)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert "max_prompt_tokens" in refused.value.read().decode()
    refused.value.close()
    _answers(victim)
    assert _processes(victim) == processes


def test_deep_json_is_refused(victim: Server) -> None:
    """A hundred thousand brackets are an error, not a stack overflow."""
    processes = _processes(victim)
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b'{"text_input":' + b"[" * 50_000):
        assert _send(victim, "/v2/models/ensemble/generate_stream", body, {}) >= 400
    _answers(victim)
    assert _processes(victim) == processes


def test_what_could_write_into_the_server_is_closed(victim: Server, tmp_path: Path) -> None:
    """Code by the load interface, memory by its name, files by trace and log settings: all ask for the secret."""
    before = set(Path("/dev/shm").iterdir())
    code = base64.b64encode(f"open({str(tmp_path / 'here')!r}, 'w')".encode()).decode()
    shared = next(iter(sorted(path.name for path in before if path.name.startswith("triton_"))))
    attacks: dict[str, dict[str, Any]] = {
        "repository/models/evil/load": {"parameters": {"config": '{"backend":"python"}', "file:1/model.py": code}},
        "repository/models/..%2F..%2Fevil/load": {"parameters": {"config": "{}", "file:../../x/model.py": code}},
        "repository/models/ensemble/unload": {},
        "repository/index": {},
        "systemsharedmemory/region/x/register": {"key": f"/{shared}", "offset": 0, "byte_size": 64},
        "trace/setting": {"trace_file": str(tmp_path / "trace"), "trace_level": ["TIMESTAMPS"], "trace_rate": "1"},
        "models/ensemble/trace/setting": {"trace_file": str(tmp_path / "trace"), "trace_level": ["TIMESTAMPS"]},
        "logging": {"log_file": str(tmp_path / "log"), "log_verbose_level": 9},
    }
    for path, body in attacks.items():
        assert _send(victim, f"/v2/{path}", json.dumps(body).encode(), {}) == 403, path
    calls: dict[str, Any] = {
        "RepositoryModelLoad": service_pb2.RepositoryModelLoadRequest(model_name="evil"),
        "RepositoryModelUnload": service_pb2.RepositoryModelUnloadRequest(model_name="ensemble"),
        "RepositoryIndex": service_pb2.RepositoryIndexRequest(),
        "SystemSharedMemoryRegister": service_pb2.SystemSharedMemoryRegisterRequest(name="x", key=shared, byte_size=64),
        "TraceSetting": service_pb2.TraceSettingRequest(),
        "LogSettings": service_pb2.LogSettingsRequest(),
    }
    with grpc.insecure_channel(f"127.0.0.1:{victim.grpc}") as channel:
        for method, message in calls.items():
            with pytest.raises(grpc.RpcError, match="restricted"):
                channel.unary_unary(SERVICE + method)(message.SerializeToString(), timeout=LIMIT_S)
    assert list(tmp_path.iterdir()) == []
    _answers(victim)
