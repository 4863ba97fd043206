"""Requests as TensorRT-LLM's clients send them, answered or refused as its backend does, through the real Triton."""

from __future__ import annotations

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

sys.path.insert(0, str(Path(__file__).parent))
from conftest import Server, start, succeed
from upstream_client import (
    BASE,
    PROMPT,
    TEXT,
    TIMES,
    Client,
    answers_to,
    joined,
    refusal_of,
    request_tensors,
    streamed_tokens,
    unary_inputs,
)

pytestmark = pytest.mark.e2e
SAMPLING = {
    "temperature": 0.7, "runtime_top_k": 5, "runtime_top_p": 0.9, "len_penalty": 1.0, "repetition_penalty": 1.1,
    "presence_penalty": 0.1, "frequency_penalty": 0.1, "seed": 42, "early_stopping": True, "beam_width": 1,
    "beam_search_diversity_rate": 0.0, "pad_id": 2, "num_return_sequences": 1,
}  # fmt: skip


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Open a stream to the server."""
    opened = Client(server)
    yield opened
    opened.close()


def test_the_least_a_client_may_send(server: Server) -> None:
    """Three tensors are a request; the reply echoes the prompt unless it is told not to, as upstream's."""
    [reply] = answers_to(server, "tensorrt_llm", BASE)
    assert reply["output_ids"] == [*PROMPT, *PROMPT, 1005, 1006]
    assert reply["sequence_length"] == 10
    [reply] = answers_to(server, "tensorrt_llm", {**BASE, "exclude_input_in_output": True})
    assert (reply["output_ids"], reply["sequence_length"]) == ([1005, 1006, 1007, 1008, 1005, 1006], 6)


@pytest.mark.parametrize("name", SAMPLING)
def test_sampling_parameters_are_taken(server: Server, name: str) -> None:
    """Each changes what a model would say, and so nothing here; none is an error."""
    assert joined(streamed_tokens(server, {**BASE, name: SAMPLING[name]})) == [1005, 1006, 1007, 1008, 1005, 1006]


def test_an_end_token_ends_a_reply_and_is_not_in_it(server: Server) -> None:
    """The last response is empty, as upstream's; not before min_tokens."""
    assert streamed_tokens(server, {**BASE, "end_id": 1007}) == [[1005], [1006], []]
    [reply] = answers_to(server, "tensorrt_llm", {**BASE, "end_id": 1007, "exclude_input_in_output": True})
    assert (reply["output_ids"], reply["sequence_length"]) == ([1005, 1006], 2)
    with_least = streamed_tokens(server, {**BASE, "end_id": 1007, "min_tokens": 4})
    assert with_least == [[1005], [1006], [1008], [1005], [1006], []]


def test_stop_and_bad_words_in_upstreams_form(server: Server) -> None:
    """Tokens in a row, then where each word ends: a stop word is the reply's last part, a bad word never comes."""
    words = [1007, 1008, 2000, 2, 3, -1]
    assert joined(streamed_tokens(server, {**BASE, "stop_words_list": words})) == [1005, 1006, 1007, 1008]
    assert 1006 not in joined(streamed_tokens(server, {**BASE, "bad_words_list": [1006, 0, 1, -1]}))
    nothing = {"stop_words_list": [0, -1], "bad_words_list": [0, -1]}
    assert len(streamed_tokens(server, {**BASE, **nothing})) == 6


def test_counts_are_of_each_response(server: Server) -> None:
    """Token counts are those of the response they come with, the echoed prompt among them, as upstream counts."""
    asked = {"return_num_input_tokens": True, "return_num_output_tokens": True}
    [reply] = answers_to(server, "tensorrt_llm", {**BASE, **asked})
    assert (reply["num_input_tokens"], reply["num_output_tokens"]) == (4, 10)
    streamed = answers_to(server, "tensorrt_llm", {**BASE, **asked, "streaming": True}, stream=True)
    assert [response["num_output_tokens"] for response in streamed] == [1] * 6


def test_performance_is_told_by_the_servers_clock(server: Server) -> None:
    """Four times in order on the steady clock, KV blocks taken and found, nothing drafted; on the last response."""
    prompt = list(range(3000, 3100))
    asked = {"input_ids": prompt, "input_lengths": 100, "request_output_len": 4, "return_perf_metrics": True}
    before = time.monotonic_ns()
    [first] = answers_to(server, "tensorrt_llm", asked)
    [second] = answers_to(server, "tensorrt_llm", asked)
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
    streamed = answers_to(server, "tensorrt_llm", {**asked, "streaming": True}, stream=True)
    assert [TIMES[0] in response for response in streamed] == [False, False, False, True]


def test_return_sequences_share_a_request(server: Server) -> None:
    """Each sequence is told apart by its index, and the request ends with the last of them."""
    body = {**BASE, "num_return_sequences": 3, "streaming": True, "request_output_len": 2}
    found = [response["sequence_index"] for response in answers_to(server, "tensorrt_llm", body, stream=True)]
    assert sorted(found) == [0, 0, 1, 1, 2, 2]


def test_a_batch_of_prompts_is_answered_row_by_row(client: Client) -> None:
    """Rows of different lengths and ends share a request; batch_index tells whose tokens a response has."""
    client.send(request_tensors([[11, 12, 13], [21, 22]], return_num_input_tokens=True))
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
    client.send(request_tensors([[31, 32]]))
    [first, *_] = client.until_final()
    assert first.as_numpy("output_ids").shape == (1, 1, 1)
    assert first.as_numpy("sequence_length").shape == (1, 1)
    assert first.as_numpy("batch_index") is None
    assert first.as_numpy("sequence_index") is None


def test_a_request_is_stopped_by_its_id(client: Client) -> None:
    """`stop` with the id of a running request ends both with an empty final response and no error, as upstream."""
    running = request_tensors([[41, 42]]) | {"request_output_len": np.array([[4000]], np.int32)}
    client.send(running, request_id="run-1")
    client.receive()
    stop = request_tensors([[41]]) | {"stop": np.array([[True]])}
    client.send(stop, request_id="run-1")
    finals = []
    while len(finals) < 2:
        result, error = client.receive()
        assert error is None
        if result.get_response().parameters["triton_final_response"].bool_param:
            finals.append(result.get_response())
    assert not any(final.outputs for final in finals)
    client.send(request_tensors([[51]]), request_id="run-2")
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
    assert said in refusal_of(server, "tensorrt_llm", body)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_text_clients_are_answered(server: Server, model: str) -> None:
    """Text in, text out by either model: streamed or whole, with stop words, bad words and what is counted."""
    [whole] = answers_to(server, model, TEXT)
    assert whole["text_output"] == "Hello there" + "Hello thereHello thereHello"
    streamed = answers_to(server, model, {**TEXT, "stream": True, "id": f"t-{model}"}, stream=True)
    assert "".join(response["text_output"] for response in streamed) == "Hello thereHello thereHello"
    alone = {**TEXT, "exclude_input_in_output": True}
    [stopped] = answers_to(server, model, {**alone, "stop_words": [" there"]})
    assert stopped["text_output"] == "Hello there"
    [kept] = answers_to(server, model, {**alone, "bad_words": ["Hello"]})
    assert kept["text_output"] == " there" * 5
    asked = {"return_perf_metrics": True, "return_num_output_tokens": True, "temperature": 0.5, "seed": 1, "top_k": 3}
    [told] = answers_to(server, model, {**alone, **asked})
    assert told["num_output_tokens"] == 5
    assert told["first_scheduled_time_ns"] <= told["first_token_time_ns"]
    [biased] = answers_to(server, model, {**alone, "embedding_bias_words": ["a"], "embedding_bias_weights": [-1.0]})
    assert biased["text_output"] == "Hello thereHello thereHello"


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_a_reply_cut_inside_a_character_is_one_response(server: Server, model: str) -> None:
    """An emoji of three tokens cut after its first ends in U+FFFD, in the one response that HTTP wants."""
    asked = {"text_input": "\U0001faa1", "max_tokens": 1, "exclude_input_in_output": True}
    [reply] = answers_to(server, model, asked)
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
    assert said in refusal_of(server, model, body)


def test_the_bls_model_has_no_draft_model(server: Server) -> None:
    """Speculation by BLS needs a second model; without one it is refused, not ignored."""
    assert "num_draft_tokens is not served" in refusal_of(server, "tensorrt_llm_bls", {**TEXT, "num_draft_tokens": 3})


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
    [reply] = answers_to(coupled, "tensorrt_llm", BASE)
    assert reply["output_ids"] == [1005, 1006, 1007, 1008, 1005, 1006]  # the prompt is left out by the setting
    for model in ("ensemble", "tensorrt_llm_bls"):
        assert answers_to(coupled, model, TEXT)[0]["text_output"] == "Hello thereHello thereHello"
    said = "Streaming is only supported if model is deployed using decoupled mode."
    assert said in refusal_of(coupled, "tensorrt_llm", {**BASE, "streaming": True})
    assert said in refusal_of(coupled, "tensorrt_llm_bls", {**TEXT, "stream": True})


def test_without_decoupled_mode_a_request_is_one_prompt(coupled: Server) -> None:
    """A batch of prompts is refused in upstream's words, over unary gRPC as over HTTP."""
    client = triton.InferenceServerClient(f"127.0.0.1:{coupled.grpc}")
    inputs = unary_inputs([[1, 2], [3, 4]])
    with pytest.raises(triton.InferenceServerException, match="Batch size > 1 requires the tensorrt_llm backend"):
        client.infer("tensorrt_llm", inputs)
    client.close()


def test_priorities_reach_tritons_queue(coupled: Server) -> None:
    """With two levels a request may state either, and is answered as without one."""
    client = triton.InferenceServerClient(f"127.0.0.1:{coupled.grpc}")
    config = client.get_model_config("tensorrt_llm", as_json=True)["config"]["dynamic_batching"]
    assert (config["priority_levels"], config["default_priority_level"]) == ("2", "1")
    assert config["default_queue_policy"]["default_timeout_microseconds"] == "5000000"
    inputs = unary_inputs([[1, 2]])
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
    assert "exceeds maximum input length (64)" in refusal_of(coupled, "tensorrt_llm", long)
    assert "at most 32 is allowed here" in refusal_of(coupled, "tensorrt_llm", {**BASE, "request_output_len": 33})
