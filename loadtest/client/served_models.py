"""The models that a server serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.errors import MissingError
from engines.model_list import is_model_name
from loadtest.client.endpoint import Endpoint
from loadtest.client.protocols.triton_http import ENGINE_MODEL
from loadtest.client.queries import KEY_REFUSED, STATUS, call, json_or_reason, key_hint

MODELS_SHOWN = 8
_PARTS = frozenset({"preprocessing", "postprocessing"})
_TAKE_REQUESTS = (ENGINE_MODEL, "ensemble", "tensorrt_llm_bls")  # of a TensorRT-LLM repository


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that a server lists.

    Attributes:
        root: Folder or published name that an OpenAI server says it was loaded from; empty if not stated.
    """

    name: str
    root: str = ""


def served_models(endpoint: Endpoint, key: str | None) -> list[ServedModel]:
    """Return the models that a server lists, in its order; empty if it lists none.

    Triton's models that only preprocess or postprocess text are omitted.

    Raises:
        MissingError: The list needs a key, and none was given or it was refused.
    """
    if endpoint.is_openai:
        path = f"{endpoint.v1_path}/models"
        document = json_or_reason(endpoint, path, key=key)
        if isinstance(document, str) and document in KEY_REFUSED:
            raise MissingError(
                f"{endpoint.url('')}: GET {path} answered {document.removeprefix(STATUS)}",
                hint=key_hint(endpoint, key),
            )
        data = document.get("data") if isinstance(document, dict) else None
        return _models(data, "id")
    if endpoint.protocol == "triton-grpc":
        return _grpc_models(endpoint)
    document = json_or_reason(endpoint, f"{endpoint.base_path}/v2/repository/index", body=b'{"ready": true}')
    return [each for each in _models(document, "name") if each.name not in _PARTS]


def _models(listed: Any, key: str) -> list[ServedModel]:
    """Return the models of a list, without entries that are malformed or have unprintable names."""
    found = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    pairs = [(each.get(key), each.get("root")) for each in found]
    return [
        ServedModel(name, root if isinstance(root, str) and root.isprintable() else "")
        for name, root in pairs
        if is_model_name(name)
    ]


def default_model(models: list[ServedModel], *, is_openai: bool) -> str | None:
    """Return the default model: the engine's own, or the only one; None if there is no such model.

    >>> default_model([ServedModel("ensemble"), ServedModel("tensorrt_llm")], is_openai=False)
    'tensorrt_llm'
    >>> default_model([ServedModel("a"), ServedModel("b")], is_openai=True) is None
    True
    """
    names = [each.name for each in models]
    if not is_openai and ENGINE_MODEL in names:
        return ENGINE_MODEL
    return names[0] if len(names) == 1 else None


def _grpc_models(endpoint: Endpoint) -> list[ServedModel]:
    from tritonclient.grpc import service_pb2 as triton  # noqa: PLC0415 (loads protobuf, which only this needs)

    try:
        response = call(endpoint, "RepositoryIndex", triton.RepositoryIndexRequest(ready=True).SerializeToString())
    except MissingError:
        return []
    models = triton.RepositoryIndexResponse.FromString(response).models
    return [ServedModel(each.name) for each in models if each.name not in _PARTS]


def ready_models(endpoint: Endpoint) -> list[str]:
    """Return which of a TensorRT-LLM repository's models are ready, for a Triton that keeps its index to itself."""
    if endpoint.protocol == "triton-grpc":
        from tritonclient.grpc import service_pb2 as triton  # noqa: PLC0415 (loads protobuf, which only this needs)

        def is_ready(name: str) -> bool:
            try:
                response = call(endpoint, "ModelReady", triton.ModelReadyRequest(name=name).SerializeToString())
            except MissingError:
                return False
            return bool(triton.ModelReadyResponse.FromString(response).ready)

    else:

        def is_ready(name: str) -> bool:
            path = f"{endpoint.base_path}/v2/models/{name}/config"
            return isinstance(json_or_reason(endpoint, path), dict)

    return [name for name in _TAKE_REQUESTS if is_ready(name)]


def not_served(url: str, model: str, names: Sequence[str]) -> MissingError:
    """Return the error for a model that a server does not serve, with those it does."""
    more = f" and {len(names) - MODELS_SHOWN} more" if len(names) > MODELS_SHOWN else ""
    return MissingError(f"{url}: no model '{model}'", hint=f"--model: one of {', '.join(names[:MODELS_SHOWN])}{more}")
