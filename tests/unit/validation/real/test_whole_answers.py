"""What a served model and its metrics page may take before they are given up."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import pytest

from engines.http_fetch import FetchError
from tests.unit.conftest import DRIPPED, OK, Answering
from validation.real.disturbance import server_itl
from validation.real.question import answer

WITHIN_S = 0.3


@pytest.mark.parametrize("pieces", DRIPPED.values(), ids=DRIPPED)
@pytest.mark.parametrize("asks", [lambda url: answer(url, "m", "?", within_s=WITHIN_S),
                                  lambda url: server_itl(url, within_s=WITHIN_S)], ids=["answer", "page"])  # fmt: skip
def test_a_slow_drip_is_given_up(answering: Answering, pieces: list[bytes], asks: Callable[[str], object]) -> None:
    """The limit is of the whole answer, not of each read."""
    url = "http://" + answering(pieces, pause_s=WITHIN_S / 6)
    began_s = time.monotonic()
    with pytest.raises(FetchError, match=r"no complete answer within 0\.3 s"):
        asks(url.rstrip("/"))
    assert time.monotonic() - began_s < 4 * WITHIN_S


def _page(body: bytes, head: bytes = OK) -> list[bytes]:
    return [head + b"Content-Length: %d\r\n\r\n" % len(body) + body]


def test_an_answer_and_a_page_are_read(answering: Answering) -> None:
    """The text of the reply; the sum and the count of gaps."""
    said = json.dumps({"choices": [{"message": {"content": "Paris"}}]}).encode()
    assert answer("http://" + answering(_page(said)).rstrip("/"), "m", "?") == "Paris"
    name = b'vllm:inter_token_latency_seconds_%s{model="m"} %s\n'
    page = name % (b"sum", b"1.5") + name % (b"count", b"30.0")
    assert server_itl("http://" + answering(_page(page)).rstrip("/")) == (1.5, 30.0)


def test_a_refusal_is_told(answering: Answering) -> None:
    """With its status and its text."""
    refused = _page(b"no such model", b"HTTP/1.1 404 Not Found\r\n")
    with pytest.raises(FetchError, match="status 404: no such model"):
        answer("http://" + answering(refused).rstrip("/"), "m", "?")
