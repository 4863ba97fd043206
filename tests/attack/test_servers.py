"""Servers that answer nonsense: a command that asks one ends with one line, as for any other input."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.attack.conftest import COUNTED
from tests.attack.victim import Victims

SERVER = Path(__file__).with_name("nonsense.py")
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
# Of gRPC: settings, headers of status 200, a frame of an unknown kind that ends the line, and a response of two bytes.
GRPC = b"\0\0\0\4\0\0\0\0\0" + b"\0\0\1\1\4\0\0\0\1\x88" + b"\0\0\1\x63\0\0\0\0\0\n"
RESPONSE = b"\0\0\7\0\0\0\0\0\1" + b"\0\0\0\0\2ab"
ANSWERS = {
    "nothing": b"",
    "garbage": bytes(range(256)) * 4,
    "HTTP/2 frames": b"\0\0\0\4\0\0\0\0\0" + b"\xff" * 200,
    "HTML": OK.replace(b"json", b"html") + b"\r\n<html><body>It works!</body></html>",
    "a list": OK + b"Content-Length: 2\r\n\r\n[]",
    "null": OK + b"Content-Length: 4\r\n\r\nnull",
    "no UTF-8": OK + b'\r\n{"data": [{"id": "\xff\xfe"}]}',
    "deep nesting": OK + b"\r\n" + b"[" * 100_000,
    "a length of 400 digits": OK + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n{}",
    "a chunk of 2**64 bytes": OK + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{}",
    "a chunk without a size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "less than its length": OK + b"Content-Length: 1000\r\n\r\n{}",
    "a header of 1 MB": OK + b"X: " + b"y" * (1 << 20) + b"\r\n\r\n{}",
    "1,000 headers": OK + b"X: y\r\n" * 1000 + b"\r\n{}",
    "half a header": OK + b"Content-Le",
    "control characters": b"HTTP/1.1 500 No\r\n\r\n\x1b[2J\r\n\x1b]0;a\x07 error: b",
    "a status of letters": b"HTTP/1.1 abc OK\r\n\r\n",
    "a redirection to nowhere": b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n",
    "models without names": OK + b'Content-Length: 32\r\n\r\n{"data": [{"id": 7}, {"id": 7}]}',
    "another encoding": OK + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\0",
    "endless headers": b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000 + b"\r\n",
    "an endless body": OK + b"\r\n" + b"y" * 65_536,
    "endless gRPC responses": GRPC + RESPONSE,
}
SLOW = {
    "a slow status": b"HTTP/1.1 200 OK\r\n",
    "slow frames of HTTP/2": b"\0\0\0\4\0\0\0\0\0",
}
ASK = {
    "run-load": "--url {url} --tokenizer tokenizer/tokenizer.json --isl 8 --osl 4 --out out",
    "run-load --protocol": "triton-http --model x --url {url} --tokenizer tokenizer/tokenizer.json --out out",
    "run-load --model": "x --protocol triton-grpc --url {url} --tokenizer tokenizer/tokenizer.json --out out",
    "evaluate-engine": "--url {url} --model x --tokenizer tokenizer --tasks gsm8k",
    "build-repo": "engine --tokenizer tokenizer --engine-url {url} --out out",
}


@pytest.mark.parametrize("name", ASK)
@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS)
def test_nonsense_is_refused_in_one_line(name: str, answer: bytes, victims: Victims, examples: Path) -> None:
    """No answer of a server is a traceback, and none is waited for without a limit."""
    is_endless = answer.endswith((b"y" * 1000 + b"\r\n", b"y" * 65_536, RESPONSE))
    _refused(name, answer, "endless" if is_endless else "once", victims, examples)


@pytest.mark.parametrize("name", ASK)
@pytest.mark.parametrize("answer", SLOW.values(), ids=SLOW)
def test_a_server_of_two_bytes_a_second_is_given_up(name: str, answer: bytes, victims: Victims, examples: Path) -> None:
    """A time limit counts for the whole answer, not for each read."""
    _refused(name, answer, "slow", victims, examples)


def _refused(name: str, answer: bytes, manner: str, victims: Victims, examples: Path) -> None:
    (examples.parent / "answer").write_bytes(answer)
    with _serving(examples.parent / "answer", manner) as url:
        command, *words = f"{name} {ASK[name].format(url=url)}".split()
        ended = victims.run(command, words, examples)
    COUNTED["cases"] += 1
    assert ended.status in {1, 2}, ended
    assert ended.broken(command) is None, ended
    assert "\x1b" not in ended.said, ended
    assert not (examples / "out").exists()


@contextmanager
def _serving(answer: Path, manner: str) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, str(SERVER), str(answer), manner], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.kill()
