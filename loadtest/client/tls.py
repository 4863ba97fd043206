"""TLS without sockets: bytes in, bytes out."""

from __future__ import annotations

import ssl

PIECE_BYTES = 65_536


class TlsStream:
    """TLS between a socket and a session, as bytes in and bytes out."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(self._in, self._out, server_hostname=host)

    def shake(self) -> bool:
        """Continue the handshake; return whether it is complete."""
        try:
            self._object.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def take(self, data: bytes) -> None:
        """Take bytes from the socket."""
        self._in.write(data)

    def outgoing(self) -> bytes:
        """Return the bytes to send now."""
        return self._out.read()

    def read(self, data: bytes) -> bytes | None:
        """Take bytes from the socket; return them decrypted: None if none yet, empty at the server's close."""
        self._in.write(data)
        parts = []
        try:
            while part := self._object.read(PIECE_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            return b"".join(parts) or None
        except ssl.SSLZeroReturnError:
            pass
        return b"".join(parts)

    def write(self, data: bytes) -> bytes:
        """Return the bytes that carry data."""
        self._object.write(data)
        return self._out.read()
