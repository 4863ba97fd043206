"""The emulated engine's model on its own, with a stand-in for Triton: what is sent, when it ends, what is freed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.emulator import Batcher
from engines.files import Document, MadeBy, write_json
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from tests.fake_triton import FakeBackend, FakeFamily, FakeLogger, FakeModelError, FakeRequest, FakeResponse, FakeSender
from triton_repo.models import engine_host
from triton_repo.models.tensorrt_llm import EmulatedEngineModel

HEAD = MadeBy(command="test", version="0")
LIMIT_S = 20


@pytest.fixture
def model(tmp_path: Path) -> Iterator[EmulatedEngineModel]:
    """Start the model of a small engine, fifty times as fast as it would be."""
    asked = resolve_recipe(None, {"limits.max_batch_size": 4})
    manifest = emulated_manifest(make_plan(asked, head=Document(made_by=HEAD)), asked.recipe)
    (tmp_path / "1").mkdir()
    write_json(tmp_path / "1" / "engine.json", manifest)
    parameters = {
        "emulator_manifest": "engine.json",
        "emulator_time_scale": "0.02",
        "stats_check_period_ms": "10",
        "enable_chunked_context": "true",
    }
    config = {
        "parameters": {key: {"string_value": value} for key, value in parameters.items()},
        "model_transaction_policy": {"decoupled": True},
        "dynamic_batching": {"default_queue_policy": {"max_queue_size": 4}},
    }
    FakeFamily.observed.clear()
    FakeLogger.errors.clear()
    made = EmulatedEngineModel()
    made.backend = FakeBackend
    made.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(tmp_path),
            "model_version": "1",
            "model_name": "tensorrt_llm",
        }
    )
    yield made
    made.finalize()


def _request(rows: list[list[int]], output: int, request_id: str = "", **more: Any) -> FakeRequest:
    longest = max(map(len, rows))
    return FakeRequest(
        request_id,
        input_ids=[row + [0] * (longest - len(row)) for row in rows],
        input_lengths=[[len(row)] for row in rows],
        request_output_len=[[output]] * len(rows),
        streaming=[[True]] * len(rows),
        **{name: [[value]] * len(rows) for name, value in more.items()},
    )


def _tokens(request: FakeRequest) -> list[int]:
    assert request.sender.ended.wait(LIMIT_S)
    return [int(token) for response in request.sender.sent for token in response.outputs["output_ids"].reshape(-1)]


def test_a_stream_ends_with_its_last_token(model: EmulatedEngineModel) -> None:
    """One response a token, the last of them final."""
    request = _request([[5, 6, 7]], 5)
    model.execute([request])
    assert _tokens(request) == [5, 6, 7, 5, 6]
    assert len(request.sender.sent) == 5


def test_a_request_ends_with_the_last_of_its_sequences(model: EmulatedEngineModel) -> None:
    """Rows of different ends and their return sequences are all sent before the one final response."""
    request = _request([[5, 6, 7], [8, 9]], 6, num_return_sequences=2, end_id=9)
    model.execute([request])
    assert request.sender.ended.wait(LIMIT_S)
    found: dict[tuple[int, int], list[int]] = {}
    for response in request.sender.sent:
        key = (int(response.outputs["batch_index"][0, 0]), int(response.outputs["sequence_index"][0, 0]))
        found.setdefault(key, []).extend(response.outputs["output_ids"].reshape(-1).tolist())
    assert found == {(0, 0): [5, 6, 7] * 2, (0, 1): [5, 6, 7] * 2, (1, 0): [8], (1, 1): [8]}


def test_a_client_that_left_frees_its_slot(model: EmulatedEngineModel) -> None:
    """Every slot taken by clients that leave: the next request runs, and nobody is asked past the end."""
    leaving = [_request([[1, 2]], 4000, num_return_sequences=2) for _ in range(2)]
    model.execute(leaving)
    for request in leaving:
        assert request.sender.begun.wait(LIMIT_S)
        request.sender.cancelled = True
    assert all(request.sender.ended.wait(LIMIT_S) for request in leaving)
    following = _request([[3, 4]], 3)
    model.execute([following])
    assert _tokens(following) == [3, 4, 3]


def test_a_stop_ends_every_sequence_of_an_id(model: EmulatedEngineModel) -> None:
    """The stopped request and the stopping one both end, without an error."""
    running = _request([[1, 2]], 4000, request_id="one", num_return_sequences=3)
    model.execute([running])
    assert running.sender.begun.wait(LIMIT_S)
    stopping = _request([[1]], 1, request_id="one", stop=True)
    model.execute([stopping])
    assert running.sender.ended.wait(LIMIT_S)
    assert stopping.sender.ended.wait(LIMIT_S)
    assert not stopping.sender.sent
    assert not any(response.error for response in running.sender.sent)


def test_lengths_are_counted_once_a_request_when_it_has_ended(model: EmulatedEngineModel) -> None:
    """As upstream: nothing while it runs, then its prompt and reply, stopped or not; of a refused request nothing."""
    running = _request([[1, 2, 3]], 4000, request_id="one")
    model.execute([running, _request([[1]], 0)])
    assert running.sender.begun.wait(LIMIT_S)
    assert FakeFamily.observed == {}
    model.execute([_request([[1]], 1, request_id="one", stop=True)])
    assert running.sender.ended.wait(LIMIT_S)
    ended = _request([[5, 6]], 7, num_return_sequences=2)
    model.execute([ended])
    assert ended.sender.ended.wait(LIMIT_S)
    model.finalize()
    assert FakeFamily.observed["nv_llm_input_token_len"] == [3, 2]
    stopped_after, whole = FakeFamily.observed["nv_llm_output_token_len"]
    assert 0 < stopped_after < 4000
    assert whole == 7


def test_a_request_is_queued_whole_or_not_at_all(model: EmulatedEngineModel) -> None:
    """Sequences past the queue's size are refused together, as the executor counts them; what was there goes on."""
    filling = _request([[1, 2]], 300, num_return_sequences=4)
    waiting = _request([[1, 2]], 2)
    model.execute([filling, waiting])
    refused = _request([[1, 2]], 2, num_return_sequences=4)
    model.execute([refused])
    assert refused.sender.ended.wait(LIMIT_S)
    assert "Maximum queue size of 4 has been reached" in str(refused.sender.sent[0].error)
    assert _tokens(waiting) == [1, 2]
    assert len(_tokens(filling)) == 1200


@pytest.mark.parametrize(
    ("rows", "lengths", "complaint"),
    [
        ([[1, 2]], [[3]], "input_lengths is 3, and input_ids holds 2 tokens"),
        ([[1, 2]], [[0]], "input_lengths is 0"),
        ([[1, -1]], [[2]], "input_ids holds -1"),
        ([[2**31 - 1]], [[1]], "input_ids holds 2147483647; the model's tokens are 0 to"),
        ([[1, 2, 3]], [[1], [2]], "input_lengths has 2 rows, and input_ids has shape"),
    ],
)
def test_ids_and_lengths_that_contradict_the_tensors_are_refused(
    model: EmulatedEngineModel, rows: list[list[int]], lengths: list[list[int]], complaint: str
) -> None:
    """A length past the ids, rows that do not match, and ids that are no tokens of the model end with an error."""
    request = FakeRequest("", input_ids=rows, input_lengths=lengths, request_output_len=[[2]] * len(lengths))
    model.execute([request])
    assert request.sender.ended.wait(LIMIT_S)
    assert complaint in str(request.sender.sent[0].error)


def test_a_refused_request_harms_no_other(model: EmulatedEngineModel) -> None:
    """Of requests that come together, the one that cannot be answered alone ends with an error."""
    good, bad, also_good = _request([[1]], 2), _request([[1]], 0), _request([[2]], 2)
    model.execute([good, bad, also_good])
    assert (_tokens(good), _tokens(also_good)) == ([1, 1], [2, 2])
    assert "request_output_len is 0" in str(bad.sender.sent[0].error)


class RefusingSender(FakeSender):
    """Takes nothing."""

    def send(self, response: FakeResponse | None = None, flags: int = 0) -> None:  # noqa: ARG002
        """Refuse."""
        raise FakeModelError("Failed to increase the shared memory pool size")


def test_a_response_that_is_not_taken_ends_its_own_request(model: EmulatedEngineModel) -> None:
    """The sender goes on with the others, and the log says why."""
    refused = _request([[1, 2]], 4000)
    refused.sender = RefusingSender()
    others = [_request([[3, 4]], 3) for _ in range(3)]
    model.execute([refused, *others])
    assert [_tokens(request) for request in others] == [[3, 4, 3]] * 3
    assert any("shared memory pool" in message for message in FakeLogger.errors)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_step_ends_every_request_with_an_error(
    model: EmulatedEngineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A defect in a step is no silence: what runs ends with an error, what comes later is refused with the same."""
    running = _request([[1, 2]], 4000)
    model.execute([running])
    assert running.sender.begun.wait(LIMIT_S)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Batcher, "finish", fail)
    assert running.sender.ended.wait(LIMIT_S)
    assert running.sender.sent[-1].error == engine_host.STOPPED
    later = _request([[1]], 1)
    wait_until = threading.Event()
    for _ in range(100):
        model.execute([later])
        if later.sender.ended.is_set():
            break
        wait_until.wait(0.05)
    assert later.sender.sent[0].error == engine_host.STOPPED
