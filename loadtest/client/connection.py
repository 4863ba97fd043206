"""Sockets on gevent's loop: bytes are timestamped on arrival; the user's greenlet wakes once, at the end of the reply.

Between two tokens there is no greenlet switch and no parsing: a receiver keeps the bytes and when it read them until
the reply may have ended. Where a thread can receive, the loop wakes at ends alone; elsewhere the loop calls the
receivers. If the kernel timestamps arrivals, its timestamp is used, so that a busy client does not add to the server's
latency; the reading delay is recorded as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gevent
import gevent.socket
from gevent.event import Event
from gevent.monkey import get_original

from loadtest.client.endpoint import Endpoint, tls_context
from loadtest.client.http1 import EVENT_STREAM, HttpSession, ProtocolError, request_head
from loadtest.client.http2 import GrpcSession, call_headers
from loadtest.client.protocols.base import Protocol, Reply, RequestSpec, read_messages, without_prompt
from loadtest.client.receiver import RECEIVE_BYTES, Pieces, PythonReceiver, Quiet, Receiver, ReceivingThread
from loadtest.client.timestamps import Readings, ask_for_stamps
from loadtest.client.tls import TlsStream

__all__ = ["Connection", "Readings", "ServerConnections", "UnreachableError"]

READ, WRITE = 1, 2  # libev's


class UnreachableError(OSError):
    """The server accepts no connections."""


@dataclass(slots=True)
class ServerConnections:
    """A server's address and the state shared by all its connections.

    Attributes:
        silence_s: A reply fails after this many seconds without a byte.
        reply_s: A reply fails if it has not ended this many seconds after its request.
        began_s: Start of the run, which times are counted from, on the monotonic clock.
        stamps: Whether to ask the kernel for arrival times.
        receiver: What receives a socket's bytes.
        spare: Sessions whose replies were read, for others' next ones.
    """

    endpoint: Endpoint
    protocol: Protocol
    silence_s: float
    reply_s: float
    began_s: float
    stamps: bool = True
    receiver: type[PythonReceiver] = Receiver
    readings: Readings = field(default_factory=Readings)
    spare: list[HttpSession | GrpcSession] = field(default_factory=list)
    _addresses: list[Any] = field(default_factory=list)
    _streams: set[bytes] = field(default_factory=set)
    _head: bytes = b""
    _context: ssl.SSLContext | None = None
    _thread: Any = None
    _watcher: Any = None

    def start(self, receiver: PythonReceiver) -> bool:
        """Let a thread receive from now on; return whether there can be one.

        The thread's own work is in C, and it runs while Python parses: what a busy process receives late, it would
        record as merged.
        """
        if self.receiver is PythonReceiver or ReceivingThread is None:
            return False
        if self._thread is None:
            self._thread = ReceivingThread()
            self._watcher = gevent.get_hub().loop.io(self._thread.fileno(), READ)
            self._watcher.start(self._thread)
        self._thread.add(receiver)
        return True

    def stop(self, receiver: PythonReceiver) -> None:
        """Receive no longer for a receiver; the thread ends with the last one."""
        if self._thread is not None:
            self._thread.discard(receiver)
            if not self._thread.count:
                self._watcher.stop()
                self._watcher.close()
                self._thread = self._watcher = None

    def now_s(self) -> float:
        """Return seconds since the start of the run."""
        return time.monotonic() - self.began_s

    def arrivals_s(self, pieces: Pieces, previous_s: float) -> list[float]:
        """Return when pieces of a reply arrived, in seconds since the start of the run; see `Readings.arrivals_s`."""
        return self.readings.arrivals_s(pieces, previous_s, began_s=self.began_s)

    def addresses(self) -> list[Any]:
        """Return the addresses of the host's name; resolved once, and again after a failure to connect.

        Raises:
            UnreachableError: The name cannot be resolved.
        """
        if not self._addresses:
            try:
                self._addresses = gevent.socket.getaddrinfo(
                    self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM
                )
            except socket.gaierror as error:
                raise UnreachableError(f"no server at {self.endpoint.authority}: {error.strerror}") from error
        return self._addresses

    def forget_addresses(self) -> None:
        """Resolve the name again next time."""
        self._addresses = []

    def tls(self) -> ssl.SSLContext | None:
        """Return the TLS context; None without TLS."""
        if self._context is None:
            self._context = tls_context(self.endpoint, protocol="h2" if self.protocol.grpc else "http/1.1")
        return self._context

    def session(self) -> HttpSession | GrpcSession:
        """Return the protocol session of a new connection, or in place of one whose reply is not read yet."""
        if self.spare:
            return self.spare.pop()
        protocol, endpoint = self.protocol, self.endpoint
        if protocol.grpc:
            return GrpcSession(call_headers(protocol.path, endpoint.authority, tls=endpoint.tls), self.arrivals_s)
        if not self._head:
            headers = {"Content-Type": "application/json", "Accept": EVENT_STREAM, **protocol.headers()}
            self._head = request_head(f"POST {protocol.path}", endpoint.authority, headers)
        return HttpSession(self._head, self.arrivals_s, self._streams)


class Connection:
    """One user's persistent connection; opened at the first request, and again after a failure."""

    def __init__(self, connections: ServerConnections) -> None:
        self._connections = connections
        self._socket: _Socket | None = None
        self._session: HttpSession | GrpcSession | None = None

    def ask(self, spec: RequestSpec, reply: Reply, *, may_wait: bool = False) -> None:
        """Send a request and wait for the end of its reply; an error is stored in `answer.failure`.

        If the calling greenlet is killed meanwhile, `content` contains what had arrived.

        Args:
            may_wait: Whether a reply that has ended may be left unread for the caller; see `Reply.rest`.
        """
        connections = self._connections
        protocol = connections.protocol
        payload = protocol.body(spec)
        reply.sent_s = connections.now_s()
        try:
            sock, session = self._open(reply.sent_s)
            request = session.begin(
                payload, lambda messages, times_s: read_messages(protocol, messages, times_s, reply), reply.sent_s
            )
            take = sock.exchange(request, reply.sent_s, protocol.last_event if may_wait else b"")
            if take is not None:
                self._session = sock.session
                reply.rest = partial(_read_rest, connections, session, take, spec, reply)
                return
            protocol.settle(reply)
            reply.whole = True
        except (OSError, ProtocolError) as failure:
            _note_failure(protocol, failure, spec, reply)
        finally:
            if reply.rest is None:
                own = self._session
                reply.done_s = own.arrived_s if reply.whole and own is not None else connections.now_s()
                if not reply.whole or own is None or not own.reusable:
                    self.close()

    def _open(self, now_s: float) -> tuple[_Socket, HttpSession | GrpcSession]:
        if self._socket is None or self._session is None or not self._socket.is_open or not self._session.reusable:
            self.close()
            self._session = self._connections.session()
            self._socket = _Socket(self._connections, self._session)
            self._socket.connect(now_s + self._connections.silence_s)
        return self._socket, self._session

    def close(self) -> None:
        """Close the connection; the server treats a reply in progress as cancelled."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._session = None


def _read_rest(
    connections: ServerConnections,
    session: HttpSession | GrpcSession,
    take: Callable[[], bool],
    spec: RequestSpec,
    reply: Reply,
) -> None:
    """Read the end of a reply: the reply is then as if it had been read as it came."""
    protocol, reply.rest = connections.protocol, None
    try:
        if not take():
            raise ProtocolError("bytes like the end of a reply within it")
        protocol.settle(reply)
        reply.whole = True
        if session.reusable:
            connections.spare.append(session)
    except ProtocolError as failure:
        _note_failure(protocol, failure, spec, reply)
    reply.done_s = session.arrived_s


def _note_failure(protocol: Protocol, failure: OSError | ProtocolError, spec: RequestSpec, reply: Reply) -> None:
    reply.failure = failure
    reply.reason = protocol.without_secrets(without_prompt(_failure_text(failure), spec.prompt.text))


def _failure_text(failure: OSError | ProtocolError) -> str:
    """Return a failure as text for a record."""
    if isinstance(failure, OSError) and not isinstance(failure, TimeoutError | UnreachableError):
        return f"connection: {failure.strerror or failure}"
    return str(failure)


class _Socket:
    """A socket that gevent's loop reads into a session."""

    def __init__(self, connections: ServerConnections, session: HttpSession | GrpcSession) -> None:
        self._connections = connections
        self.session = session
        self._socket: Any = None
        self._reader: Any = None
        self._receiver: PythonReceiver | None = None
        self._writer: Any = None
        self._tls: TlsStream | None = None
        self._unsent = b""
        self._woken = Event()
        self._failure: Exception | None = None
        self._waits = False
        self._last_event = b""
        self._unread: Callable[[], bool] | None = None
        self._sent_s = 0.0  # on the monotonic clock
        self._ends_s = 0.0
        self._timer: Any = None  # runs while a request waits, and on after it: the next one's limits are no earlier

    @property
    def is_open(self) -> bool:
        """Whether the server still has its end open."""
        return self._socket is not None

    def connect(self, until_s: float) -> None:
        """Connect, and start reading.

        Raises:
            UnreachableError, TimeoutError: The connection is not accepted.
            OSError: The server's certificate is not trusted, or it does not use TLS.
        """
        failures = []
        for family, kind, number, _, address in self._connections.addresses():
            self._socket = get_original("socket", "socket")(family, kind, number)
            self._socket.setblocking(False)
            if self._connections.stamps:
                ask_for_stamps(self._socket)
            code = self._socket.connect_ex(address)
            if code == errno.EINPROGRESS:
                self._wait(WRITE, until_s)
                code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if not code:
                break
            self.close()
            failures.append(os.strerror(code))
        else:
            self._connections.forget_addresses()
            raise UnreachableError(
                f"no server at {self._connections.endpoint.authority}: {'; '.join(sorted(set(failures)))}"
            )
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self._connections.tls()
        if context is not None:
            self._shake_hands(context, until_s)
        self._receiver = self._connections.receiver(self._socket, self._look)
        if self._tls is not None or not self._connections.start(self._receiver):  # every piece of TLS is looked at
            self._reader = gevent.get_hub().loop.io(self._socket.fileno(), READ)
            self._reader.start(self._receiver)

    def _shake_hands(self, context: ssl.SSLContext, until_s: float) -> None:
        self._tls = TlsStream(context, self._connections.endpoint.host)
        while not self._tls.shake():
            self._socket.sendall(self._tls.outgoing())  # some kilobytes at most, which fit a new socket's buffer
            self._wait(READ, until_s)
            data = self._socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionResetError(errno.ECONNRESET, "closed during the TLS handshake")
            self._tls.take(data)
        self._socket.sendall(self._tls.outgoing())

    def _wait(self, events: int, until_s: float) -> None:
        """Wait until the socket can be read or written."""
        watcher = gevent.get_hub().loop.io(self._socket.fileno(), events)
        silent = TimeoutError(f"no connection to {self._connections.endpoint.authority}")
        try:
            with gevent.Timeout(max(until_s - self._connections.now_s(), 0.001), silent):
                gevent.get_hub().wait(watcher)
        finally:
            watcher.stop()
            watcher.close()

    def exchange(self, request: bytes, sent_s: float, last_event: bytes = b"") -> Callable[[], bool] | None:
        """Send a request and wait for the end of its reply; return what lets the session, then replaced, take it.

        Args:
            last_event: A reply known to end with it is not taken yet; empty: every reply is, and None returned.

        Raises:
            TimeoutError: The reply fell silent, or did not end in time.
            ProtocolError, OSError: It failed.
        """
        self._woken.clear()
        self._failure, self._waits = None, True
        self._last_event, self._unread = last_event, None
        self._sent_s, self._ends_s = time.monotonic(), sent_s + self._connections.reply_s
        self._listen()
        try:
            self._send(request)
            if self._timer is None:
                self._set_timer()
            self._woken.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            with contextlib.suppress(ProtocolError):
                (self._unread or self._settle)()  # what arrived before the error
            raise
        return self._unread

    def _set_timer(self) -> None:
        left_s = self._gives_up_s() - self._connections.now_s()
        self._timer = gevent.get_hub().loop.timer(max(left_s, 0.001))
        self._timer.start(self._on_time)

    def _on_time(self) -> None:
        """Give up the request that waits now if it has waited long enough."""
        self._stop_timer()
        if not self._waits:
            return
        now_s = self._connections.now_s()
        if now_s < self._gives_up_s():
            self._set_timer()
            return
        try:
            self._settle()  # may contain the reason, or the end
        except ProtocolError as failure:
            self._end(failure)
            return
        if self.session.ended:
            self._end(None)
            return
        connections, is_late = self._connections, now_s >= self._ends_s
        never = f"no end of the reply within {connections.reply_s:g} s"
        self._end(TimeoutError(never if is_late else f"nothing for {connections.silence_s:g} s"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _gives_up_s(self) -> float:
        """Return when to give up if no more bytes come; at the latest at the request's own limit."""
        read_s = 0.0 if self._receiver is None else self._receiver.read_s
        return min(max(read_s, self._sent_s) - self._connections.began_s + self._connections.silence_s, self._ends_s)

    def _look(self) -> None:
        """Let the session take what was received; runs in the loop."""
        receiver, session = self._receiver, self.session
        if receiver is None:
            return
        try:
            self._take(receiver)
            self._listen()
            if session.outgoing:
                outgoing, session.outgoing = session.outgoing, b""
                self._send(outgoing)
        except (OSError, ProtocolError) as failure:
            self._end(failure)

    def _listen(self) -> None:
        """Let the receiver keep what the session need not take at once; TLS records are no chunks or frames."""
        if self._receiver is not None:
            self._receiver.quiet = self.session.quiet if self._tls is None else Quiet.NONE

    def _take(self, receiver: PythonReceiver) -> None:
        """Take what was received, and the end of the connection: a thread may have received both by now."""
        # Before the bytes: of a connection that has ended by now, all are there.
        is_closed, error = receiver.closed, receiver.error
        pieces = Pieces(*receiver.drain())
        if self._tls is not None and pieces.data:
            plain = self._decrypted(pieces.data, self._tls)
            is_closed = is_closed or plain == b""
            pieces = Pieces.of(plain or b"", pieces.read_s[-1], pieces.delays_s[-1])
        session = self.session
        may_wait = self._waits and self._last_event and not is_closed and not error
        if may_wait and session.is_whole_with(pieces.data, self._last_event):
            self._unread, self.session = partial(session.take, pieces), self._connections.session()
            self._end(None)
        elif pieces.data and session.take(pieces) and self._waits:
            self._end(None)
        if error:
            raise OSError(error, os.strerror(error))
        if is_closed:
            session.close()
            self._end(None)
            self.close()

    def _settle(self) -> None:
        """Parse what was received of an unfinished reply."""
        if self._receiver is not None:
            self.session.take(Pieces(*self._receiver.drain()))
        self.session.settle()

    def _decrypted(self, data: bytes, tls: TlsStream) -> bytes | None:
        plain = tls.read(data)
        self._unsent += tls.outgoing()  # such as the reply to a TLS key update
        self._flush()
        return plain

    def _end(self, failure: Exception | None) -> None:
        """Wake the user, once; a failure between requests only closes the connection."""
        if failure is not None and not self._waits:
            self.close()
        if self._waits:
            self._waits = False
            self._failure = failure
            self._woken.set()

    def _send(self, data: bytes) -> None:
        """Send; what the socket does not accept now is sent later by the loop."""
        if self._socket is None:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the server")
        if self._tls is not None:
            data = self._tls.write(data)
        self._unsent = self._unsent + data if self._unsent else data
        self._flush()

    def _flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except (BlockingIOError, InterruptedError):
            if self._writer is None:
                self._writer = gevent.get_hub().loop.io(self._socket.fileno(), WRITE)
            self._writer.start(self._on_writable)
            return
        if self._writer is not None:
            self._writer.stop()

    def _on_writable(self) -> None:
        try:
            self._flush()
        except OSError as failure:
            self._end(failure)

    def close(self) -> None:
        """Close the socket in any state."""
        self._stop_timer()
        for watcher in (self._reader, self._writer):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        if self._receiver is not None:
            self._connections.stop(self._receiver)
        self._reader = self._receiver = self._writer = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None
