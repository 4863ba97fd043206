"""What the load generator reports, held against a server whose timetable is known; and every way a server can fail.

Tolerances are for a busy two-core machine; `make bench` prints the strict figures of a quiet one.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from running import write_tokenizer
from timetable import Start, ask, door_to
from truth import added_by_client

from engines.errors import MissingError
from loadtest.client import discover_protocol
from loadtest.client.connection import Connection, UnreachableError
from loadtest.client.endpoint import Endpoint, ProtocolName
from loadtest.client.protocols import protocol_for
from loadtest.client.protocols.base import Reply, RequestSpec
from loadtest.client.receiver import PythonReceiver, Receiver
from loadtest.traffic.prompts import Prompt

DIALECTS: tuple[ProtocolName, ...] = ("openai-chat", "openai-completions", "triton-http")
ROOT = Path(__file__).parents[2]
KEY = "sk-a-key-nobody-may-see"


def _run(
    port: int, out: Path, *arguments: object, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "run-load"), "--url", f"http://127.0.0.1:{port}", "--out", str(out)]
    arguments = ("--tokenizer", write_tokenizer(out.parent), "--isl", 16, *arguments)
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.quiet
@pytest.mark.parametrize("protocol", DIALECTS)
def test_reported_latencies_are_the_timetables(start: Start, tmp_path: Path, protocol: ProtocolName) -> None:
    """Of 16 users' replies the median TTFT is within 5 ms of 50 ms, the median ITL within 5 % of 10 ms."""
    server = start()
    load = ["--protocol", protocol, "--model", "timetable", "--concurrency", 16, "--requests", 32, "--osl", 32]
    done = _run(server.port, tmp_path / "run", *load)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    measured = [record for record in records if record["phase"] == "measure"]
    assert {(record["outcome"], record["output_tokens"]) for record in measured} == {("ok", 32)}
    ttft_s = np.array([record["token_times_s"][0] - record["sent_s"] for record in measured])
    gaps_s = np.concatenate([np.diff(record["token_times_s"]) for record in measured])
    assert abs(np.median(ttft_s) - 0.050) < 0.005
    assert abs(np.median(gaps_s) - 0.010) < 0.0005
    assert ttft_s.min() > 0.0495
    level = json.loads((tmp_path / "run" / "run.json").read_text())["levels"][0]
    assert level["complete"]
    assert level["clock"] in {"kernel", "reader"}


@pytest.mark.quiet
def test_the_client_adds_next_to_nothing_to_any_token(start: Start, tmp_path: Path) -> None:
    """Against when the server really sent each token: half of all gaps within 0.2 ms, 95 % within 2 ms, TTFT too.

    However busy the machine: the kernel's stamps are not late when this process is. Tokens that came together because
    it was later than a gap are the exceptions.
    """
    server = start(log=tmp_path / "log")
    load = ["--protocol", "triton-http", "--model", "timetable", "--concurrency", 16, "--requests", 64, "--osl", 32]
    done = _run(server.port, tmp_path / "run", *load)
    assert done.returncode == 0, done.stderr
    server.stop()
    if json.loads((tmp_path / "run" / "run.json").read_text())["levels"][0]["clock"] != "kernel":
        pytest.skip("this kernel stamps no arrivals: only its reader's clock is there")
    added = added_by_client(tmp_path / "run", tmp_path / "log")
    assert len(added.gaps_s) == 64 * 31
    for errors_s in (added.ttft_s, added.gaps_s):
        assert np.percentile(np.abs(errors_s), 50) < (0.0002 if errors_s is added.gaps_s else 0.002)
    assert np.percentile(np.abs(added.gaps_s), 95) < 0.002


@pytest.mark.quiet
def test_a_stall_is_seen_whole(start: Start) -> None:
    """One gap of 110 ms among those of 10 ms is reported as one, not spread over its reply."""
    answer, _ = ask(Connection(door_to(start().port, "openai-chat", "stall")), tokens=60)
    gaps_s = np.diff(answer.times_s)
    assert np.argmax(gaps_s) == 49
    assert 0.105 < gaps_s[49] < 0.150
    assert np.median(gaps_s) < 0.012


@pytest.mark.parametrize("protocol", ["openai-chat", "openai-completions"])
def test_tokens_that_come_in_pairs_count_as_two(start: Start, protocol: ProtocolName) -> None:
    """By the usage at the end eight events were sixteen tokens; eight came with the one before, and it says so."""
    answer, asked = ask(Connection(door_to(start().port, protocol, "pairs")))
    assert answer.outcome(asked) == ("ok", None)
    assert (len(answer.times_s), answer.bundled_tokens, answer.stated_tokens) == (16, 8, 16)
    assert list(answer.times_s[::2]) == list(answer.times_s[1::2])


def test_without_usage_pairs_are_missed_and_the_record_says_so(start: Start) -> None:
    """Triton's text models count nothing: half the tokens look missing, and the reply is no good one."""
    answer, asked = ask(Connection(door_to(start().port, "triton-http", "pairs")))
    assert answer.outcome(asked) == ("cut", "8 tokens of 16")


NO_END = "no end of the reply within 1 s"
FAULTS = [
    ("empty", "empty", "without a token", 0),
    ("cut", "cut", "closed the connection", 8),
    ("reset", "error", "connection: Connection reset", None),
    ("silent", "timeout", "nothing for 0.5 s", 8),
    ("endless", "timeout", "nothing for 0.5 s", 16),
    ("comments", "timeout", NO_END, 8),
    ("babble", "timeout", NO_END, None),
    ("malformed", "error", "malformed message", 8),
    ("error", "error", "the engine gave up", 8),
    ("refuse", "rejected", "Exceeds maximum queue size", 0),
    ("plain", "error", "application/json, not text/event-stream", 0),
    ("huge", "ok", None, 16),
    ("dribble", "ok", None, 16),
    ("reasoning", "ok", None, 16),
    ("close", "ok", None, 16),
]


@pytest.mark.parametrize(
    ("protocol", "receiver", "may_wait"),
    [
        *((each, Receiver, False) for each in DIALECTS),
        *(("openai-chat", each, True) for each in (Receiver, PythonReceiver)),
    ],
)
@pytest.mark.parametrize(("fault", "outcome", "text", "tokens"), FAULTS)
def test_every_fault_has_its_outcome(
    start: Start,
    protocol: ProtocolName,
    receiver: type[PythonReceiver],
    may_wait: bool,
    fault: str,
    outcome: str,
    text: str | None,
    tokens: int | None,
) -> None:
    """However a reply fails, it ends in time, says how, and keeps the tokens that came; the next request is served.

    So also where whole replies came before, and this one is expected to be another.
    """
    server = start(first_ms=5, gap_ms=2)
    limits = {
        "silence_s": 0.5,
        "reply_s": 1.0 if text == NO_END else 10.0,
    }  # a busy machine may take half a second to begin
    door = door_to(server.port, protocol, fault, receiver=receiver, **limits)
    connection, faulty = Connection(door), door.protocol
    if may_wait:
        door.protocol = protocol_for(door.endpoint, "timetable", environment={})
        assert ask(connection)[0].whole
        door.protocol = faulty
    for _ in range(2):
        answer, asked = ask(connection, may_wait=may_wait)
        said, reason = answer.outcome(asked)
        assert said == outcome, reason
        assert text is None or (reason is not None and text in reason)
        assert tokens is None or len(answer.times_s) == tokens
        assert 0 <= answer.sent_s <= answer.done_s < 10
        assert "tick" not in (reason or "")
    connection.close()


def test_every_request_of_a_failing_run_is_recorded(start: Start, tmp_path: Path) -> None:
    """A server that cuts every reply ends the run with status 1; each request is in the records with its outcome."""
    server = start(first_ms=5, gap_ms=2)
    load = ["--protocol", "openai-chat", "--model", "cut", "--concurrency", 4, "--requests", 12, "--osl", 16]
    done = _run(server.port, tmp_path / "run", *load)
    assert done.returncode == 1
    assert "measured requests succeeded" in done.stderr
    assert "Traceback" not in done.stderr
    records = [json.loads(line) for line in (tmp_path / "run" / "requests.jsonl").read_text().splitlines()]
    ids = sorted(record["id"] for record in records)
    assert ids == list(range(len(ids)))
    assert {record["outcome"] for record in records} <= {"cut", "cancelled"}
    assert "hello" not in (tmp_path / "run" / "requests.jsonl").read_text()


def test_a_key_reaches_the_server_and_nothing_else(start: Start, tmp_path: Path) -> None:
    """The key goes from the environment into requests; no file and no message holds it, not even a refusal's echo."""
    server = start(first_ms=5, gap_ms=2, key=KEY)
    load = ["--protocol", "openai-chat", "--model", "timetable", "--concurrency", 1, "--requests", 2, "--osl", 4]
    done = _run(server.port, tmp_path / "run", *load, "--api-key-env", "MY_KEY", env={"MY_KEY": KEY})
    assert done.returncode == 0, done.stderr
    written = "".join(path.read_text() for path in (tmp_path / "run").iterdir())
    assert KEY not in written + done.stdout + done.stderr
    refused = _run(server.port, tmp_path / "refused", *load, "--api-key-env", "MY_KEY", env={"MY_KEY": KEY + "x"})
    assert refused.returncode == 1
    assert "$MY_KEY" in refused.stderr
    assert KEY not in refused.stdout + refused.stderr


def test_a_refusal_that_quotes_the_key_is_kept_without_it(start: Start) -> None:
    """What a server says is written down; the key in it is not."""
    endpoint = Endpoint(host="127.0.0.1", port=start(key=KEY).port, protocol="openai-chat")
    door = door_to(endpoint.port, "openai-chat")
    door.protocol = protocol_for(endpoint, "timetable", environment={"OPENAI_API_KEY": KEY + "-old"})
    answer, asked = ask(Connection(door))
    _, reason = answer.outcome(asked)
    assert reason == "Incorrect API key provided: [key]"


@pytest.mark.parametrize("protocol", DIALECTS)
def test_a_server_may_die_and_return(start: Start, protocol: ProtocolName) -> None:
    """A kept connection whose server died is made again; while there is none, requests fail at once."""
    server = start(first_ms=5, gap_ms=2)
    connection = Connection(door_to(server.port, protocol))
    assert ask(connection)[0].whole
    server.stop()
    answer, asked = ask(connection)
    assert answer.outcome(asked)[0] == "error"
    answer, asked = ask(connection)
    assert isinstance(answer.failure, UnreachableError)
    start(first_ms=5, gap_ms=2, port=server.port)
    assert ask(connection)[0].whole


@pytest.mark.parametrize("receiver", [Receiver, PythonReceiver])
def test_a_reply_that_waits_is_the_same_once_it_is_read(start: Start, receiver: type[PythonReceiver]) -> None:
    """From the second on, whole replies are left unread; each has its tokens, count and times, on one connection."""
    door = door_to(start(first_ms=5, gap_ms=2).port, "openai-chat", receiver=receiver)
    connection, waited = Connection(door), []
    for _ in range(4):
        answer, asked = Reply(), RequestSpec("r0", Prompt(tokens=1, text="hello"), 16)
        connection.ask(asked, answer, may_wait=True)
        waited.append(answer.rest is not None)
        if answer.rest is not None:
            assert (answer.whole, len(answer.times_s)) == (False, 0)
            answer.rest()
        assert answer.outcome(asked) == ("ok", None)
        assert (answer.stated_tokens, answer.rest) == (16, None)
        assert answer.sent_s < answer.times_s[0] < answer.times_s[-1] <= answer.done_s <= door.now_s()
    assert waited[-3:] == [True] * 3
    assert not ask(Connection(door_to(door.endpoint.port, "triton-http")), may_wait=True)[0].failure
    connection.close()


@pytest.mark.quiet
def test_a_killed_request_keeps_what_had_come(start: Start) -> None:
    """A user stopped in the middle of a reply leaves its tokens and an outcome."""
    connection = Connection(door_to(start(first_ms=5, gap_ms=10).port, "openai-chat"))
    found = []

    def user() -> None:
        answer, asked = Reply(), RequestSpec("r0", Prompt(tokens=1, text="hello"), 500)
        try:
            connection.ask(asked, answer)
        finally:
            found.append((answer, asked))

    greenlet = gevent.spawn(user)
    gevent.sleep(0.3)
    greenlet.kill()
    answer, asked = found[0]
    assert answer.outcome(asked) == ("cancelled", None)
    assert 10 < len(answer.times_s) < 40


@pytest.mark.quiet
def test_without_the_kernels_clock_the_readers_is_used_and_said(start: Start) -> None:
    """Where no stamps come, times are of the reading, and the run says which clock it was."""
    server = start()
    for stamps, clocks in ((True, {"kernel", "reader", "mixed"}), (False, {"reader"})):
        door = door_to(server.port, "openai-chat", stamps=stamps)
        answer, _ = ask(Connection(door))
        assert door.readings.clock in clocks
        assert abs(answer.times_s[0] - answer.sent_s - 0.050) < 0.020


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Make a certificate for this machine, for an hour or so."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    names = ["-subj", "/CN=timetable", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    command = [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names, *files]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def tls_port(start: Start, certificate: tuple[Path, Path]) -> Iterator[int]:
    """Put TLS before a server."""
    behind = start(first_ms=50, gap_ms=10).port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=_serve_tls, args=(listener, context, behind), daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(timeout=10)


def _serve_tls(listener: socket.socket, context: ssl.SSLContext, behind: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            plain, _ = listener.accept()
            with contextlib.suppress(OSError), context.wrap_socket(plain, server_side=True) as near:
                _pump(near, behind)


def _pump(near: ssl.SSLSocket, behind: int) -> None:
    """Carry bytes both ways until one side ends."""
    with socket.create_connection(("127.0.0.1", behind)) as far:
        near.settimeout(0.001)
        far.settimeout(0.001)
        while True:
            for source, target in ((near, far), (far, near)):
                with contextlib.suppress(TimeoutError, ssl.SSLWantReadError):
                    data = source.recv(65_536)
                    if not data:
                        return
                    target.sendall(data)


@pytest.mark.quiet
def test_tls_is_spoken_and_certificates_are_looked_at(
    tls_port: int, certificate: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """A certificate that is trusted, or said not to matter, is fine; another is an error in words."""
    outcomes = {}
    for name, more in {
        "trusted": {"ca_file": str(certificate[0])},
        "insecure": {"insecure": True},
        "unknown": {},
    }.items():
        door = door_to(tls_port, "openai-chat")
        door.endpoint = door.endpoint.model_copy(update={"tls": True, **more})
        connection = Connection(door)
        answer, asked = ask(connection)
        outcomes[name] = answer.outcome(asked)
        connection.close()
        if answer.whole:
            assert 0.045 < answer.times_s[0] - answer.sent_s < 0.5
            assert 0.009 < np.median(np.diff(answer.times_s)) < 0.015
    assert outcomes["trusted"] == outcomes["insecure"] == ("ok", None)
    assert outcomes["unknown"][0] == "error"
    assert "certificate" in (outcomes["unknown"][1] or "").lower()
    assert "Traceback" not in capfd.readouterr().err


def test_a_certificate_that_is_not_trusted_is_told_from_an_unknown_protocol(tls_port: int) -> None:
    """One reason, and the way out; not three failed requests and a question about the protocol."""
    with pytest.raises(MissingError, match=f"^127.0.0.1:{tls_port}: the certificate is not trusted: ") as refused:
        discover_protocol(f"https://127.0.0.1:{tls_port}")
    assert "--ca-file" in str(refused.value.hint)
