"""What tokenizing and detokenizing in Triton cost, ours against upstream-style models, and that both say the same.

One real local Triton serves both sets of models in one Python environment, which is made for this bench with the
transformers of TensorRT-LLM 1.2's container. CPU is that of each model's own process, from the scheduler. Texts are
real chats, a third of them with characters beyond ASCII.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import grpc.aio
from tritonclient.grpc import service_pb2

sys.path.insert(0, str(Path(__file__).parent))
from processes import cpu_s, machine, run_command, show

from engines.checkpoint.calibration_text import default_text_path
from engines.files import MadeBy
from engines.ports import free_ports
from triton_repo.models.text import Detokenizer, load_tokenizer
from triton_repo.openai_api.triton_client import STREAM
from triton_repo.server import local_triton
from triton_repo.server.launch import Ports, start_server, stop_server

UNARY = "/inference.GRPCInferenceService/ModelInfer"
PACKAGES = ("numpy==1.26.4", "transformers==4.57.3", "pydantic>=2.7,<3", "pyyaml>=6", "packaging>=23")
STYLES = {"ours": "", "upstream-style": "_upstream"}
FLOOR = {"a constant (the backend's own floor)": "_floor"}
HERE = Path(__file__).parent
SCRIPTS = {
    "Latin with accents": "\u00c0-\u024f",
    "Han": "\u4e00-\u9fff",
    "Kana": "\u3040-\u30ff",
    "Hangul": "\uac00-\ud7af",
    "Cyrillic": "\u0400-\u04ff",
    "Greek": "\u0370-\u03ff",
    "Arabic": "\u0600-\u06ff",
    "Hebrew": "\u0590-\u05ff",
    "Thai": "\u0e00-\u0e7f",
    "Devanagari": "\u0900-\u097f",
    "emoji": "\U0001f300-\U0001faff",
}


class Cost(NamedTuple):
    """What a number of calls cost."""

    calls: int
    model_cpu_s: float
    server_cpu_s: float
    seconds: float

    def __str__(self) -> str:
        """Return a table's cells: microseconds a call in the model and in the server, calls a second."""
        model_us, server_us = (1e6 * spent / self.calls for spent in (self.model_cpu_s, self.server_cpu_s))
        return f"{model_us:.0f} | {server_us:.0f} | {self.calls / self.seconds:,.0f}"


def main() -> int:
    """Serve both, compare, measure, stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=10_000, help="Messages to compare.")
    parser.add_argument("--calls", type=int, default=3_000, help="Calls of each measurement.")
    parser.add_argument("--streams", default="1,16,64")
    parser.add_argument("--folder", type=Path, default=Path("artifacts/bench"))
    asked = parser.parse_args()
    local = local_triton.local_runtime(local_triton.default_folder())
    python_bin = _environment(asked.folder.absolute() / "upstream-env")
    repository = _repository(asked.folder.absolute())
    http, grpc_port, metrics = free_ports(3)
    start_server(
        repository,
        replace(local, python_bin=python_bin),
        Ports(http, grpc_port, metrics),
        deadline_s=120,
        stop_after_s=1800,
        detached=False,
        made_by=MadeBy(command="make bench-serving", version="0"),
        progress=show,
    )
    try:
        asyncio.run(_bench(repository, grpc_port, asked))
    finally:
        stop_server(repository)
    return 0


async def _bench(repository: Path, port: int, asked: argparse.Namespace) -> None:
    chosen = _messages(asked.messages + asked.calls)
    messages, fresh = chosen[: asked.messages], chosen[asked.messages :]
    pids = _processes(repository)
    show(f"# {machine()}; {len(messages)} messages: {_languages(messages)}")
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)]) as way:
        triton = _Triton(way)
        rows = await _compare(triton, messages)
        _compare_streams(repository, messages, rows)
        show("\n| model | calls | style | model's CPU us / call | server's CPU us / call | calls/s |")
        show("| --- | --- | --- | --- | --- | --- |")
        tokens = [rows[text] for text in random.Random(0).sample(messages, min(asked.calls, len(messages)))]
        for at_once in (1, 8):
            texts = fresh[at_once % 2 :: 2]  # prompts that neither has seen before
            await _show_costs(f"preprocessing, {at_once} at once", texts, triton.encode, pids, "preprocessing", at_once)
        for at_once in (1, 8):
            name = f"postprocessing of whole replies, {at_once} at once"
            await _show_costs(name, tokens, triton.decode, pids, "postprocessing", at_once)
        for streams in map(int, asked.streams.split(",")):
            await _show_stream_costs(triton, pids, streams, max(1, asked.calls * 2 // streams))


async def _show_costs(
    name: str,
    items: Sequence[Any],
    call: Callable[[str, Any], Awaitable[Any]],
    pids: dict[str, int],
    model: str,
    at_once: int,
) -> None:
    for style, suffix in STYLES.items():

        async def work(suffix: str = suffix) -> int:
            await _all(items, at_once, partial(call, suffix))
            return len(items)

        show(f"| {name} | {len(items)} | {style} | {await _cost(pids, model + suffix, work)} |")


async def _show_stream_costs(triton: _Triton, pids: dict[str, int], streams: int, tokens: int) -> None:
    for style, suffix in (STYLES | FLOOR).items():
        await triton.stream(suffix, 20, "warm")

        async def work(suffix: str = suffix) -> int:
            return sum(await asyncio.gather(*(triton.stream(suffix, tokens, f"s{n}") for n in range(streams))))

        name = f"postprocessing of streamed tokens, {streams} streams"
        show(f"| {name} | {streams * tokens} | {style} | {await _cost(pids, 'postprocessing' + suffix, work)} |")


async def _cost(pids: dict[str, int], model: str, work: Callable[[], Awaitable[int]]) -> Cost:
    before, begin = (cpu_s(pids[model]), cpu_s(pids["server"])), time.perf_counter()
    calls = await work()
    seconds = time.perf_counter() - begin
    return Cost(calls, cpu_s(pids[model]) - before[0], cpu_s(pids["server"]) - before[1], seconds)


async def _compare(triton: _Triton, messages: Sequence[str]) -> dict[str, list[int]]:
    """Hold both styles' tokens and texts of every message against each other; return the tokens."""
    rows: dict[str, list[int]] = {}
    wrong: list[str] = []

    async def one(message: str) -> None:
        ours, theirs = [await triton.encode(suffix, message) for suffix in STYLES.values()]
        rows[message] = ours
        texts = [await triton.decode(suffix, ours) for suffix in STYLES.values()]
        if ours != theirs or texts[0] != texts[1]:
            wrong.append(message)

    begin = time.perf_counter()
    await _all(messages, 8, one)
    count = sum(map(len, rows.values()))
    show(f"# compared in {time.perf_counter() - begin:.0f} s: {len(messages)} messages, {count:,} tokens")
    if wrong:
        raise RuntimeError(f"{len(wrong)} messages differ, the first: {wrong[0][:200]!r}")
    show("# tokens and text of every message are the same, to the last byte")
    return rows


def _compare_streams(repository: Path, messages: Sequence[str], rows: dict[str, list[int]]) -> None:
    """Hold our streamed text, token by token, against the whole's; and count what decoding each token alone breaks."""
    tokenizer = load_tokenizer(repository / "preprocessing/1/tokenizer")
    detokenizer = Detokenizer(tokenizer)
    broken = 0
    for message in messages:
        ids, stream = rows[message], detokenizer.stream()
        streamed = "".join([stream.push([token]) for token in ids]) + stream.finish()
        if streamed != detokenizer.text(ids):
            raise RuntimeError(f"streamed text differs: {message[:200]!r}")
        broken += any("\ufffd" in detokenizer.text([token]) for token in ids) and "\ufffd" not in message
    show(f"# streamed token by token, every text is whole; decoding each token alone breaks {broken} of them")


class _Triton:
    """The calls of the bench."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._unary = channel.unary_unary(UNARY)
        self._stream = channel.unary_stream(STREAM)

    async def encode(self, suffix: str, text: str) -> list[int]:
        """Return the tokens of a text."""
        raw = text.encode()
        query = ("QUERY", "BYTES", (1, 1), struct.pack("<I", len(raw)) + raw)
        reply = await self._ask(f"preprocessing{suffix}", [query, _int("REQUEST_OUTPUT_LEN", 8)], "INPUT_ID")
        return list(struct.unpack(f"<{len(reply) // 4}i", reply))

    async def decode(self, suffix: str, token_ids: Sequence[int]) -> str:
        """Return the text of tokens."""
        raw = struct.pack(f"<{len(token_ids)}i", *token_ids)
        tokens = ("TOKENS_BATCH", "INT32", (1, 1, len(token_ids)), raw)
        reply = await self._ask(f"postprocessing{suffix}", [tokens, _int("SEQUENCE_LENGTH", len(token_ids))], "OUTPUT")
        return reply[4:].decode()

    async def stream(self, suffix: str, tokens: int, name: str) -> int:
        """Stream a reply through the ensemble; return how many messages came."""
        raw = b"Say it again, and again."
        inputs = [("text_input", "BYTES", (1, 1), struct.pack("<I", len(raw)) + raw), _int("max_tokens", tokens)]
        inputs.append(("stream", "BOOL", (1, 1), b"\x01"))
        count = 0
        async for message in self._stream(_request(f"ensemble{suffix}", inputs, "text_output", name)):
            response = service_pb2.ModelStreamInferResponse.FromString(message)
            if response.error_message:
                raise RuntimeError(response.error_message)
            count += 1
        if count != tokens:
            raise RuntimeError(f"{count} messages came where {tokens} tokens were asked for")
        return count

    async def _ask(self, model: str, inputs: Sequence[tuple[str, str, Sequence[int], bytes]], output: str) -> bytes:
        reply = service_pb2.ModelInferResponse.FromString(await self._unary(_request(model, inputs, output, "bench")))
        return bytes(reply.raw_output_contents[0])


def _int(name: str, value: int) -> tuple[str, str, Sequence[int], bytes]:
    return name, "INT32", (1, 1), struct.pack("<i", value)


def _request(
    model: str, inputs: Sequence[tuple[str, str, Sequence[int], bytes]], output: str, request_id: str
) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    for name, datatype, shape, raw in inputs:
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(raw)
    request.outputs.add(name=output)
    return bytes(request.SerializeToString())


async def _all(items: Sequence[Any], at_once: int, call: Callable[[Any], Awaitable[Any]]) -> None:
    left = iter(items)

    async def take() -> None:
        for item in left:
            await call(item)

    await asyncio.gather(*(take() for _ in range(at_once)))


def _messages(count: int) -> list[str]:
    """Return messages of real chats, up to a third of them with characters beyond ASCII, drawn from a seed."""
    found = {turn["value"] for chat in _chats() for turn in chat["conversations"] if turn["value"].strip()}
    messages = sorted(found)
    random.Random(0).shuffle(messages)
    plain = [message for message in messages if message.isascii()]
    others = [message for message in messages if not message.isascii()]
    share = min(len(others), count // 3)
    chosen = others[:share] + plain[: count - share]
    random.Random(1).shuffle(chosen)
    return [message[:20_000] for message in chosen]


def _chats() -> list[Any]:
    """Return the chats of the file; a last one cut off by its end is left out."""
    text, chats = default_text_path().read_text(encoding="utf-8"), []
    decoder, begin = json.JSONDecoder(), text.find("{")
    while begin >= 0:
        try:
            chat, end = decoder.raw_decode(text, begin)
        except json.JSONDecodeError:
            break
        chats.append(chat)
        begin = text.find("{", end)
    return chats


def _languages(messages: Sequence[str]) -> str:
    counts = {name: sum(bool(re.search(f"[{span}]", text)) for text in messages) for name, span in SCRIPTS.items()}
    return ", ".join(f"{count} with {name}" for name, count in counts.items())


def _processes(repository: Path) -> dict[str, int]:
    """Return the process of each Python model, by the path in its stub's command line, and Triton's own."""
    found: dict[str, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if words[0].endswith("tritonserver") and f"--model-repository={repository}" in words:
            found["server"] = int(folder.name)
        for word in words:
            if word.startswith(str(repository)) and word.endswith("/model.py"):
                found[Path(word).parent.parent.name] = int(folder.name)
    return found


def _environment(folder: Path) -> Path:
    """Make the models' environment of this bench, once: the local Triton's Python with transformers."""
    if not (folder / "done").is_file():
        show(f"# making {folder} with {', '.join(PACKAGES)}")
        record = json.loads((local_triton.default_folder() / local_triton.RUNTIME_NAME).read_text())
        python = record["python"]["executable"]
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([python, "-I", "-m", "venv", "--without-pip", str(folder)], check=True)
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--python"]
        subprocess.run([*pip, str(folder / "bin/python"), "install", *PACKAGES], check=True)
        (folder / "done").touch()
    return folder / "bin"


def _repository(folder: Path) -> Path:
    """Render a repository, and beside our text models the upstream-style ones with an ensemble of their own."""
    run_command("build-engine", "--precision", "fp8", "--emulate", "--out", folder / "engine", "--force")
    repository = folder / "tokenizing"
    run_command("build-repo", folder / "engine", "--out", repository, "--time-scale", 1, "--force")
    _lift_limit(repository / "preprocessing" / "config.pbtxt")
    _add(repository, "preprocessing", "_upstream", HERE / "upstream_style" / "preprocessing.py")
    _add(repository, "postprocessing", "_upstream", HERE / "upstream_style" / "postprocessing.py")
    _add(repository, "postprocessing", "_floor", HERE / "upstream_style" / "floor.py")
    _add(repository, "ensemble", "_upstream", None, steps=("preprocessing", "postprocessing"))
    _add(repository, "ensemble", "_floor", None, steps=("postprocessing",))
    return repository


def _lift_limit(path: Path) -> None:
    """Let prompts of any length through: here they go to the text models alone, and to no engine."""
    text, count = re.subn(
        r'(key: "max_prompt_tokens"\s+value: { string_value: )"\d+"', r'\1"1000000"', path.read_text()
    )
    if count != 1:
        raise RuntimeError(f"{path}: no max_prompt_tokens")
    path.write_text(text)


def _add(repository: Path, model: str, suffix: str, code: Path | None, *, steps: Sequence[str] = ()) -> None:
    """Add a model like one that is there, under a name of its own, with other code or other steps."""
    target = repository / f"{model}{suffix}"
    (target / "1").mkdir(parents=True)
    config = (repository / model / "config.pbtxt").read_text()
    config = re.sub(rf'^name: "{model}"', f'name: "{model}{suffix}"', config, flags=re.MULTILINE)
    for step in steps:
        config = config.replace(f'model_name: "{step}"', f'model_name: "{step}{suffix}"')
    (target / "config.pbtxt").write_text(config)
    if code is not None:
        shutil.copyfile(code, target / "1" / "model.py")


if __name__ == "__main__":
    raise SystemExit(main())
