"""Requests as TensorRT-LLM's clients send them, answered or refused as its backend does, through the real Triton."""

from __future__ import annotations

import json
import queue
import shutil
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server, start, succeed

pytestmark = pytest.mark.e2e
PROMPT = [1005, 1006, 1007, 1008]
BASE: dict[str, Any] = {"input_ids": PROMPT, "input_lengths": 4, "request_output_len": 6}
TEXT: dict[str, Any] = {"text_input": "Hello there", "max_tokens": 5}
SAMPLING = {
    "temperature": 0.7, "runtime_top_k": 5, "runtime_top_p": 0.9, "len_penalty": 1.0, "repetition_penalty": 1.1,
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 42, "early_stopping": True, "beam_width": 1,
    "beam_search_diversity_rate": 0.0, "pad_id": 2, "num_return_sequences": 1,
}  # fmt: skip
TIMES = ("arrival_time_ns", "first_scheduled_time_ns", "first_token_time_ns", "last_token_time_ns")


def _answers(server: Server, model: str, body: dict[str, Any], *, stream: bool = False) -> list[dict[str, Any]]:
    """Return the responses to a request over HTTP, streamed or the only one."""
    url = f"{server.url}/v2/models/{model}/generate{'_stream' if stream else ''}"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=30) as reply:
        lines = [line.decode().removeprefix("data: ").strip() for line in reply]
    return [json.loads(line) for line in lines if line]


def _streamed(server: Server, body: dict[str, Any]) -> list[list[int]]:
    """Return the tokens of each streamed response of the engine."""
    responses = _answers(server, "tensorrt_llm", {**body, "streaming": True}, stream=True)
    return [[ids] if isinstance(ids := response["output_ids"], int) else ids for response in responses]


def _joined(responses: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(responses))


def _refused(server: Server, model: str, body: dict[str, Any], *, stream: bool = False) -> str:
    """Return the error a request ends with."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        _answers(server, model, body, stream=stream)
    with refused.value:
        return refused.value.read().decode()


class Client:
    """One gRPC stream, as upstream's inflight_batcher_llm_client.py keeps it; tensors are [batch, ...] arrays."""

    def __init__(self, server: Server) -> None:
        self._client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        self._responses: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._client.start_stream(lambda result, error: self._responses.put((result, error)))

    def send(self, tensors: dict[str, np.ndarray[Any, Any]], *, request_id: str = "") -> None:
        """Send a request to the engine's model."""
        inputs = []
        for name, values in tensors.items():
            made = triton.InferInput(name, list(values.shape), triton.np_to_triton_dtype(values.dtype))
            made.set_data_from_numpy(values)
            inputs.append(made)
        self._client.async_stream_infer("tensorrt_llm", inputs, request_id=request_id, enable_empty_final_response=True)

    def receive(self) -> tuple[Any, Any]:
        """Return the next response, or the error, of any request."""
        return self._responses.get(timeout=30)

    def until_final(self) -> list[Any]:
        """Return the responses up to the final one, which is left out where it is empty."""
        found = []
        while True:
            result, error = self.receive()
            assert error is None, error
            if result.get_response().outputs:
                found.append(result)
            if result.get_response().parameters["triton_final_response"].bool_param:
                return found

    def close(self) -> None:
        """End the stream and whatever is still coming in by it."""
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Open a stream to the server."""
    opened = Client(server)
    yield opened
    opened.close()


def _tensors(rows: list[list[int]], **more: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of a request of several prompts, padded to the longest."""
    longest = max(map(len, rows))
    ids = np.array([row + [0] * (longest - len(row)) for row in rows], np.int32)
    tensors = {
        "input_ids": ids,
        "input_lengths": np.array([[len(row)] for row in rows], np.int32),
        "request_output_len": np.full((len(rows), 1), 3, np.int32),
        "streaming": np.full((len(rows), 1), True),
    }
    return tensors | {name: np.array([[value]] * len(rows)) for name, value in more.items()}


def _unary_inputs(rows: list[list[int]]) -> list[triton.InferInput]:
    """Return the inputs of a request that is not streamed."""
    tensors = _tensors(rows)
    del tensors["streaming"]
    inputs = []
    for name, values in tensors.items():
        made = triton.InferInput(name, list(values.shape), "INT32")
        made.set_data_from_numpy(values)
        inputs.append(made)
    return inputs


def test_the_least_a_client_may_send(server: Server) -> None:
    """Three tensors are a request; the reply echoes the prompt unless it is told not to, as upstream's."""
    [reply] = _answers(server, "tensorrt_llm", BASE)
    assert reply["output_ids"] == [*PROMPT, *PROMPT, 1005, 1006]
    assert reply["sequence_length"] == 10
    [reply] = _answers(server, "tensorrt_llm", {**BASE, "exclude_input_in_output": True})
    assert (reply["output_ids"], reply["sequence_length"]) == ([1005, 1006, 1007, 1008, 1005, 1006], 6)


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_parameters_are_taken(server: Server, name: str) -> None:
    """Each changes what a model would say, and so nothing here; none is an error."""
    assert _joined(_streamed(server, {**BASE, name: SAMPLING[name]})) == [1005, 1006, 1007, 1008, 1005, 1006]


def test_an_end_token_ends_a_reply_and_is_not_in_it(server: Server) -> None:
    """The last response is empty, as upstream's; not before min_tokens."""
    assert _streamed(server, {**BASE, "end_id": 1007}) == [[1005], [1006], []]
    [reply] = _answers(server, "tensorrt_llm", {**BASE, "end_id": 1007, "exclude_input_in_output": True})
    assert (reply["output_ids"], reply["sequence_length"]) == ([1005, 1006], 2)
    with_least = _streamed(server, {**BASE, "end_id": 1007, "min_tokens": 4})
    assert with_least == [[1005], [1006], [1008], [1005], [1006], []]


def test_stop_and_bad_words_in_upstreams_form(server: Server) -> None:
    """Tokens in a row, then where each word ends: a stop word is the reply's last part, a bad word never comes."""
    words = [1007, 1008, 2000, 2, 3, -1]
    assert _joined(_streamed(server, {**BASE, "stop_words_list": words})) == [1005, 1006, 1007, 1008]
    assert 1006 not in _joined(_streamed(server, {**BASE, "bad_words_list": [1006, 0, 1, -1]}))
    nothing = {"stop_words_list": [0, -1], "bad_words_list": [0, -1]}
    assert len(_streamed(server, {**BASE, **nothing})) == 6


def test_counts_are_of_each_response(server: Server) -> None:
    """Token counts are those of the response they come with, the echoed prompt among them, as upstream counts."""
    asked = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    [reply] = _answers(server, "tensorrt_llm", {**BASE, **asked})
    assert (reply["num_input_tokens"], reply["num_output_tokens"]) == (4, 10)
    streamed = _answers(server, "tensorrt_llm", {**BASE, **asked, "streaming": True}, stream=True)
    assert [response["num_output_tokens"] for response in streamed] == [1] * 6


def test_performance_is_told_by_the_servers_clock(server: Server) -> None:
    """Four times in order on the steady clock, KV blocks taken and found, nothing drafted; on the last response."""
    prompt = list(range(3000, 3100))
    asked = {"input_ids": prompt, "input_lengths": 100, "request_output_len": 4, "return_perf_metrics": True}
    before = time.monotonic_ns()
    [first] = _answers(server, "tensorrt_llm", asked)
    [second] = _answers(server, "tensorrt_llm", asked)
    for reply in (first, second):
        times = [reply[name] for name in TIMES]
        assert times == sorted(times)
        assert before < times[0] < times[-1] < time.monotonic_ns()
        assert (reply["acceptance_rate"], reply["total_draft_tokens"], reply["total_accepted_draft_tokens"]) == (
            0,
            0,
            0,
        )
    assert (first["kv_cache_reused_blocks"], first["kv_cache_alloc_new_blocks"]) == (0, 4)
    assert (second["kv_cache_reused_blocks"], second["kv_cache_alloc_new_blocks"]) == (3, 1)
    streamed = _answers(server, "tensorrt_llm", {**asked, "streaming": True}, stream=True)
    assert [TIMES[0] in response for response in streamed] == [False, False, False, True]


def test_return_sequences_share_a_request(server: Server) -> None:
    """Each sequence is told apart by its index, and the request ends with the last of them."""
    body = {**BASE, "num_return_sequences": 3, "streaming": True, "request_output_len": 2}
    found = [response["sequence_index"] for response in _answers(server, "tensorrt_llm", body, stream=True)]
    assert sorted(found) == [0, 0, 1, 1, 2, 2]


def test_a_batch_of_prompts_is_answered_row_by_row(client: Client) -> None:
    """Rows of different lengths and ends share a request; batch_index tells whose tokens a response has."""
    client.send(_tensors([[11, 12, 13], [21, 22]], return_num_input_tokens=True))
    rows: dict[int, list[int]] = {0: [], 1: []}
    prompts: dict[int, int] = {}
    for response in client.until_final():
        row = int(response.as_numpy("batch_index")[0, 0])
        rows[row] += response.as_numpy("output_ids").reshape(-1).tolist()
        prompts[row] = int(response.as_numpy("num_input_tokens")[0, 0])
    assert rows == {0: [11, 12, 13], 1: [21, 22, 21]}
    assert prompts == {0: 3, 1: 2}


def test_a_batch_of_one_has_no_index(client: Client) -> None:
    """The usual request names neither row nor sequence."""
    client.send(_tensors([[31, 32]]))
    [first, *_] = client.until_final()
    assert first.as_numpy("output_ids").shape == (1, 1, 1)
    assert first.as_numpy("sequence_length").shape == (1, 1)
    assert first.as_numpy("batch_index") is None
    assert first.as_numpy("sequence_index") is None


def test_a_request_is_stopped_by_its_id(client: Client) -> None:
    """`stop` with the id of a running request ends both with an empty final response and no error, as upstream."""
    running = _tensors([[41, 42]]) | {"request_output_len": np.array([[4000]], np.int32)}
    client.send(running, request_id="run-1")
    client.receive()
    stop = _tensors([[41]]) | {"stop": np.array([[True]])}
    client.send(stop, request_id="run-1")
    finals = []
    while len(finals) < 2:
        result, error = client.receive()
        assert error is None
        if result.get_response().parameters["triton_final_response"].bool_param:
            finals.append(result.get_response())
    assert not any(final.outputs for final in finals)
    client.send(_tensors([[51]]), request_id="run-2")
    assert len(client.until_final()) == 3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no prompt": ({"input_lengths": 4, "request_output_len": 6}, "input_ids or encoder_input_features is not present"),
    "no length": ({"input_ids": [1], "input_lengths": 1}, "request_output_len is not present in the request"),
    "stop without an id": ({**BASE, "stop": True}, "Trying to stop a request but request ID is not provided"),
    "prompt too long": (
        {**BASE, "input_ids": [7] * 4097, "input_lengths": 4097},
        "Executor failed process requestId"),
    "prompt too long, in numbers": (
        {**BASE, "input_ids": [7] * 4097, "input_lengths": 4097},
        "Prompt length (4097) exceeds maximum input length (4096)"),
    "lookahead": (
        {**BASE, "lookahead_window_size": 3, "lookahead_ngram_size": 3, "lookahead_verification_set_size": 3},
        "Cannot set the request lookahead decoding configuration when model instance lookahead parameters are not set"),
    "word list": ({**BASE, "stop_words_list": [1, 5]}, "Sparse list must not have out-of-bound offsets: 1 5 "),
    "reply too long": ({**BASE, "request_output_len": 8193}, "at most 8192 is allowed here (max_output_tokens)"),
    "no reply": ({**BASE, "request_output_len": 0}, "at least 1 is needed"),
    "log probabilities": ({**BASE, "return_log_probs": True}, "return_log_probs is not emulated"),
    "context logits": ({**BASE, "return_context_logits": True}, "return_context_logits is not emulated"),
    "generation logits": ({**BASE, "return_generation_logits": True}, "return_generation_logits is not emulated"),
    "beams": ({**BASE, "beam_width": 4}, "beam_width above 1 is not emulated"),
    "drafts": ({**BASE, "draft_input_ids": [1, 2]}, "draft_input_ids is not emulated"),
    "adapters": ({**BASE, "lora_task_id": 3}, "lora_task_id is not emulated"),
    "grammar": (
        {**BASE, "guided_decoding_guide_type": "json", "guided_decoding_guide": "{}"},
        "guided_decoding_guide_type is not emulated"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_upstream_refuses_is_refused_in_its_words(server: Server, case: str) -> None:
    """TensorRT-LLM's own sentences where it refuses; one clear sentence where an emulated engine has to."""
    body, said = REFUSED[case]
    assert said in _refused(server, "tensorrt_llm", body)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_text_clients_are_answered(server: Server, model: str) -> None:
    """Text in, text out by either model: streamed or whole, with stop words, bad words and what is counted."""
    [whole] = _answers(server, model, TEXT)
    assert whole["text_output"] == "Hello there" + "Hello thereHello thereHello"
    streamed = _answers(server, model, {**TEXT, "stream": True, "id": f"t-{model}"}, stream=True)
    assert "".join(response["text_output"] for response in streamed) == "Hello thereHello thereHello"
    alone = {**TEXT, "exclude_input_in_output": True}
    [stopped] = _answers(server, model, {**alone, "stop_words": [" there"]})
    assert stopped["text_output"] == "Hello there"
    [kept] = _answers(server, model, {**alone, "bad_words": ["Hello"]})
    assert kept["text_output"] == " there" * 5
    asked = {"return_perf_metrics": True, "return_num_output_tokens": True, "temperature": 0.5, "seed": 1, "top_k": 3}
    [told] = _answers(server, model, {**alone, **asked})
    assert told["num_output_tokens"] == 5
    assert told["first_scheduled_time_ns"] <= told["first_token_time_ns"]
    [biased] = _answers(server, model, {**alone, "embedding_bias_words": ["a"], "embedding_bias_weights": [-1.0]})
    assert biased["text_output"] == "Hello thereHello thereHello"


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_a_reply_cut_inside_a_character_is_one_response(server: Server, model: str) -> None:
    """An emoji of three tokens cut after its first ends in U+FFFD, in the one response that HTTP wants."""
    asked = {"text_input": "\U0001faa1", "max_tokens": 1, "exclude_input_in_output": True}
    [reply] = _answers(server, model, asked)
    assert reply["text_output"] == "\ufffd"


TEXT_REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "long prompt": ({**TEXT, "text_input": "a b " * 3000}, "exceeds maximum input length (4096)"),
    "endless prompt": ({**TEXT, "text_input": "a" * (2 << 20)}, "2097152 characters, more than fit the 4096"),
    "long reply": ({**TEXT, "max_tokens": 9000}, "max_tokens is 9000; from 1 to 8192 is allowed here"),
    "endless words": ({**TEXT, "stop_words": ["a" * (2 << 20)]}, "stop_words_dict has 2097152 characters"),
    "no reply": ({**TEXT, "max_tokens": 0}, "max_tokens is 0; from 1 to 8192"),
    "words without weights": ({**TEXT, "embedding_bias_words": ["a"]}, "1 embedding_bias_words and 0"),
    "log probabilities": ({**TEXT, "return_log_probs": True}, "return_log_probs is not emulated"),
}


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
@pytest.mark.parametrize("case", TEXT_REFUSED)
def test_limits_are_kept_before_the_engine(server: Server, model: str, case: str) -> None:
    """A prompt or a reply past its limit is refused with the limit named, and costs the engine nothing."""
    body, said = TEXT_REFUSED[case]
    assert said in _refused(server, model, body)


def test_the_bls_model_has_no_draft_model(server: Server) -> None:
    """Speculation by BLS needs a second model; without one it is refused, not ignored."""
    assert "num_draft_tokens is not served" in _refused(server, "tensorrt_llm_bls", {**TEXT, "num_draft_tokens": 3})


@pytest.fixture(scope="module")
def coupled(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve without decoupled mode, with a small KV cache, a host cache and a prompt limit."""
    folder = tmp_path_factory.mktemp("coupled")
    (folder / "serving.yaml").write_text(
        "scheduling: {streaming: false, policy: max_utilization, exclude_input_in_output: true}\n"
        "kv_cache: {max_tokens: 8192, host_bytes: 1073741824}\n"
        "limits: {max_prompt_tokens: 64, max_output_tokens: 32}\n"
        "queue: {max_queue_size: 3, timeout_us: 5000000, priority_levels: 2}\n"
        "emulation: {time_scale: 2}\n"
    )
    repository = folder / "repository"
    succeed("build-repo", engine, "--serving", folder / "serving.yaml", "--out", repository)
    running = start(repository)
    yield running
    running.end()


def test_without_decoupled_mode_nothing_streams(coupled: Server) -> None:
    """Whole replies are answered by every model; a streamed request is refused in upstream's words."""
    [reply] = _answers(coupled, "tensorrt_llm", BASE)
    assert reply["output_ids"] == [1005, 1006, 1007, 1008, 1005, 1006]  # the prompt is left out by the setting
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert _answers(coupled, model, TEXT)[0]["text_output"] == "Hello thereHello thereHello"
    said = "Streaming is only supported if model is deployed using decoupled mode."
    assert said in _refused(coupled, "tensorrt_llm", {**BASE, "streaming": True})
    assert said in _refused(coupled, "tensorrt_llm_bls", {**TEXT, "stream": True})


def test_without_decoupled_mode_a_request_is_one_prompt(coupled: Server) -> None:
    """A batch of prompts is refused in upstream's words, over unary gRPC as over HTTP."""
    client = triton.InferenceServerClient(f"127.0.0.1:{coupled.grpc}")
    inputs = _unary_inputs([[1, 2], [3, 4]])
    with pytest.raises(triton.InferenceServerException, match="Batch size > 1 requires the tensorrt_llm backend"):
        client.infer("tensorrt_llm", inputs)
    client.close()


def test_priorities_reach_tritons_queue(coupled: Server) -> None:
    """With two levels a request may state either, and is answered as without one."""
    client = triton.InferenceServerClient(f"127.0.0.1:{coupled.grpc}")
    config = client.get_model_config("tensorrt_llm", as_json=True)["config"]["dynamic_batching"]
    assert (config["priority_levels"], config["default_priority_level"]) == ("2", "1")
    assert config["default_queue_policy"]["default_timeout_microseconds"] == "5000000"
    inputs = _unary_inputs([[1, 2]])
    for priority in (1, 2):
        reply = client.infer("tensorrt_llm", inputs, priority=priority)
        assert reply.as_numpy("output_ids").reshape(-1).tolist() == [1, 2, 1]
    client.close()


def test_serving_settings_change_the_emulated_engine(coupled: Server) -> None:
    """The KV pool has the blocks asked for, and the limits of the YAML are the ones that refuse."""
    with urllib.request.urlopen(f"http://127.0.0.1:{coupled.metrics}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    name = 'nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max"'
    assert [float(line.split()[-1]) for line in lines if line.startswith(name)] == [8192 / 32]
    long = {"input_ids": [5] * 65, "input_lengths": 65, "request_output_len": 2}
    assert "exceeds maximum input length (64)" in _refused(coupled, "tensorrt_llm", long)
    assert "at most 32 is allowed here" in _refused(coupled, "tensorrt_llm", {**BASE, "request_output_len": 33})


@pytest.fixture(scope="module")
def llmapi(tmp_path_factory: pytest.TempPathFactory, engine: Path) -> Iterator[Server]:
    """Serve the emulated twin of the LLM API's model, beside the other engine."""
    assert engine.is_dir()  # skips where there is no Triton
    folder = tmp_path_factory.mktemp("llmapi")
    succeed("build-engine", "--precision", "fp8", "--backend", "pytorch", "--emulate", "--out", folder / "engine")
    succeed("build-repo", folder / "engine", "--out", folder / "repository", "--time-scale", 2)
    assert "in order" in succeed("check-repo", folder / "repository")
    running = start(folder / "repository")
    yield running
    running.end()


ASTRONAUT = {"text_input": "Hello there, astronaut 👩‍🚀", "sampling_param_max_tokens": 12}


def test_the_llm_api_answers_text(llmapi: Server) -> None:
    """Whole, with the LLM API's own length where none is asked for; streamed, each response has the text so far."""
    [reply] = _answers(llmapi, "tensorrt_llm", ASTRONAUT)
    assert reply["text_output"] == "Hello there, astronaut 👩‍🚀Hello there,"
    [reply] = _answers(llmapi, "tensorrt_llm", {"text_input": "x", "return_finish_reason": True})
    assert (reply["text_output"], reply["finish_reason"]) == ("x" * 32, "length")
    streamed = _answers(llmapi, "tensorrt_llm", {**ASTRONAUT, "streaming": True}, stream=True)
    texts = [response["text_output"] for response in streamed]
    assert len(texts) == 12
    assert all(later.startswith(earlier) for earlier, later in pairwise(texts))
    assert not any("\ufffd" in text for text in texts)
    assert texts[-1] == "Hello there, astronaut 👩‍🚀Hello there,"


def test_the_llm_api_stops_at_text(llmapi: Server) -> None:
    """A stop string that lies inside a token ends the reply before it, and is named as the reason."""
    asked = {**ASTRONAUT, "sampling_param_stop": ["naut", "zzz"], "return_finish_reason": True}
    streamed = _answers(llmapi, "tensorrt_llm", {**asked, "return_stop_reason": True, "streaming": True}, stream=True)
    assert streamed[-1]["text_output"] == "Hello there, astro"
    assert (streamed[-1]["finish_reason"], streamed[-1]["stop_reason"]) == ("stop", "naut")


def test_the_llm_api_tells_performance_as_text(llmapi: Server) -> None:
    """Upstream's model sends these values as strings, and so does its twin."""
    [reply] = _answers(llmapi, "tensorrt_llm", {**ASTRONAUT, "sampling_param_return_perf_metrics": True})
    assert [int(reply[name]) for name in TIMES] == sorted(int(reply[name]) for name in TIMES)
    assert reply["kv_cache_alloc_new_blocks"] == "1"
    assert float(reply["kv_cache_hit_rate"]) == 0


def test_the_llm_api_refuses_as_upstream(llmapi: Server) -> None:
    """What is missing, too much or not emulated is one sentence with upstream's beginning."""
    cases = {
        "text_input is missing": {"sampling_param_max_tokens": 3},
        "sampling_param_best_of is not emulated": {**ASTRONAUT, "sampling_param_best_of": 2},
        "return_cumulative_logprob is not emulated": {**ASTRONAUT, "return_cumulative_logprob": True},
        "from 1 to 8192 is allowed": {**ASTRONAUT, "sampling_param_max_tokens": 10_000},
        "exceeds maximum input length (4096)": {**ASTRONAUT, "text_input": "a b " * 3000},
        "2097152 characters, more than fit the 4096": {**ASTRONAUT, "text_input": "a" * (2 << 20)},
        "sampling_param_stop has 2097152 characters": {**ASTRONAUT, "sampling_param_stop": ["a" * (2 << 20)]},
    }
    for said, body in cases.items():
        refused = _refused(llmapi, "tensorrt_llm", body)
        assert "Error generating request: " in refused
        assert said in refused
    assert "A request id must be provided" in _refused(llmapi, "tensorrt_llm", {**ASTRONAUT, "stop": True})


def test_the_llm_api_stops_a_request_by_its_id(llmapi: Server) -> None:
    """Both the stopped and the stopping request end with upstream's error, long before the reply would have."""
    long = {**ASTRONAUT, "sampling_param_max_tokens": 4000, "id": "long"}
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(_refused(llmapi, "tensorrt_llm", long)))
    begun = time.monotonic()
    thread.start()
    stop = {**ASTRONAUT, "stop": True, "id": "long"}
    while thread.is_alive() and time.monotonic() - begun < 25:  # the first may come before the request it stops
        assert "Request cancelled by client" in _refused(llmapi, "tensorrt_llm", stop)
        thread.join(timeout=0.2)
    assert "Request cancelled by client" in said[0]
    assert time.monotonic() - begun < 25  # whole, it would take 4000 steps of about 9 ms
    assert _answers(llmapi, "tensorrt_llm", ASTRONAUT)


def test_the_llm_api_is_load_tested(llmapi: Server, tmp_path: Path) -> None:
    """run-load sees what model it is, sends text, and counts a token for each event."""
    load = ["--concurrency", "1,4", "--isl", 64, "--osl", 16, "--requests", 6]
    succeed("run-load", "--url", llmapi.url, *load, "--out", tmp_path / "run")
    summary = json.loads(
        succeed("report-load", tmp_path / "run", "--out", tmp_path / "report", "--no-exports", "--json")
    )
    assert summary["kind"] == "emulated"
    assert [(level["requests"], level["errors"], level["osl"]) for level in summary["levels"]] == [(6, 0, 16)] * 2


# What upstream's model does with its files: helpers beside its code, model.yaml beside the entry point.
STAND_IN = """
import os
import numpy as np, yaml
import triton_python_backend_utils as pb_utils
from helpers import shout

class TritonPythonModel:
    def initialize(self, args):
        with open(os.path.join(pb_utils.get_model_dir(), "model.yaml")) as file:
            self.arguments = yaml.safe_load(file)

    def execute(self, requests):
        for request in requests:
            text = pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()[0].decode()
            said = shout(text) + str(self.arguments["max_batch_size"])
            output = pb_utils.Tensor("text_output", np.array([said.encode()], dtype=object))
            request.get_response_sender().send(
                pb_utils.InferenceResponse([output]), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


def test_code_from_the_image_runs_in_the_rendered_repository(llmapi: Server, tmp_path: Path) -> None:
    """A built engine's LLM API repository loads the code it is told of, which finds its model.yaml and its helpers."""
    shutil.copytree(llmapi.repository.parent / "engine", tmp_path / "engine")
    (tmp_path / "engine" / "checkpoint").mkdir()
    manifest = json.loads((tmp_path / "engine" / "manifest.json").read_text())
    manifest |= {"kind": "checkpoint", "checkpoint": "checkpoint"}
    (tmp_path / "engine" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "helpers.py").write_text("def shout(text):\n    return text.upper()\n")
    (tmp_path / "code" / "model.py").write_text(STAND_IN)
    repository = tmp_path / "repository"
    code = f"llmapi.model_code={tmp_path / 'code'}"
    succeed("build-repo", tmp_path / "engine", "--set", code, "--out", repository)
    running = start(repository)
    try:
        [reply] = _answers(running, "tensorrt_llm", {"text_input": "hi "})
        assert reply["text_output"] == f"HI {manifest['limits']['max_batch_size']}"
    finally:
        running.end()
