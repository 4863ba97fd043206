"""The base of all protocols: encodes a request, and interprets the messages of its reply."""

from __future__ import annotations

import json
import struct
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from pydantic_core import from_json

from engines.files import MAX_TOKENS
from loadtest.client.http1 import CutError, ProtocolError
from loadtest.client.protocols.shape import Shape
from loadtest.results import LATEST_S, Outcome
from loadtest.traffic import Prompt

QUOTED_CHARACTERS = 12  # minimum length of a passage of the prompt that is removed from an error text
HIDDEN = "[...]"
MAX_REPLY_TOKENS = 1 << 20  # the time of each is kept and written
MAX_TOKEN_ID = 2**31 - 1
SHAPES_TRIED = 4  # events of a block from which a shape is taken: the first may have a role and no text
END_BYTES = 2  # events of one shape end alike


@dataclass(slots=True)
class RequestSpec:
    """One request, in the form protocols need.

    Attributes:
        output_tokens: Reply length.
        exact: Whether the reply must have that length; if not, it may end earlier.
        end_id: Token that ends a free reply, for a model that takes tokens and has no end token of its own; None:
            omitted.
    """

    id: str
    prompt: Prompt
    output_tokens: int
    exact: bool = True
    end_id: int | None = None


def stated_count(value: Any, limit: int = MAX_TOKENS) -> int:
    """Return a number of tokens as a server states it.

    Raises:
        ProtocolError: It is negative, or more than any reply or prompt has.
    """
    if isinstance(value, float) and not value.is_integer():
        raise ProtocolError(f"the server states {value} tokens")
    count = int(value)
    if not 0 <= count <= limit:
        raise ProtocolError(f"the server states {str(count)[:20]} tokens")
    return count


def stated_queue_s(value: Any) -> float:
    """Return a time in the server's queue as the server states it.

    Raises:
        ProtocolError: It is negative, or longer than any run.
    """
    queue_s = float(value)
    if not 0 <= queue_s <= LATEST_S:
        raise ProtocolError(f"the server states a queue time of {queue_s:g} s")
    return queue_s


def stated_ids(value: Any) -> list[int]:
    """Return token ids as a server states them: one or a list.

    Raises:
        ProtocolError: One is not the id of a token.
    """
    ids = value if isinstance(value, list) else [value]
    if not all(type(each) is int and 0 <= each <= MAX_TOKEN_ID for each in ids):
        raise ProtocolError("the server states a token that is no number from 0 on")
    return ids


@dataclass(slots=True)
class Reply:
    """A reply, filled while it is read; times in seconds since the start of the run.

    Attributes:
        sent_s: When the request was sent; for a new connection, when connecting started.
        done_s: When the last byte of the reply arrived, or the request was given up.
        times_s: Arrival time of each token; tokens of one message arrived together.
        sizes: Characters of each message with tokens, for protocols that report the token count only at the end.
        stated_tokens: Reply length in tokens as reported by the server.
        bundled_tokens: Tokens that arrived in one message with the one before them.
        finished: The protocol's own end marker has arrived.
        content: The reply itself, if it is kept: token ids, or pieces of text.
        failure: The error; None while the reply is in progress, and for a complete one.
        reason: The error as text that may be recorded: without key and prompt.
        whole: The reply ended as the protocol specifies.
        rest: Reads what has arrived and was not read yet; None: all was read. Until then, outcome and end are unknown.
    """

    sent_s: float = 0.0
    done_s: float = 0.0
    times_s: array[float] = field(default_factory=lambda: array("d"))
    sizes: list[int] = field(default_factory=list)
    stated_tokens: int | None = None
    bundled_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None
    finish_reason: str | None = None
    content: list[Any] | None = None
    finished: bool = False
    failure: Exception | None = None
    reason: str | None = None
    whole: bool = False
    rest: Callable[[], None] | None = None

    def add(self, arrived_s: float, tokens: Any = 1) -> None:
        """Record the tokens of one message, as many as the server states.

        Raises:
            ProtocolError: The server states a count that no reply has.
        """
        if tokens == 1:
            self.times_s.append(arrived_s)
        elif count := stated_count(tokens, MAX_REPLY_TOKENS - len(self.times_s)):
            self.times_s.extend([arrived_s] * count)
            self.bundled_tokens += count - 1

    def spread_stated_tokens(self) -> None:
        """Distribute the token count reported by the server over the messages by their characters, at least one each.

        A message beyond that count (a last piece of text held back) is not a token: it is dropped before the last one.
        """
        total, messages = self.stated_tokens, len(self.times_s)
        if total is None or total == messages or not messages or not total:
            return
        times = list(self.times_s)
        if total < messages:
            self.times_s = array("d", [*times[: total - 1], times[-1]])
            return
        places = list(accumulate(self.sizes if len(self.sizes) == messages else [1] * messages, initial=0))
        shares = [round((total - messages) * place / places[-1]) for place in places]
        self.times_s = array("d")
        for time_s, (begin, end) in zip(times, pairwise(shares), strict=True):
            self.add(time_s, 1 + end - begin)

    def outcome(self, spec: RequestSpec) -> tuple[Outcome, str | None]:
        """Return the request's outcome, and the reason if it failed."""
        tokens, failure = len(self.times_s), self.failure
        if failure is not None:
            return _kind(failure, tokens), self.reason or type(failure).__name__
        if not self.whole:
            return "cancelled", None
        if not tokens:
            return "empty", "the reply ended normally, but without a token"
        if spec.exact and tokens != spec.output_tokens:
            return "cut", f"{tokens} tokens of {spec.output_tokens}"
        return "ok", None


def without_prompt(text: str, prompt: str) -> str:
    """Return a server's message without passages of the prompt, which some servers quote in errors.

    >>> without_prompt("bad input: 'tell me all about my illness'!", "Please tell me all about my illness")
    "bad input: '[...]'!"
    """
    pieces, place = [], 0
    while place < len(text):
        size = QUOTED_CHARACTERS
        if text[place : place + size] in prompt and place + size <= len(text):
            while place + size < len(text) and text[place : place + size + 1] in prompt:
                size += 1
            pieces.append(HIDDEN)
            place += size
        else:
            pieces.append(text[place])
            place += 1
    return "".join(pieces)


def _kind(failure: Exception, tokens: int) -> Outcome:
    if isinstance(failure, TimeoutError):
        return "timeout"
    if isinstance(failure, CutError) and tokens:
        return "cut"
    return "rejected" if isinstance(failure, ProtocolError) and failure.rejected else "error"


class Protocol(ABC):
    """A way to request a streamed reply from a server. See docs/how-to/add-a-protocol.md.

    Attributes:
        grpc: Whether messages are gRPC's; if not, server-sent events over HTTP.
        path: Path of requests.
        model: Requested model.
        last_event: With which every whole reply ends, and no other; empty if there is none.
        shape: The last one found: it need not be found again where events do not name their request.
    """

    grpc: ClassVar[bool] = False
    last_event: ClassVar[bytes] = b""
    path: str
    model: str
    shape: Shape | None = None

    @abstractmethod
    def body(self, spec: RequestSpec) -> bytes:
        """Return the bytes of a request."""

    @abstractmethod
    def take(self, message: bytes, arrived_s: float, reply: Reply) -> None:
        """Process one message of a reply.

        Raises:
            ProtocolError: It is an error reported by the server.
            KeyError, TypeError, AttributeError, ValueError, IndexError, OverflowError, struct.error: It is malformed.
        """

    def shape_of(self, message: bytes) -> Shape | None:
        """Return the shape of a message that was taken, if others that differ in their text alone need not be parsed.

        Such a message must add one token with the text's characters, and nothing else that this one has not.
        """
        del message
        return None

    def settle(self, reply: Reply) -> None:
        """Complete a finished reply.

        Raises:
            ProtocolError: The reply lacks its end marker.
        """
        reply.spread_stated_tokens()

    def headers(self) -> dict[str, str]:
        """Return headers beyond the protocol's own."""
        return {}

    def without_secrets(self, text: str) -> str:
        """Return a server's message without secrets."""
        return text


def merged_over(values: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields with others merged into them; null removes a field."""
    return {name: value for name, value in {**values, **extra}.items() if value is not None}


_SHAPE_ERRORS = (
    KeyError,
    TypeError,
    AttributeError,
    ValueError,
    IndexError,
    RecursionError,
    OverflowError,
    struct.error,
)


def read_messages(protocol: Protocol, messages: list[bytes], times_s: array[float], reply: Reply) -> None:
    """Let a protocol process messages, each with its arrival time.

    A message that differs from an earlier one in its text alone is not parsed: see `Shape`.

    Raises:
        ProtocolError: One is an error, or is malformed; those before it count.
    """
    shape: Shape | None = None
    left, place = SHAPES_TRIED, 0
    while place < len(messages):
        if shape is not None and (sizes := shape.sizes_in(messages, place)):
            end = place + len(sizes)
            reply.times_s.extend(times_s[place:end])
            reply.sizes += sizes
            if reply.content is not None:
                reply.content += shape.texts_of(messages[place:end])
            place = end
            continue
        message, arrived_s = messages[place], times_s[place]
        place += 1
        if shape is not None and (text := shape.text_in(message)):
            reply.times_s.append(arrived_s)
            reply.sizes.append(len(text))
            if reply.content is not None:
                reply.content.append(text if shape.is_kept else "")
            continue
        try:
            protocol.take(message, arrived_s, reply)
        except _SHAPE_ERRORS as error:
            # its text stays out of the record: it may be private
            raise ProtocolError(f"a malformed message of {len(message)} bytes: {type(error).__name__}") from error
        if protocol.shape is not None and protocol.shape.text_in(message):
            shape = protocol.shape
        elif left and place < len(messages) and messages[place].endswith(message[-END_BYTES:]):
            # Where the next event ends otherwise, it has another shape.
            left -= 1
            shape = protocol.shape = protocol.shape_of(message) or shape


def json_of(message: bytes) -> Any:
    """Return the value of a message in JSON.

    Pydantic's parser takes a third of the time of the standard library's, which reads what the faster one refuses and
    some servers send: half a surrogate pair, where they cut text between its two halves.

    Raises:
        ValueError, RecursionError: It is not JSON.
    """
    try:
        return from_json(message)
    except ValueError:
        return json.loads(message.decode())
