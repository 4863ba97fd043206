"""Queries a server before a run: its version, its engine, and whether the engine is emulated."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from engines.errors import MissingError, UserError
from engines.http_fetch import bearer
from engines.model_list import listed_models
from loadtest.client.endpoint import Endpoint
from loadtest.client.http1 import error_text
from loadtest.client.protocols import counts_are_exact
from loadtest.client.protocols.triton_http import ENGINE_MODEL
from loadtest.client.queries import NEEDS_KEY, RefusedError, answer_of, call, key_hint, no_server
from loadtest.client.served_models import not_served, ready_models, served_models
from loadtest.results import ServerFacts

ENGINE_KIND = "X-Engine-Kind"
_HTTP_ASKS_IT = "use --protocol triton-http"
# Some gateways do not list models; transformers serve fails on its list if the machine has no Hugging Face cache.
_LISTS_NO_MODELS = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.INTERNAL_SERVER_ERROR}
_Documents = tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]


def server_facts(endpoint: Endpoint, url: str, model: str, key: str | None = None) -> tuple[ServerFacts, str | None]:
    """Query a server: Triton for its model's configuration, an OpenAI server for its list of models.

    A server of another protocol is not asked: it counts as measured.

    Args:
        url: As given by the user.
        key: Key of an OpenAI server, if required.

    Returns:
        Its facts, and the tokenizer folder of its preprocessing model, if it has one.

    Raises:
        MissingError: No server answers, or it does not serve the model.
    """
    if endpoint.is_openai:
        return _openai_facts(endpoint, url, model, key), None
    if endpoint.protocol not in _READERS:
        return _measured(endpoint, url, model), None
    try:
        metadata, config, preprocessing = _READERS[endpoint.protocol](endpoint, model)
    except RefusedError as refused:
        names = [each.name for each in served_models(endpoint, None)] or ready_models(endpoint)
        raise not_served(url, model, names) if names and model not in names else refused from refused
    parameters = _parameters(config)
    engine = parameters if model == ENGINE_MODEL else _engine_parameters(endpoint)
    emulated = engine.get("emulated") == "true"
    inputs = {each.get("name") for each in config.get("input", ())}
    llm_api = model == ENGINE_MODEL and "text_input" in inputs
    if llm_api and endpoint.protocol != "triton-http":
        raise UserError(
            f"{url}: its {ENGINE_MODEL} is the LLM API's model, which {endpoint.protocol} does not support",
            hint=_HTTP_ASKS_IT,
        )
    facts = ServerFacts(
        url=url,
        protocol=endpoint.protocol,
        model=model,
        triton_version=str(metadata.get("version", "unknown")),
        emulated=emulated,
        time_scale=float(engine["emulator_time_scale"]) if emulated else 1.0,
        engine=engine.get("engine_name"),
        llm_api=llm_api,
        counts_are_exact=counts_are_exact(endpoint),
        perf_metrics=bool(inputs & {"return_perf_metrics", "sampling_param_return_perf_metrics"}),
    )
    named = engine if llm_api else _parameters(preprocessing) if preprocessing else {}
    return facts, named.get("tokenizer_dir")


def _engine_parameters(endpoint: Endpoint) -> dict[str, str]:
    """Return the parameters of the TensorRT-LLM engine behind a server's other models; empty without an engine."""
    try:
        return _parameters(_READERS[endpoint.protocol](endpoint, ENGINE_MODEL)[1])
    except MissingError:  # a server with another backend, whose model was found
        return {}


def _openai_facts(endpoint: Endpoint, url: str, model: str, key: str | None) -> ServerFacts:
    """Return the facts from the list of models; an emulated server states its kind in a header (`ENGINE_KIND`)."""
    path = f"{endpoint.v1_path}/models"
    answer = answer_of(endpoint, "OpenAI", path, bearer(key))
    if answer.status in _LISTS_NO_MODELS:
        return _measured(endpoint, url, model)
    if answer.status >= HTTPStatus.BAD_REQUEST:
        hint = key_hint(endpoint, key) if answer.status in NEEDS_KEY else "check --url"
        raise MissingError(f"{url}: GET {path} answered {answer.status}", hint=hint)
    try:
        names = [each["id"] for each in listed_models(json.loads(answer.body))]
    except (ValueError, RecursionError) as error:
        raise MissingError(
            f"{url}: {path} is not a list of models",
            hint="check that this is an OpenAI-compatible server",
        ) from error
    if model not in names:
        raise not_served(url, model, sorted(names))
    emulated, time_scale = engine_kind(answer.headers.get(ENGINE_KIND, ""))
    return _measured(endpoint, url, model).model_copy(update={"emulated": emulated, "time_scale": time_scale})


def _measured(endpoint: Endpoint, url: str, model: str) -> ServerFacts:
    return ServerFacts(
        url=url,
        protocol=endpoint.protocol,
        model=model,
        triton_version="-",
        emulated=False,
        time_scale=1.0,
        counts_are_exact=counts_are_exact(endpoint),
    )


def engine_kind(header: str) -> tuple[bool, float]:
    """Return whether an engine is emulated and its time scale, from the header of its replies.

    >>> engine_kind("emulated; time-scale=4"), engine_kind("")
    ((True, 4.0), (False, 1.0))

    Raises:
        UserError: The header has another format.
    """
    kind, _, scale = header.partition(";")
    if kind.strip() in {"", "built", "measured"}:  # `built` is our own front's name for a real engine
        return False, 1.0
    name, _, value = scale.partition("=")
    try:
        time_scale = float(value) if scale.strip() else 1.0
    except ValueError:
        time_scale = 0.0
    if kind.strip() != "emulated" or name.strip() not in {"", "time-scale"} or time_scale <= 0:
        raise UserError(
            f"the server's {ENGINE_KIND} says '{header[:80]}'", hint="expected a header such as emulated; time-scale=4"
        )
    return True, time_scale


def _read_http(endpoint: Endpoint, model: str) -> _Documents:
    """Return the metadata of the server, of the model, and of the tokenizing model if there is one."""
    metadata = _get_json(endpoint, "/v2")
    config = _get_json(endpoint, f"/v2/models/{quote(model, safe='')}/config")
    try:
        return metadata, config, _get_json(endpoint, "/v2/models/preprocessing/config")
    except MissingError:
        return metadata, config, None


def _get_json(endpoint: Endpoint, path: str) -> dict[str, Any]:
    answer = answer_of(endpoint, "Triton", endpoint.base_path + path, {})
    if answer.status >= HTTPStatus.BAD_REQUEST:
        text = error_text(answer.body) or f"status {answer.status}"
        raise RefusedError(f"{endpoint.authority}: {path}: {text}")
    try:
        document = json.loads(answer.body)
    except (ValueError, RecursionError) as error:
        raise no_server(endpoint, "Triton", error) from error
    if not isinstance(document, dict):
        raise no_server(endpoint, "Triton", ValueError(f"{path} is not a JSON object"))
    return document


def _read_grpc(endpoint: Endpoint, model: str) -> _Documents:
    """As `_read_http`, over gRPC."""
    from google.protobuf.json_format import MessageToDict  # noqa: PLC0415 (loads protobuf, which only this needs)
    from tritonclient.grpc import service_pb2 as triton  # noqa: PLC0415

    def config_of(name: str) -> dict[str, Any]:
        response = call(endpoint, "ModelConfig", triton.ModelConfigRequest(name=name).SerializeToString())
        document = MessageToDict(
            triton.ModelConfigResponse.FromString(response).config, preserving_proto_field_name=True
        )
        return dict(document)

    response = call(endpoint, "ServerMetadata", triton.ServerMetadataRequest().SerializeToString())
    metadata = {"version": triton.ServerMetadataResponse.FromString(response).version}
    config = config_of(model)
    try:
        return metadata, config, config_of("preprocessing")
    except MissingError:
        return metadata, config, None


_READERS = {"triton-http": _read_http, "triton-grpc": _read_grpc}


def _parameters(config: dict[str, Any]) -> dict[str, str]:
    return {
        key: str(value.get("string_value", value.get("stringValue", "")))
        for key, value in config.get("parameters", {}).items()
    }
