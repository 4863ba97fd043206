"""The base of all protocols: the bytes of a request and the meaning of one message of the reply."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any, ClassVar

from loadtest.client.http1 import CutError, ProtocolError
from loadtest.results import Outcome
from loadtest.traffic import Prompt

TOLD_CHARACTERS = 12  # of a prompt, next to each other, are not repeated in an error
HIDDEN = "[...]"


@dataclass(slots=True)
class RequestSpec:
    """One request, as a protocol needs it.

    Attributes:
        output_tokens: Reply length.
        exact: Whether the reply must be that long; if not, it may end earlier.
        end_id: The token that ends a free reply, for a model that takes tokens and knows none; None: not told.
    """

    id: str
    prompt: Prompt
    output_tokens: int
    exact: bool = True
    end_id: int | None = None


@dataclass(slots=True)
class Reply:
    """The content of a reply, filled while it is read; times in seconds since the start of the run.

    Attributes:
        sent_s: When the request was sent; with a new connection, when connecting began.
        done_s: When the last byte of the reply came, or the request was given up.
        times_s: When each token came; tokens of one message came together.
        sizes: Characters of each message with tokens, kept by protocols that are told the count at the end only.
        told_tokens: Reply length in tokens as the server states it.
        bundled_tokens: Tokens that came in one message together with the one before them.
        finished: The protocol's own mark of the end has come.
        reply: The reply itself, where it is kept: token ids, or text in parts.
        failure: What went wrong; None while the reply is under way, and of a whole one.
        reason: The same in words that may be written down: without a key, and without the prompt.
        whole: The reply ended as its protocol has it.
    """

    sent_s: float = 0.0
    done_s: float = 0.0
    times_s: array[float] = field(default_factory=lambda: array("d"))
    sizes: array[int] = field(default_factory=lambda: array("L"))
    told_tokens: int | None = None
    bundled_tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    queue_s: float | None = None
    finish_reason: str | None = None
    reply: list[Any] | None = None
    finished: bool = False
    failure: Exception | None = None
    reason: str | None = None
    whole: bool = False

    def add(self, arrived_s: float, tokens: int = 1) -> None:
        """Note the tokens of one message."""
        if tokens == 1:
            self.times_s.append(arrived_s)
        elif tokens:
            self.times_s.extend([arrived_s] * tokens)
            self.bundled_tokens += tokens - 1

    def spread_told_tokens(self) -> None:
        """Give each message its share of the tokens the server counted, by its characters; each has one at least.

        A message more than tokens (a last piece of text held back) is no token: it is left out before the last one.
        """
        told, messages = self.told_tokens, len(self.times_s)
        if told is None or told == messages or not messages or not told:
            return
        times = list(self.times_s)
        if told < messages:
            self.times_s = array("d", [*times[: told - 1], times[-1]])
            return
        places = list(accumulate(self.sizes if len(self.sizes) == messages else [1] * messages, initial=0))
        shares = [round((told - messages) * place / places[-1]) for place in places]
        self.times_s = array("d")
        for time_s, (begin, end) in zip(times, pairwise(shares), strict=True):
            self.add(time_s, 1 + end - begin)

    def outcome(self, asked: RequestSpec) -> tuple[Outcome, str | None]:
        """Return how the request ended, and the reason in words where it is not well."""
        tokens, failure = len(self.times_s), self.failure
        if failure is not None:
            return _kind(failure, tokens), self.reason or type(failure).__name__
        if not self.whole:
            return "cancelled", None
        if not tokens:
            return "empty", "the reply ended well, without a token"
        if asked.exact and tokens != asked.output_tokens:
            return "cut", f"{tokens} tokens of {asked.output_tokens}"
        return "ok", None


def without_prompt(said: str, prompt: str) -> str:
    """Return a server's words without the parts of the prompt that some repeat in an error.

    >>> without_prompt("bad input: 'tell me all about my illness'!", "Please tell me all about my illness")
    "bad input: '[...]'!"
    """
    kept, place = [], 0
    while place < len(said):
        size = TOLD_CHARACTERS
        if said[place : place + size] in prompt and place + size <= len(said):
            while place + size < len(said) and said[place : place + size + 1] in prompt:
                size += 1
            kept.append(HIDDEN)
            place += size
        else:
            kept.append(said[place])
            place += 1
    return "".join(kept)


def _kind(failure: Exception, tokens: int) -> Outcome:
    if isinstance(failure, TimeoutError):
        return "timeout"
    if isinstance(failure, CutError) and tokens:
        return "cut"
    return "rejected" if isinstance(failure, ProtocolError) and failure.rejected else "error"


class Protocol(ABC):
    """A way to ask a server for a streamed reply. See docs/how-to/add-a-protocol.md.

    Attributes:
        grpc: Whether messages travel as gRPC's; if not, as server-sent events over HTTP.
        path: Where requests go.
        model: What is asked for.
    """

    grpc: ClassVar[bool] = False
    path: str
    model: str

    @abstractmethod
    def body(self, asked: RequestSpec) -> bytes:
        """Return the bytes of a request."""

    @abstractmethod
    def take(self, message: bytes, arrived_s: float, answer: Reply) -> None:
        """Note what one message of a reply says.

        Raises:
            ProtocolError: It is an error, in the server's words.
            KeyError, TypeError, AttributeError, ValueError, IndexError: It has not the shape it should.
        """

    def settle(self, answer: Reply) -> None:
        """Complete a whole reply's answer.

        Raises:
            ProtocolError: The reply lacks its end.
        """
        answer.spread_told_tokens()

    def headers(self) -> dict[str, str]:
        """Return headers beyond those of the protocol."""
        return {}

    def without_secrets(self, text: str) -> str:
        """Return a server's words as they may be written down."""
        return text


def merged_over(values: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields with others laid over them; null takes one away."""
    return {name: value for name, value in {**values, **extra}.items() if value is not None}


_SHAPE_ERRORS = (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError)


def read_message(protocol: Protocol, message: bytes, arrived_s: float, answer: Reply) -> None:
    """Have a protocol take a message.

    Raises:
        ProtocolError: It is an error, or has not the shape the protocol has.
    """
    try:
        protocol.take(message, arrived_s, answer)
    except _SHAPE_ERRORS as error:
        # Its text stays out of the record: it may be somebody's.
        raise ProtocolError(f"a malformed message of {len(message)} bytes: {type(error).__name__}") from error
