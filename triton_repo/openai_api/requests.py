"""Schemas of OpenAI's requests with a few extensions, and errors for unsupported features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from triton_repo.openai_api.errors import ApiError, bad_request

MAX_MESSAGES = 2_000
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool"})
COMPLETION_TOKENS = 16  # OpenAI's default for /v1/completions

ApiRequestT = TypeVar("ApiRequestT", bound="ApiRequest")
Text = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]
Probability = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(_Strict):
    """Options of a stream; the second key is accepted and has no effect."""

    include_usage: bool = False
    include_obfuscation: bool | None = None


class ApiRequest(_Strict):
    """What both kinds of request share. None: not given.

    Attributes:
        stop: Text that ends the reply; it is not part of it.
        min_tokens: Extension: the text does not end before this many tokens.
        ignore_eos: Extension: the reply continues to its full length.
        top_k: Extension: TensorRT-LLM's `runtime_top_k`.
        skip_special_tokens: Extension: whether special tokens, such as end-of-text, are omitted from the text.
    """

    model: str
    max_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Probability | None = None
    n: int | None = None
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    ignore_eos: bool = False
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    skip_special_tokens: bool = True

    @property
    def stops(self) -> list[str]:
        """Return the stop strings."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with its token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def max_reply_tokens(self) -> int | None:
        """Return the maximum length of the reply; None: the engine's limit."""
        return self.max_tokens

    def refuse_unserved(self) -> None:
        """Raise an ApiError for unsupported options."""
        if self.n not in (None, 1):
            raise bad_request(f"n is {self.n}; one reply a request is served, send the request several times", "n")
        if self.logit_bias:
            raise bad_request("logit_bias is not served", "logit_bias")
        if self.stream_options is not None and not self.stream:
            raise bad_request("stream_options is for streams: set stream to true", "stream_options")
        largest = self.max_reply_tokens
        if self.min_tokens is not None and largest is not None and self.min_tokens > largest:
            raise bad_request(f"min_tokens is {self.min_tokens}, above max_tokens, {largest}", "min_tokens")


class ChatRequest(ApiRequest):
    """The body of POST /v1/chat/completions.

    Keys without effect on the tokens (`user`, `metadata`, `store`, `service_tier` and similar ones) are accepted.
    """

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool = True
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None
    audio: Any = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def max_reply_tokens(self) -> int | None:
        """Return the maximum length of the reply; None: the engine's limit."""
        return self.max_completion_tokens or self.max_tokens

    def refuse_unserved(self) -> None:
        """Raise an ApiError for unsupported options."""
        super().refuse_unserved()
        if self.logprobs or self.top_logprobs:
            raise bad_request("log probabilities are not served; leave logprobs and top_logprobs out", "logprobs")
        for key in ("tools", "functions"):
            if getattr(self, key):
                raise bad_request(f"{key}: calling tools is not served; describe them in a message", key)
        if self.response_format is not None and self.response_format.get("type") != "text":
            raise bad_request("response_format: only type 'text' is served", "response_format")
        if self.audio is not None or (self.modalities or ["text"]) != ["text"]:
            raise bad_request("modalities: only text is served", "modalities")


class CompletionRequest(ApiRequest):
    """The body of POST /v1/completions; the prompt is text, or token ids."""

    prompt: str | list[int] | list[str] | list[list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    @property
    def max_reply_tokens(self) -> int | None:
        """Return the maximum length of the reply."""
        return COMPLETION_TOKENS if self.max_tokens is None else self.max_tokens

    def refuse_unserved(self) -> None:
        """Raise an ApiError for unsupported options."""
        super().refuse_unserved()
        if self.best_of not in (None, 1):
            raise bad_request("best_of above 1 is not served", "best_of")
        if self.logprobs is not None:
            raise bad_request("log probabilities are not served; leave logprobs out", "logprobs")
        if self.echo:
            raise bad_request("echo is not served: the reply does not repeat the prompt", "echo")
        if self.suffix:
            raise bad_request("suffix is not served", "suffix")

    def one_prompt(self) -> str | list[int]:
        """Return the prompt; an ApiError if several were sent."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return prompt
        if prompt and not isinstance(prompt[0], int):
            if len(prompt) != 1:
                raise bad_request(f"{len(prompt)} prompts in one request; one is served, send one for each", "prompt")
            return prompt[0]
        return [token for token in prompt if isinstance(token, int)]


def read_request(body: bytes, schema: type[ApiRequestT]) -> ApiRequestT:
    """Return a request parsed from its JSON.

    Raises:
        ApiError: It is not JSON, has an unknown key or an invalid value, or uses an unsupported feature.
    """
    try:
        api_request = schema.model_validate_json(body)
    except ValidationError as error:
        raise _problem(error) from error
    api_request.refuse_unserved()
    return api_request


def plain_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates expect: contents as text, OpenAI's `developer` as `system`.

    Raises:
        ApiError: A message has no role, or contains something other than text.
    """
    return [_plain_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(
            f"{where}.role is {str(role)[:40]!r}; system, developer, user, assistant and tool are known", where
        )
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(_text_part(part, where) for part in content)
    if content is None and role == "assistant":
        content = ""
    if not isinstance(content, str):
        raise bad_request(f"{where}.content is neither text nor a list of text parts", where)
    return {**message, "role": "system" if role == "developer" else role, "content": content}


def _text_part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        raise bad_request(f"{where}.content: a part of type {str(kind)[:40]!r}; this model reads text only", where)
    return text


def _problem(error: ValidationError) -> ApiError:
    errors = error.errors(include_url=False, include_context=False)
    first = [each for each in errors if each["loc"][:1] == errors[0]["loc"][:1]][-1]  # of a union, the last alternative
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "constrained", "str")))
    if first["type"] == "json_invalid":
        return bad_request(f"the body is not JSON: {first['msg']}")
    if first["type"] == "extra_forbidden":
        return bad_request(f"unknown key {where!r}", where, "unknown_parameter")
    if first["type"] == "missing":
        return bad_request(f"the key {where!r} is missing", where, "missing_required_parameter")
    shown = repr(first.get("input"))[:80]
    return bad_request(f"{where or 'the body'}: {first['msg']}, got {shown}", where or None, "invalid_value")
