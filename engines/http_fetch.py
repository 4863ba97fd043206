"""One HTTP request whose answer is limited in total time and in size.

The timeout of `urllib` and of `http.client` counts for each read, so a server that sends a byte now and then is never
given up. Here one deadline covers connecting, the TLS handshake, headers, redirections and body. Resolving a name has
the limits of the system's resolver.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

_PAGE_LIMIT_BYTES = 1 << 24  # of a page that is only asked for


class FetchError(OSError):
    """No whole answer came in time; the text is the reason, for a message."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of any status.

    Attributes:
        headers: Its names are compared without regard to case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Deadline:
    """A time until which all steps of an exchange must be done."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ends_s = time.monotonic() + limit_s

    def left_s(self) -> float:
        """Return the time left, in seconds; more than 0.

        Raises:
            FetchError: It has passed.
        """
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise self.passed()
        return left_s

    def passed(self) -> FetchError:
        """Return the error that says that the time has passed."""
        return FetchError(f"no complete answer within {self._limit_s:g} s")


def connected(host: str, port: int, deadline: Deadline) -> socket.socket:
    """Connect to the first address of a host that accepts.

    Raises:
        OSError: None does before the deadline; the error of the last.
    """
    failed: OSError = FetchError("the name has no address")
    for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        try:
            found = socket.create_connection((str(address[0]), port), timeout=deadline.left_s())
        except TimeoutError as error:
            raise deadline.passed() from error
        except OSError as error:
            failed = error
        else:
            found.settimeout(deadline.left_s())
            return found
    raise failed


def received(connection: socket.socket, buffer: bytearray | memoryview, deadline: Deadline) -> int:
    """Receive bytes into a buffer; return their number, 0 at the end of the connection.

    Raises:
        OSError: The connection failed, or the deadline passed (`FetchError`).
    """
    connection.settimeout(deadline.left_s())
    try:
        return connection.recv_into(buffer)
    except TimeoutError as error:
        raise deadline.passed() from error


def fetch(
    request: str | urllib.request.Request,
    *,
    limit_s: float,
    limit_bytes: int,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """Make a request, without a proxy, and return the whole answer, of any status.

    Args:
        limit_s: Of everything together, from connecting to the last byte.
        limit_bytes: Of the body.
        context: Of an https URL; None: the system's certificates.

    Raises:
        FetchError: There is no answer, it is not HTTP, larger than the limit, cut, or too late.
    """
    deadline = Deadline(limit_s)
    try:
        with _opened(request, deadline, context) as reply:
            body = reply.read(limit_bytes + 1)
            if len(body) > limit_bytes:
                raise FetchError(f"it has more than {limit_bytes >> 20} MiB")
            if reply.length:  # read() of a limited size does not say that the body was cut
                raise http.client.IncompleteRead(body, reply.length)
            return Answer(reply.code, reply.headers, body)
    except FetchError:
        raise
    except urllib.error.URLError as error:
        raise _failed(error.reason, deadline) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _failed(error, deadline) from error


def bearer(key: str | None) -> dict[str, str]:
    """Return the header with a key; no header without one.

    >>> bearer("k"), bearer(None)
    ({'Authorization': 'Bearer k'}, {})
    """
    return {"Authorization": f"Bearer {key}"} if key else {}


def answers(url: str, *, limit_s: float = 2.0) -> bool:
    """Return whether a server answers a page with status 200 in time."""
    try:
        return fetch(url, limit_s=limit_s, limit_bytes=_PAGE_LIMIT_BYTES).status == http.HTTPStatus.OK
    except FetchError:
        return False


def _opened(request: str | urllib.request.Request, deadline: Deadline, context: ssl.SSLContext | None) -> Any:
    opener = urllib.request.OpenerDirector()  # without files, FTP and proxies, which urlopen() knows
    for handler in (
        _Http(deadline),
        _Https(deadline, context),
        _Redirections(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    try:
        return opener.open(request, timeout=deadline.left_s())
    except urllib.error.HTTPError as error:  # of status 300 or more: an answer too, which closes what it wraps
        return error


def _failed(reason: object, deadline: Deadline) -> FetchError:
    if isinstance(reason, FetchError):
        return reason
    if isinstance(reason, TimeoutError):
        return deadline.passed()
    if isinstance(reason, http.client.HTTPException):
        return FetchError(f"no HTTP answer ({type(reason).__name__})")
    strerror = reason.strerror if isinstance(reason, OSError) else None
    return FetchError(strerror or str(reason) or type(reason).__name__)


class _TimedReader(io.RawIOBase):
    """The socket as a response reads it: each read ends at the deadline."""

    def __init__(self, connection: socket.socket, deadline: Deadline) -> None:
        self._connection = connection
        self._held = connection.makefile("rb", buffering=0)  # keeps the socket open once the connection lets go of it
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return the file that `http.client.HTTPResponse` asks its socket for."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """As any file for reading."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as `received` does."""
        return received(self._connection, buffer, self._deadline)

    def close(self) -> None:
        """Close the file, and the socket once nothing else holds it."""
        self._held.close()
        super().close()


def _timed(connection: Any, deadline: Deadline) -> Any:
    """Return a connection whose connecting and reading end at the deadline."""
    # http.client's own seam
    connection._create_connection = lambda address, *_: connected(address[0], address[1], deadline)
    connection.response_class = lambda sock, *args, **named: http.client.HTTPResponse(
        cast(socket.socket, _TimedReader(sock, deadline)), *args, **named
    )
    return connection


def _connection(deadline: Deadline, host: str, **named: Any) -> Any:
    return _timed(http.client.HTTPConnection(host, **named), deadline)


def _tls_connection(deadline: Deadline, host: str, **named: Any) -> Any:
    return _timed(http.client.HTTPSConnection(host, **named), deadline)


class _Redirections(urllib.request.HTTPRedirectHandler):
    """Follows redirections; a key goes no further than its own server, which urllib would send it beyond."""

    def redirect_request(self, req: urllib.request.Request, *reply: Any) -> urllib.request.Request | None:
        following = super().redirect_request(req, *reply)
        if following is not None and (following.type, following.host) != (req.type, req.host):
            following.remove_header("Authorization")
        return following


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_connection, self._deadline), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline, context: ssl.SSLContext | None) -> None:
        super().__init__(context=context)
        self._deadline = deadline
        self._trusted = context

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_tls_connection, self._deadline), req, context=self._trusted)
