"""The front on a real socket before a Triton that is scripted: the wire is real on both sides, the engine is not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from array import array
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

pytest.importorskip("uvicorn", reason="the front extra is not installed")

import uvicorn
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from tritonclient.grpc import service_pb2

from engines.files import Document, MadeBy
from engines.planning import emulated_manifest
from engines.planning.plan import make_plan
from engines.planning.recipe import resolve_recipe
from triton_repo.models.text import byte_alphabet
from triton_repo.openai_api.access import Access
from triton_repo.openai_api.app import make_app
from triton_repo.openai_api.head_limit import BoundedHttp
from triton_repo.openai_api.service import Service
from triton_repo.openai_api.triton_client import READY, STREAM, EngineClient
from triton_repo.settings.repository_manifest import Emulation, RepositoryManifest, ServingSettings

KEY = "sk-of-a-test"
MODEL = "r1"
MAX_SEQ_LEN = 512
MAX_INPUT_LEN = 64
BEGIN, USER, ASSISTANT, END = "<｜begin▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"
# The manner of DeepSeek-R1's: no line breaks, earlier reasoning left out, the opening tag in the prompt if asked for.
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    f"{{% elif m.role == 'user' %}}{USER}{{{{ m.content }}}}"
    f"{{% else %}}{ASSISTANT}{{{{ m.content.split('</think>')[-1] }}}}{{{{ eos_token }}}}{{% endif %}}{{% endfor %}}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% if force_think %}}<think>\n{{% endif %}}{{% endif %}}"
)


def r1_tokenizer() -> Tokenizer:
    """Return a tokenizer with R1's special tokens, all else one byte a token: every character is split."""
    tokenizer = Tokenizer(models.BPE({character: byte for byte, character in enumerate(byte_alphabet())}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (BEGIN, USER, ASSISTANT, END)])
    return tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write that tokenizer as a checkpoint carries it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    r1_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"bos_token": {"content": BEGIN}, "eos_token": END, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    generation = {"temperature": 0.6, "top_p": 0.95, "do_sample": True, "eos_token_id": [259, 256]}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@dataclass
class Script:
    """What the engine does with the next requests.

    Attributes:
        token_ids: The reply.
        split: Tokens of each message.
        error: Text of an error, after `error_after` messages.
        pause_s: Before each message.
        hang: Send nothing more after the reply, and do not end.
    """

    token_ids: Sequence[int] = (104, 105)
    split: int = 1
    error: str | None = None
    error_after: int = 0
    pause_s: float = 0.0
    hang: bool = False


@dataclass
class FakeTriton:
    """Triton's gRPC, scripted; it keeps what it was asked and sees who left."""

    script: Script = field(default_factory=Script)
    asked: list[Any] = field(default_factory=list)
    cancelled: int = 0

    def said(self, text: str) -> None:
        """Let the next replies be this text, its special tokens among it."""
        self.script = Script(r1_tokenizer().encode(text, add_special_tokens=False).ids)

    @property
    def last(self) -> dict[str, list[float]]:
        """Return the last request's tensors, as numbers."""
        request = self.asked[-1]
        forms = {"INT32": "i", "FP32": "f", "UINT64": "Q", "BOOL": "b"}
        raws = zip(request.inputs, request.raw_input_contents, strict=True)
        return {tensor.name: array(forms[tensor.datatype], raw).tolist() for tensor, raw in raws}

    async def stream(self, requests: AsyncIterator[bytes], _: grpc.aio.ServicerContext[Any, Any]) -> Any:
        """ModelStreamInfer."""
        ended = False
        try:
            async for raw in requests:
                self.asked.append(service_pb2.ModelInferRequest.FromString(raw))
                async for message in self._messages(self.script):
                    yield message
            ended = True
        finally:  # wherever it was when it was cancelled: in here, or in the library that sends
            self.cancelled += not ended

    async def _messages(self, script: Script) -> AsyncIterator[bytes]:
        streaming = bool(self.last["streaming"][0])
        size = script.split if streaming else len(script.token_ids)
        for number, begin in enumerate(range(0, len(script.token_ids), size)):
            await asyncio.sleep(script.pause_s)
            if script.error is not None and number == script.error_after:
                break
            yield _message(script.token_ids[begin : begin + size])
        if script.error is not None:
            yield service_pb2.ModelStreamInferResponse(error_message=script.error).SerializeToString()
        if script.hang:
            await asyncio.sleep(60)


def _message(token_ids: Sequence[int]) -> bytes:
    response = service_pb2.ModelInferResponse(model_name="tensorrt_llm", model_version="1")
    for name, values in (("output_ids", token_ids), ("sequence_length", [len(token_ids)])):
        response.outputs.add(name=name, datatype="INT32", shape=[1, len(values)])
        response.raw_output_contents.append(array("i", values).tobytes())
    return bytes(service_pb2.ModelStreamInferResponse(infer_response=response).SerializeToString())


@dataclass
class Front:
    """A front that runs, and the fake behind it."""

    port: int
    triton: FakeTriton

    @property
    def url(self) -> str:
        """Return its address."""
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture(scope="session")
def service(tokenizer_folder: Path) -> Service:
    """Make the service of an emulated engine with small limits."""
    head = MadeBy(command="test", version="0")
    asked = resolve_recipe(None, {})
    engine = emulated_manifest(make_plan(asked, head=Document(made_by=head)), asked.recipe)
    limits = engine.limits.model_copy(update={"max_seq_len": MAX_SEQ_LEN, "max_input_len": MAX_INPUT_LEN})
    engine = engine.model_copy(update={"limits": limits})
    settings = ServingSettings(emulation=Emulation(time_scale=4))
    repository = RepositoryManifest(
        made_by=head, kind="emulated", served_at="/r", settings=settings, resolved=settings, engine=engine
    )
    return Service(repository, tokenizer_folder, model=MODEL, reasoning="auto")


@pytest.fixture(scope="session")
def running(service: Service) -> Iterator[Front]:
    """Run the front and the fake in one loop of a thread of their own."""
    ready = threading.Event()
    front = Front(0, FakeTriton())
    servers: list[uvicorn.Server] = []

    async def run() -> None:
        triton = grpc.aio.server()
        handlers = {
            "ModelStreamInfer": grpc.stream_stream_rpc_method_handler(front.triton.stream),
            "ModelReady": grpc.unary_unary_rpc_method_handler(_is_ready),
        }
        service_name = STREAM.split("/")[1]
        assert READY.split("/")[1] == service_name
        triton.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service_name, handlers),))
        grpc_port = triton.add_insecure_port("127.0.0.1:0")
        await triton.start()
        access = Access(keys=["sk-other", KEY], body_limit_bytes=100_000, stall_limit_s=3)
        app = make_app(service, EngineClient(f"127.0.0.1:{grpc_port}"), access, metrics_url=None)
        listener = socket.create_server(("127.0.0.1", 0))
        front.port = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(app, http=BoundedHttp, log_level="warning", ws="none", timeout_graceful_shutdown=1)
        )
        servers.append(server)
        threading.Timer(0.0, ready.set).start()
        await server.serve(sockets=[listener])
        await triton.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    ready.wait(10)
    for _ in range(200):
        if servers and servers[0].started:
            break
        time.sleep(0.02)
    yield front
    servers[0].should_exit = True
    thread.join(10)


async def _is_ready(request: bytes, context: grpc.aio.ServicerContext[Any, Any]) -> bytes:  # noqa: ARG001
    return bytes(service_pb2.ModelReadyResponse(ready=True).SerializeToString())


@pytest.fixture
def front(running: Front) -> Front:
    """Return the front with a fresh script."""
    running.triton.script = Script()
    running.triton.asked.clear()
    running.triton.cancelled = 0
    return running
