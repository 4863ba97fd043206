"""The front's page of Triton's metrics, of a Triton that answers badly."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

pytest.importorskip("starlette", reason="the front extra is not installed")

from tests.unit.conftest import DRIPPED, OK, Answering
from triton_repo.openai_api import app
from triton_repo.openai_api.errors import ApiError

NONE = cast(Any, None)  # parts that this page does not use


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        (DRIPPED["a body to the end of the connection"], r"no complete answer within 0\.3 s"),
        ([b"HTTP/1.1 503 No\r\n\r\n"], "answered 503"),
        ([b"garbage\r\n"], "BadStatusLine"),
        ([OK + b"Content-Length: 9\r\n\r\n{}"], "IncompleteRead"),
    ],
)
def test_metrics_that_are_late_cut_or_refused_are_an_error(
    answering: Answering, pieces: list[bytes], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told, and no thread of the front waits for longer than the limit."""
    monkeypatch.setattr(app, "METRICS_WITHIN_S", 0.3)
    url = "http://" + answering(pieces, pause_s=0.05)
    with pytest.raises(ApiError, match=reason) as refused:
        asyncio.run(app._Pages(NONE, NONE, NONE, url)._triton())
    assert refused.value.status == 503


def test_metrics_are_tritons_page(answering: Answering) -> None:
    """As it is."""
    url = "http://" + answering([OK + b"Content-Length: 2\r\n\r\nhi"])
    assert asyncio.run(app._Pages(NONE, NONE, NONE, url)._triton()) == b"hi"
