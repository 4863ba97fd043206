"""Evaluates one engine: its exported checkpoint on this CPU, or its server by the OpenAI API."""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from engines.accuracy.harness import PACKAGE, Questions, Tasks, require_harness
from engines.checkpoint import LoadedModel, load_corpus
from engines.console import OPENAI_KEY
from engines.errors import MissingError, ToolError, UserError
from engines.files import one_line, write_json
from engines.http_fetch import bearer, fetch
from engines.manifest import MANIFEST_NAME, AccuracyResult, EngineManifest, read_manifest
from engines.model_list import listed_models
from engines.names import TOKENIZER_FILE
from engines.outputs import folder_lock

Progress = Callable[[str], None]
HELD_OUT = "held_out_text"
_LIST_WITHIN_S = 5.0
_ANSWER_WITHIN_S = 600  # a completion waits in the server's queue
_ANSWER_LIMIT_BYTES = 1 << 22  # a list of models, or one token after a prompt of three
_SHOWN_BYTES = 300  # of a refusal
_SHOWN_MODELS = 8
_PROBE_TOKENS = 3
# A server without `echo` or `logprobs` refuses the request itself; any other status has another cause.
_NOT_OFFERED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.NOT_IMPLEMENTED)
_MAX_SEQ_LEN = 2048  # of a server that states none: the harness's own default


@dataclass(frozen=True, slots=True)
class Server:
    """A server of the OpenAI API.

    Attributes:
        url: `http://HOST:PORT`.
        model: The name it serves its model by; None: its only one.
        concurrency: Requests sent at once.
    """

    url: str
    model: str | None = None
    concurrency: int = 8


def refuse_emulated(manifest: EngineManifest, name: str) -> None:
    """Refuse an emulated engine.

    Raises:
        UserError: It is one.
    """
    if manifest.kind == "emulated":
        raise UserError(
            f"{name}: an emulated engine answers with made-up text, which has no accuracy",
            hint="evaluate the checkpoint (build-engine --checkpoint DIR --until checkpoint), or a real server: --url",
        )


def evaluate_checkpoint(
    folder: Path, manifest: EngineManifest, questions: Questions, *, progress: Progress
) -> list[AccuracyResult]:
    """Evaluate an engine's exported checkpoint by a forward pass on this CPU.

    Raises:
        MissingError: The engine has no TensorRT-LLM checkpoint or tokenizer, or a package or data set is missing.
        UserError: It is emulated, or a task is unknown.
        ToolError: The checkpoint is damaged, or the harness failed.
    """
    refuse_emulated(manifest, str(folder))
    if manifest.checkpoint is None or manifest.backend != "tensorrt":
        raise MissingError(
            f"{folder}: has no TensorRT-LLM checkpoint to evaluate",
            hint="serve the engine and give --url, as for every checkpoint of the PyTorch backend",
        )
    if manifest.tokenizer is None:
        raise MissingError(f"{folder}: the engine has no tokenizer", hint="build it with --tokenizer DIR")
    tasks = _tasks(questions)
    tokenizer = _tokenizer(folder / manifest.tokenizer)
    progress(f"reading {folder / manifest.checkpoint} ...")
    models = importlib.import_module("engines.accuracy.models")
    loaded = LoadedModel(folder / manifest.checkpoint)
    model = models.CheckpointModel(loaded, tokenizer, max_seq_len=manifest.limits.max_seq_len, progress=progress)
    text_tokenizer = (
        folder / manifest.tokenizer if manifest.quality is None else None
    )  # else `build-engine` measured it
    return _measure(model, tasks, text_tokenizer, on="checkpoint", progress=progress)


def evaluate_server(
    server: Server, tokenizer_folder: Path, questions: Questions, *, progress: Progress
) -> list[AccuracyResult]:
    """Evaluate a served model through `/v1/completions`.

    Raises:
        UserError: The server runs an emulated engine, or cannot score what a task needs.
        ToolError: It does not answer.
    """
    served = _served(server)  # before the harness, which takes seconds to load
    tasks = _tasks(questions)
    tokenizer = _tokenizer(tokenizer_folder)
    scores = _returns_probabilities(server.url, served["id"], tokenizer)
    if tasks is not None and tasks.needs_probabilities and not scores:
        raise UserError(
            f"{', '.join(tasks.needs_probabilities)}: scored by log probabilities of the prompt, which {server.url} "
            "does not return (`echo` with `logprobs`)",
            hint="vLLM returns them; or evaluate the exported checkpoint, or tasks that generate: gsm8k",
        )
    models = importlib.import_module("engines.accuracy.models")
    model = models.ServedModel(
        base_url=f"{server.url.rstrip('/')}/v1/completions",
        model=served["id"],
        tokenizer=str(tokenizer_folder.absolute()),
        tokenizer_backend="huggingface",
        num_concurrent=server.concurrency,
        max_length=served.get("max_model_len") or _MAX_SEQ_LEN,
        timeout=_ANSWER_WITHIN_S,
    )
    return _measure(model, tasks, tokenizer_folder if scores else None, on="server", progress=progress)


def add_results(folder: Path, results: Sequence[AccuracyResult]) -> EngineManifest:
    """Write results into an engine's manifest, in the place of earlier ones of the same questions."""
    with folder_lock(folder):
        manifest = read_manifest(folder)
        new = {_key(each) for each in results}
        kept = [each for each in manifest.accuracy if _key(each) not in new]
        changed = manifest.model_copy(update={"accuracy": (*kept, *results)})
        write_json(folder / MANIFEST_NAME, changed)
    return changed


def _key(result: AccuracyResult) -> tuple[object, ...]:
    return result.task, result.metric, result.limit, result.few_shot, result.chat, result.measured_on


def _tasks(questions: Questions) -> Tasks | None:
    require_harness()
    return Tasks(questions) if questions.tasks else None


def _measure(
    model: Any,
    tasks: Tasks | None,
    text_tokenizer: Path | None,
    *,
    on: Literal["checkpoint", "server"],
    progress: Progress,
) -> list[AccuracyResult]:
    results = []
    if text_tokenizer is not None:
        progress("perplexity on held-out text ...")
        results.append(_perplexity(model, text_tokenizer, on))
    if tasks is not None:
        progress(f"{', '.join(tasks.questions.tasks)} ...")
        results += tasks.results_of(model, measured_on=on)
    return results


def _perplexity(model: Any, tokenizer: Path, on: Literal["checkpoint", "server"]) -> AccuracyResult:
    """Return the perplexity of the text that `build-engine` holds out, window by window."""
    windows = load_corpus(None).held_out.token_windows(tokenizer / TOKENIZER_FILE)
    scored = model._loglikelihood_tokens([(("", ""), window[:1], window[1:]) for window in windows])
    nats = [-found for found, _ in scored]
    tokens = sum(len(window) - 1 for window in windows)
    mean = sum(nats) / tokens
    of_windows = [each / (len(window) - 1) for each, window in zip(nats, windows, strict=True)]
    spread = math.sqrt(sum((each - mean) ** 2 for each in of_windows) / (len(windows) - 1) / len(windows))
    return AccuracyResult(
        task=HELD_OUT,
        metric="perplexity",
        is_main=False,
        value=math.exp(mean),
        standard_error=math.exp(mean) * spread,
        questions=len(windows),
        limit=None,
        few_shot=0,
        chat=False,
        versions={PACKAGE: metadata.version(PACKAGE)},
        date=datetime.now(UTC).date().isoformat(),
        measured_on=on,
        questions_sha256=hashlib.sha256(json.dumps(windows).encode()).hexdigest(),
    )


def _tokenizer(folder: Path) -> Any:
    if not (folder / TOKENIZER_FILE).is_file():
        raise MissingError(f"{folder}: contains no tokenizer.json", hint="give the model's folder with --tokenizer")
    transformers = importlib.import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{folder}: transformers cannot read this tokenizer: {error}") from error


def _served(server: Server) -> dict[str, Any]:
    """Return a server's description of its model.

    Raises:
        ToolError: There is no server, or it does not list its models.
        UserError: It has several and none was named, not the named one, or an emulated engine.
    """
    url = f"{server.url.rstrip('/')}/v1/models"
    try:
        models = listed_models(_json_from(url, within_s=_LIST_WITHIN_S))
    except ValueError as error:
        raise ToolError(f"{url}: {error}", hint="check that --url is an OpenAI-compatible server") from error
    names = ", ".join(each["id"] for each in models[:_SHOWN_MODELS]) or "no model"
    if server.model is None and len(models) != 1:
        raise UserError(f"{server.url} serves {names}", hint="name one with --model")
    found = next((each for each in models if server.model in (None, each["id"])), None)
    if found is None:
        raise UserError(f"{server.url} serves {names}, not {server.model}", hint="name one with --model")
    length, engine = found.get("max_model_len"), found.get("engine")
    if length is not None and (type(length) is not int or length <= 0):
        raise ToolError(f"{url}: max_model_len is {one_line(length)!r}, not a number of tokens")
    if isinstance(engine, dict) and engine.get("kind") == "emulated":
        raise UserError(
            f"{server.url}: its engine is emulated and answers with made-up text, which has no accuracy",
            hint="give the URL of a real server, or an engine folder with an exported checkpoint",
        )
    return found


def _returns_probabilities(url: str, model: str, tokenizer: Any) -> bool:
    """Return whether a server gives the log probabilities of a prompt's tokens, as multiple-choice tasks need.

    Raises:
        ToolError: It does not answer, or refuses the request for another reason than what is requested.
    """
    tokens = tokenizer.encode("one two three four", add_special_tokens=False)[:_PROBE_TOKENS]
    body = {"model": model, "prompt": tokens, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    try:
        reply = _json_from(f"{url.rstrip('/')}/v1/completions", body, within_s=_ANSWER_WITHIN_S)
        found = reply["choices"][0]["logprobs"]["token_logprobs"]
    except _StatusError as error:
        if error.http_status in _NOT_OFFERED:
            return False
        raise
    except (KeyError, IndexError, TypeError):
        return False
    if not isinstance(found, list) or len(found) < len(tokens):
        return False
    return all(isinstance(each, int | float) for each in found[1 : len(tokens)])


class _StatusError(ToolError):
    """A server answered with an error status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.http_status = status


def _json_from(url: str, body: dict[str, Any] | None = None, *, within_s: float) -> dict[str, Any]:
    """Return the JSON object that a server answers.

    Raises:
        ToolError: There is no answer, a refusal, or another kind of answer.
    """
    headers = {"Content-Type": "application/json", **bearer(os.environ.get(OPENAI_KEY))}
    try:
        request = urllib.request.Request(url, data=None if body is None else json.dumps(body).encode(), headers=headers)
        answer = fetch(request, limit_s=within_s, limit_bytes=_ANSWER_LIMIT_BYTES)
        if answer.status >= HTTPStatus.BAD_REQUEST:
            text = answer.body[:_SHOWN_BYTES].decode(errors="replace")
            raise _StatusError(answer.status, f"{url}: status {answer.status}: {one_line(text, _SHOWN_BYTES)}")
        found = json.loads(answer.body)
    except (OSError, ValueError, RecursionError) as error:
        raise ToolError(f"{url}: {error}", hint="check that the server is up and serves the OpenAI API") from error
    if not isinstance(found, dict):
        raise ToolError(f"{url}: answered with something else than a JSON object")
    return found
