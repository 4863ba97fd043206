"""The models that turn text into tokens and back, with a stand-in for Triton's module: tensors in, tensors out."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from triton_repo.models.postprocessing import Postprocessing
from triton_repo.models.preprocessing import Preprocessing
from triton_repo.models.text import byte_alphabet

END = 256


@dataclass(frozen=True)
class _Tensor:
    tensor_name: str
    values: Any

    def as_numpy(self) -> Any:
        return self.values

    def name(self) -> str:
        return self.tensor_name


@dataclass
class _Request:
    tensors: dict[str, Any]
    name: str = ""

    def request_id(self) -> str:
        return self.name


@dataclass
class _Response:
    output: list[_Tensor] = field(default_factory=list)
    error: str | None = None

    def named(self) -> dict[str, Any]:
        return {tensor.tensor_name: tensor.values for tensor in self.output}


class _Backend:
    """As much of triton_python_backend_utils as the models use; it counts the tensors made."""

    InferenceResponse = _Response
    TritonError = str

    def __init__(self) -> None:
        self.made = 0

    def Tensor(self, name: str, values: Any) -> _Tensor:  # noqa: N802 (Triton's name)
        self.made += 1
        return _Tensor(name, values)

    @staticmethod
    def get_input_tensor_by_name(request: _Request, name: str) -> _Tensor | None:
        values = request.tensors.get(name)
        return None if values is None else _Tensor(name, values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a tokenizer in which every byte is a token."""
    tokenizer = Tokenizer(models.BPE({character: byte for byte, character in enumerate(byte_alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<end>", special=True)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return tmp_path


def _started(kind: Any, folder: Path, **parameters: str) -> Any:
    model = kind()
    model.backend = _Backend()
    shown = {"tokenizer_dir": str(folder), **parameters}
    config = {"parameters": {key: {"string_value": value} for key, value in shown.items()}}
    model.initialize({"model_config": json.dumps(config)})
    return model


@pytest.fixture
def preprocessing(folder: Path) -> Any:
    """Start the model."""
    return _started(Preprocessing, folder, add_special_tokens="true")


@pytest.fixture
def postprocessing(folder: Path) -> Any:
    """Start the model."""
    return _started(Postprocessing, folder, skip_special_tokens="true")


def _words(*words: str) -> Any:
    return np.array([[word.encode() for word in words]], dtype=object)


def _int(value: int) -> Any:
    return np.array([[value]], np.int32)


def _stream(model: Any, name: str, ids: Iterable[int]) -> list[str]:
    requests = [_Request({"TOKENS_BATCH": np.array([[[i]]], np.int32), "SEQUENCE_LENGTH": _int(1)}, name) for i in ids]
    return [response.named()["OUTPUT"].item().decode() for response in model.execute(requests)]


def test_a_prompt_becomes_the_engines_tensors(preprocessing: Any) -> None:
    """Ids, lengths, words in TensorRT-LLM's form, and what the request leaves out by default."""
    request = _Request(
        {"QUERY": _words("héllo"), "REQUEST_OUTPUT_LEN": _int(7), "STOP_WORDS_DICT": _words("ab", "", "c")}
    )
    plain = _Request({"QUERY": _words("a"), "REQUEST_OUTPUT_LEN": _int(1), "END_ID": _int(5), "PAD_ID": _int(6)})
    first, second = [response.named() for response in preprocessing.execute([request, plain])]
    assert first["INPUT_ID"].tolist() == [list("héllo".encode())]
    assert first["REQUEST_INPUT_LEN"].tolist() == [[6]]
    assert first["REQUEST_OUTPUT_LEN"].tolist() == [[7]]
    assert first["STOP_WORDS_IDS"].tolist() == [[[97, 98, 99], [2, 3, -1]]]
    assert first["BAD_WORDS_IDS"].tolist() == [[[0], [-1]]]
    assert (first["OUT_END_ID"].tolist(), first["OUT_PAD_ID"].tolist()) == ([[END]], [[END]])
    assert second["STOP_WORDS_IDS"].tolist() == [[[0], [-1]]]
    assert (second["OUT_END_ID"].tolist(), second["OUT_PAD_ID"].tolist()) == ([[5]], [[6]])
    assert all(value.shape[0] == 1 for values in (first, second) for value in values.values())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"QUERY": _words(""), "REQUEST_OUTPUT_LEN": _int(1)}, "no tokens"),
        ({"QUERY": _words("a", "b"), "REQUEST_OUTPUT_LEN": _int(1)}, "found 2 prompts"),
        ({"QUERY": _words("a")}, "max_tokens"),
    ],
)
def test_a_request_that_cannot_be_is_an_error_of_its_own(
    preprocessing: Any, tensors: dict[str, Any], message: str
) -> None:
    """Others of the same batch are served."""
    good = _Request({"QUERY": _words("a"), "REQUEST_OUTPUT_LEN": _int(1)})
    refused, served = preprocessing.execute([_Request(tensors), good])
    assert message in refused.error
    assert served.named()["INPUT_ID"].tolist() == [[97]]


def test_a_streamed_character_comes_out_whole(postprocessing: Any) -> None:
    """Its bytes are held until the last; another reply in between, and ASCII that is kept ready, do not mix in."""
    assert _stream(postprocessing, "a", b"x\xf0\x9f") == ["x", "", ""]
    assert _stream(postprocessing, "b", b"x\xc3") == ["x", ""]
    assert _stream(postprocessing, "a", b"\x9a\x80x") == ["", "🚀", "x"]
    assert _stream(postprocessing, "b", b"\xa9x") == ["é", "x"]
    assert _stream(postprocessing, "a", [END, 97, 5000, -1]) == ["", "a", "", ""]


def test_a_plain_character_in_the_middle_of_another_is_seen(postprocessing: Any) -> None:
    """A character that was begun and never ended is U+FFFD, and what follows is not lost."""
    assert _stream(postprocessing, "a", b"x\xf0\x9fx") == ["x", "", "", "\ufffdx"]


def test_without_a_request_id_each_token_is_by_itself(postprocessing: Any) -> None:
    """As upstream's model does it; a whole reply is right all the same."""
    assert _stream(postprocessing, "", b"\xc3\xa9a") == ["\ufffd", "\ufffd", "a"]
    tokens = np.array([[[*"é!".encode(), END, 97]]], np.int32)
    whole = _Request({"TOKENS_BATCH": tokens, "SEQUENCE_LENGTH": _int(4)})
    assert postprocessing.execute([whole])[0].named()["OUTPUT"].item().decode() == "é!"


def test_the_tensor_of_a_token_is_made_once(postprocessing: Any) -> None:
    """A token that is a whole character costs no second tensor."""
    _stream(postprocessing, "a", b"abcabc")
    before = postprocessing.backend.made
    assert _stream(postprocessing, "b", b"abcabc") == list("abcabc")
    assert postprocessing.backend.made == before
