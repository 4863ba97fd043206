"""What a server may take, in time and in bytes, before it is given up."""

from __future__ import annotations

import http.server
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest

from engines.http_fetch import FetchError, answers, bearer, fetch
from tests.unit.conftest import DRIPPED, OK, Answering

LIMIT_S, LIMIT_BYTES = 0.3, 1 << 20


@pytest.mark.parametrize("pieces", DRIPPED.values(), ids=DRIPPED)
def test_the_limit_is_of_the_whole_answer(answering: Answering, pieces: list[bytes]) -> None:
    """A server that sends a little all the time is given up when one that sends nothing is."""
    url = "http://" + answering(pieces, pause_s=LIMIT_S / 6)
    began_s = time.monotonic()
    with pytest.raises(FetchError, match=r"no complete answer within 0\.3 s"):
        fetch(url, limit_s=LIMIT_S, limit_bytes=LIMIT_BYTES)
    assert time.monotonic() - began_s < 4 * LIMIT_S


def test_a_tls_handshake_has_the_same_limit(answering: Answering) -> None:
    """A server that accepts and does not greet is given up too."""
    with pytest.raises(FetchError, match=r"no complete answer within 0\.3 s"):
        fetch("https://" + answering([b""], pause_s=10), limit_s=LIMIT_S, limit_bytes=LIMIT_BYTES)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (OK + b"\r\n" + b"y" * 21, "more than"),
        (OK + b"Content-Length: 9\r\n\r\nyy", "IncompleteRead"),
        (b"garbage", "BadStatusLine"),
        (b"", "RemoteDisconnected"),
    ],
)
def test_an_answer_that_is_not_whole_is_none(answering: Answering, answer: bytes, reason: str) -> None:
    """Too large, cut, and not HTTP: the reason is told."""
    with pytest.raises(FetchError, match=reason):
        fetch("http://" + answering([answer]), limit_s=10, limit_bytes=20)


def test_an_error_is_an_answer_with_its_body(answering: Answering) -> None:
    """The status and the text of a refusal reach the caller; header names have no case."""
    reply = b"HTTP/1.1 404 No\r\nX-Kind: a\r\nContent-Length: 4\r\n\r\nnone"
    found = fetch("http://" + answering([reply]), limit_s=10, limit_bytes=4)
    assert (found.status, found.headers["x-kind"], found.body) == (404, "a", b"none")


def test_a_redirection_is_followed(answering: Answering) -> None:
    """As a gateway may answer."""
    page = answering([OK + b"Content-Length: 2\r\n\r\nhi"])
    first = answering([b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://%s\r\n\r\n" % page.encode()])
    assert fetch("http://" + first, limit_s=10, limit_bytes=4).body == b"hi"


@pytest.fixture
def asked() -> Iterator[tuple[list[str], list[str | None]]]:
    """Give two servers' addresses and the key of each request for `/page`; elsewhere the first redirects.

    Its `/` leads to its own page, its `/away` to the other server's.
    """
    keys: list[str | None] = []
    urls: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/page":
                keys.append(self.headers.get("Authorization"))
            self.send_response(200 if self.path == "/page" else 307)
            self.send_header("Location", f"{urls[self.path == '/away']}/page")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) for _ in range(2)]
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,)) for server in servers]
    urls += [f"http://127.0.0.1:{server.server_port}" for server in servers]
    for thread in threads:
        thread.start()
    yield urls, keys
    for server, thread in zip(servers, threads, strict=True):
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(("path", "sent"), [("/", "Bearer k"), ("/away", None)])
def test_a_key_follows_a_redirection_on_its_own_server_only(
    asked: tuple[list[str], list[str | None]], path: str, sent: str | None
) -> None:
    """A server cannot send the key that it was given to another."""
    urls, keys = asked
    request = urllib.request.Request(urls[0] + path, headers=bearer("k"))
    assert fetch(request, limit_s=10, limit_bytes=4).status == 200
    assert keys == [sent]


@pytest.mark.parametrize("url", ["file:///etc/hostname", "nothing", "http://[::1", "http://127.0.0.1:1/"])
def test_only_a_server_is_asked(url: str) -> None:
    """A file is not a page, and what is no URL is one error."""
    with pytest.raises(FetchError):
        fetch(url, limit_s=1, limit_bytes=LIMIT_BYTES)


def test_no_proxy_is_used(answering: Answering, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server that a load reaches is asked, not a proxy of the environment."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    url = "http://" + answering([OK + b"Content-Length: 2\r\n\r\nhi"])
    assert fetch(url, limit_s=10, limit_bytes=4).body == b"hi"


def test_a_page_answers_if_it_is_whole_in_time_and_of_status_200(answering: Answering) -> None:
    """A server that is not ready, cuts its page or drips it does not answer."""
    assert answers("http://" + answering([OK + b"Content-Length: 2\r\n\r\nhi"]))
    for pieces in ([b"HTTP/1.1 503 No\r\n\r\n"], [b"garbage\r\n"], [OK + b"Content-Length: 2\r\n\r\nh"]):
        assert not answers("http://" + answering(pieces))
    assert not answers("http://" + answering(DRIPPED["headers"], pause_s=0.05), limit_s=LIMIT_S)
