"""What a server answers while a walk waits for it."""

from __future__ import annotations

import pytest

from engines.errors import ToolError
from tests.unit.conftest import DRIPPED, OK, Answering
from triton_repo.gpu_check import session
from triton_repo.gpu_check.session import fetched, fetched_object


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        (DRIPPED["a body of a length"], r"no complete answer within 0\.3 s"),
        ([b"HTTP/1.1 503 No\r\n\r\nloading"], "HTTP 503: loading"),
        ([b"garbage\r\n"], "BadStatusLine"),
        ([OK + b"Content-Length: 9\r\n\r\n{}"], "IncompleteRead"),
    ],
)
def test_an_answer_that_is_late_cut_or_refused_is_an_error(
    answering: Answering, pieces: list[bytes], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit covers the whole answer."""
    monkeypatch.setattr(session, "REPLY_LIMIT_S", 0.3)
    with pytest.raises(ToolError, match=reason):
        fetched("http://" + answering(pieces, pause_s=0.05), {"text_input": "a"})


def test_an_answer_is_its_text(answering: Answering) -> None:
    """Of a page or of a POST."""
    assert fetched("http://" + answering([OK + b"Content-Length: 2\r\n\r\nhi"])) == "hi"


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"[" * 100_000, b"\xff"])
def test_an_answer_that_is_not_an_object_fails_the_check(answering: Answering, body: bytes) -> None:
    """It is no bug of the walk, which goes on."""
    with pytest.raises(ToolError, match="something else than a JSON object"):
        fetched_object("http://" + answering([OK + b"\r\n" + body]))


def test_an_object_is_returned(answering: Answering) -> None:
    """As a generate endpoint answers."""
    assert fetched_object("http://" + answering([OK + b'\r\n{"text_output": "Paris"}']))["text_output"] == "Paris"
