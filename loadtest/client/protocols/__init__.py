"""The protocols of the load generator, one class each. See docs/how-to/add-a-protocol.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.errors import UserError
from loadtest.client.endpoint import Endpoint
from loadtest.client.protocols.base import Protocol
from loadtest.client.protocols.openai import OpenAiChat, OpenAiCompletions
from loadtest.client.protocols.triton_http import ENGINE_MODEL, TritonHttp
from loadtest.client.protocols.triton_llmapi import TritonLlmApi

__all__ = ["counts_are_exact", "key_in", "protocol_for", "takes_ids"]


def protocol_for(
    endpoint: Endpoint, model: str, *, environment: Mapping[str, str], extra: Mapping[str, Any] | None = None
) -> Protocol:
    """Return the protocol of an endpoint.

    Args:
        environment: Environment variables; contains an OpenAI server's key under the endpoint's name for it.
        extra: Fields merged into every request.

    Raises:
        UserError: The key is invalid, or the protocol does not support the fields.
    """
    extra = extra or {}
    if endpoint.is_openai:
        kind = OpenAiChat if endpoint.protocol == "openai-chat" else OpenAiCompletions
        key = key_in(environment, endpoint.api_key_env)
        return kind(model, v1_path=endpoint.v1_path, key=key, extra=extra)
    if endpoint.llm_api:
        return TritonLlmApi(endpoint, model, extra)
    if endpoint.protocol == "triton-grpc":
        from loadtest.client.protocols.triton_grpc import TritonGrpc  # noqa: PLC0415 (loads protobuf, which only it needs)

        return TritonGrpc(endpoint, model, extra)
    return TritonHttp(endpoint, model, extra)


def key_in(environment: Mapping[str, str], name: str) -> str | None:
    """Return a key that is valid in a header; None if there is none.

    Raises:
        UserError: It is not valid in a header.
    """
    key = environment.get(name, "").strip()
    if not key.isprintable():
        raise UserError(
            f"${name}: the key contains a control character, such as a line break",
            hint="the variable must contain exactly one key",
        )
    return key or None


def counts_are_exact(endpoint: Endpoint) -> bool:
    """Return whether each message of a reply says how many tokens it has; OpenAI's state their sum, at the end."""
    return not endpoint.is_openai


def takes_ids(endpoint: Endpoint, model: str) -> bool:
    """Return whether prompts are sent as token ids, not as text."""
    return not endpoint.is_openai and model == ENGINE_MODEL and not endpoint.llm_api
