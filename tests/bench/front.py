"""What the OpenAI front costs (`make bench-serving`): its CPU for 1,000 streamed tokens, and the time it adds.

The real local Triton serves an emulated engine; the same requests go to the front as chat streams, and straight to
the engine's gRPC with the same token ids. CPU is the front's own process, all its threads, from /proc; the client's
and Triton's are not in it. Times are the client's, both ways through one loop, interleaved.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from processes import cpu_s, machine, run_command, show

from engines.ports import free_ports
from triton_repo.models.text import load_tokenizer
from triton_repo.openai_api.triton_client import EngineClient, Generation

MODEL = "bench"
PROMPT = "Say what a streamed token costs, from the engine to the client, in one breath. " * 8


class Level(NamedTuple):
    """Streams at once, and what the front spent on them."""

    streams: int
    tokens: int
    seconds: float
    cpu_s: float


def main() -> int:
    """Serve, measure, stop; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", default="1,16,64,128")
    parser.add_argument("--tokens", type=int, default=400, help="Length of each reply.")
    parser.add_argument("--requests", type=int, default=40, help="Requests each way for the time to first token.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-front-") as folder:
        repository = _repository(Path(folder))
        ports = free_ports(4)
        _serve(repository, ports)
        try:
            asyncio.run(_measure(repository, ports, asked))
        finally:
            run_command("serve-repo", repository, "--stop")
    return 0


async def _measure(repository: Path, ports: list[int], asked: argparse.Namespace) -> None:
    pid = json.loads((repository / "front.json").read_text())["pid"]
    show(f"# {machine()}; emulated engine, time scale 1; replies of {asked.tokens} tokens, one chunk a token")
    show("| streams | tokens/s | front's CPU ms / 1,000 tokens | front's share of a core |")
    show("| --- | --- | --- | --- |")
    await _level(ports[3], pid, 4, 50)  # what is first done once is not a token's cost
    for streams in map(int, asked.streams.split(",")):
        level = await _level(ports[3], pid, streams, asked.tokens)
        show(
            f"| {streams} | {level.tokens / level.seconds:,.0f} | {1e6 * level.cpu_s / level.tokens:.1f} | "
            f"{level.cpu_s / level.seconds:.0%} |"
        )
    direct, front = await _first_tokens(repository, ports, asked.requests)
    added = statistics.median(front) - statistics.median(direct)
    show(
        f"\ntime to first token, one request at a time, median of {asked.requests}: direct gRPC with token ids "
        f"{1e3 * statistics.median(direct):.2f} ms, through the front {1e3 * statistics.median(front):.2f} ms; "
        f"added {1e3 * added:.2f} ms (template, tokenizing {len(PROMPT)} characters, HTTP)"
    )


async def _level(port: int, pid: int, streams: int, tokens: int) -> Level:
    before_s, begin = cpu_s(pid), time.perf_counter()
    counts = await asyncio.gather(*(_chat(port, tokens) for _ in range(streams)))
    seconds = time.perf_counter() - begin
    spent_s = cpu_s(pid) - before_s
    got = sum(count for count, _ in counts)
    if got != streams * tokens:
        raise RuntimeError(f"{got} tokens came where {streams * tokens} were asked for")
    return Level(streams, got, seconds, spent_s)


async def _chat(port: int, tokens: int) -> tuple[int, float]:
    """Return the tokens of one streamed chat, by its own usage, and the seconds to its first chunk."""
    messages = [{"role": "user", "content": PROMPT}]
    options = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    body = json.dumps({"model": MODEL, "messages": messages, "max_tokens": tokens, **options}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n\r\n"
    begin, first_s, usage = time.perf_counter(), 0.0, 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    while b"[DONE]" not in (line := await asyncio.wait_for(reader.readline(), 60)):
        if not first_s and line.startswith(b"data:"):  # sent with the engine's first token, whether it has text or not
            first_s = time.perf_counter() - begin
        if b'"usage":{' in line:
            usage = json.loads(line.removeprefix(b"data: "))["usage"]["completion_tokens"]
        if not line:
            raise RuntimeError("the front closed the connection")
    writer.close()
    return usage, first_s


async def _first_tokens(repository: Path, ports: list[int], requests: int) -> tuple[list[float], list[float]]:
    tokenizer = load_tokenizer(repository / "preprocessing/1/tokenizer")
    text = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    engine = EngineClient(f"127.0.0.1:{ports[1]}")
    engine.open()
    direct, front = [], []
    for _ in range(requests):
        begin = time.perf_counter()
        reply = engine.start(Generation(ids, 8, streaming=True), "bench")
        await reply.read()
        direct.append(time.perf_counter() - begin)
        while await reply.read() is not None:
            pass
        front.append((await _chat(ports[3], 8))[1])
    await engine.close()
    return direct, front


def _repository(folder: Path) -> Path:
    run_command("build-engine", "--precision", "fp8", "--emulate", "--out", folder / "engine")
    run_command("build-repo", folder / "engine", "--out", folder / "repository", "--time-scale", 1)
    return folder / "repository"


def _serve(repository: Path, ports: list[int]) -> None:
    flags = ["--http-port", ports[0], "--grpc-port", ports[1], "--metrics-port", ports[2], "--openai-port", ports[3]]
    more = ["--openai", "--openai-model", MODEL, "--detach", "--stop-after", 900, "--tritonserver", "local"]
    run_command("serve-repo", repository, *flags, *more)


if __name__ == "__main__":
    raise SystemExit(main())
