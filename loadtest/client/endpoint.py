"""A server's address and protocol."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from engines.console import OPENAI_KEY
from engines.errors import UserError
from engines.files import Strict, require_file

_PORTS: dict[str, int] = json.loads((Path(__file__).parent / "protocols" / "ports.json").read_text(encoding="utf-8"))
PROTOCOLS = tuple(_PORTS)
_SCHEMES = {"": False, "http": False, "grpc": False, "https": True, "grpcs": True}
_TLS_PORT = 443


def _known(name: str) -> str:
    if name not in PROTOCOLS:
        raise ValueError(f"expected one of {', '.join(PROTOCOLS)}")
    return name


ProtocolName = Annotated[str, AfterValidator(_known)]


class Endpoint(Strict):
    """A server's address.

    Attributes:
        base_path: Prefix of every path of the protocol, as in `/gateway/v1`; empty, or without a trailing slash.
        ca_file: Certificates to trust instead of the system's.
        insecure: Do not verify the server's certificate.
        api_key_env: Name of the environment variable with the key; the key itself is never written.
        llm_api: Whether the engine's model is the LLM API's, which takes text; see `ServerFacts`.
        perf_metrics: Whether the model returns its own timings on request; see `ServerFacts`.
        kv_block_tokens: Tokens per KV cache block, to count those of the blocks it reports as reused; 0 if unknown.
    """

    host: str
    port: int
    protocol: ProtocolName
    tls: bool = False
    base_path: str = ""
    ca_file: str | None = None
    insecure: bool = False
    api_key_env: str = OPENAI_KEY
    llm_api: bool = False
    perf_metrics: bool = False
    kv_block_tokens: int = 0

    @property
    def authority(self) -> str:
        """Host and port, for headers and messages."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_openai(self) -> bool:
        """Whether the server speaks OpenAI's protocol."""
        return self.protocol.startswith("openai-")

    @property
    def v1_path(self) -> str:
        """Path of OpenAI's API, whether or not the server's URL was given with it."""
        return self.base_path if self.base_path.endswith("/v1") else f"{self.base_path}/v1"

    def url(self, path: str) -> str:
        """Return the full URL of a path of the server."""
        return f"http{'s' if self.tls else ''}://{self.authority}{path}"


def endpoint_of(
    url: str,
    protocol: ProtocolName,
    *,
    ca_file: Path | None = None,
    insecure: bool = False,
    api_key_env: str = OPENAI_KEY,
) -> Endpoint:
    """Return the endpoint of a URL; HOST:PORT without a scheme is accepted too.

    >>> endpoint_of("https://host/gateway/v1", "openai-chat").base_path
    '/gateway/v1'
    >>> endpoint_of("[::1]:9", "triton-grpc").authority
    '[::1]:9'

    Raises:
        UserError: It is malformed, has no host, port 0, an unknown scheme or user names, or the certificate file does
            not exist.
    """
    try:
        parts = urlsplit(url if "://" in url else f"//{url}")
        port = parts.port
        (parts.hostname or "").encode("idna")  # as getaddrinfo() does; refuses labels that are empty or too long
    except ValueError as error:
        raise UserError(f"--url {url}: {error}", hint="expected http://HOST:PORT") from error
    if port == 0:
        raise UserError(f"--url {url}: no server listens on port 0", hint="expected http://HOST:PORT")
    if parts.username is not None:
        raise UserError(
            "--url: user names and passwords in URLs are not supported",
            hint="pass a key in an environment variable, named by --api-key-env",
        )
    if parts.scheme not in _SCHEMES or not parts.hostname or (parts.hostname.isdigit() and port is None):
        raise UserError(f"--url {url}: http://HOST:PORT is expected", hint="use https:// or grpcs:// for TLS")
    if ca_file is not None:
        require_file(ca_file, hint="give a PEM file of certificates")
    tls = _SCHEMES[parts.scheme]
    return Endpoint(
        host=parts.hostname,
        port=port or (_TLS_PORT if tls else _PORTS[protocol]),
        protocol=protocol,
        tls=tls,
        base_path=parts.path.rstrip("/"),
        ca_file=str(ca_file) if ca_file is not None else None,
        insecure=insecure,
        api_key_env=api_key_env,
    )


def tls_context(endpoint: Endpoint, *, protocol: str = "http/1.1") -> ssl.SSLContext | None:
    """Return the TLS context of an endpoint, for a protocol named as in ALPN; None without TLS.

    Raises:
        OSError: The certificate file cannot be read.
    """
    if not endpoint.tls:
        return None
    context = ssl.create_default_context(cafile=endpoint.ca_file)
    if endpoint.insecure:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([protocol])
    return context
