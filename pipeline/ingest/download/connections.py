"""Connections that hold to a policy: which addresses they may reach, and until when.

requests and urllib3 do the protocol; this puts sockets below them. The name stays in the Host header, in TLS's server
name and in the verification of the certificate: only the socket knows the address. A kept connection leads to the
address that was checked when it was opened.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from functools import cache, partial
from typing import Any

import requests.adapters
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util.ssl_ import create_urllib3_context

from pipeline.config import HttpConfig
from pipeline.ingest.download.public_addresses import resolve
from pipeline.ingest.rejection import Rejected, TemporaryFailure

KEPT_HOSTS = 64
"""Hosts to which connections are kept open."""


class Policy(threading.local):
    """What the connections of a client hold to. Each thread makes one request at a time, with its own deadline."""

    def __init__(self, config: HttpConfig) -> None:
        self.allow_private = config.allow_private_hosts
        self.connect_timeout_s = config.connect_timeout_s
        self.read_timeout_s = config.read_timeout_s
        self.deadline = float("inf")
        """Of this thread's request, in the time of `time.monotonic`."""

    def seconds(self, timeout_s: float) -> float:
        """`timeout_s`, or what is left until the deadline if that is less. Raises TimeoutError where nothing is."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the deadline has passed")
        return min(timeout_s, left)


class _Socket(socket.socket):
    """A timeout of a socket starts anew with every byte that arrives; the deadline does not."""

    policy: Policy | None = None

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        if self.policy is not None:
            self.settimeout(self.policy.seconds(self.policy.read_timeout_s))
        return super().recv_into(*arguments, **options)


class _TlsSocket(ssl.SSLSocket):
    policy: Policy | None = None

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        if self.policy is not None:
            self.settimeout(self.policy.seconds(self.policy.read_timeout_s))
        return super().recv_into(*arguments, **options)


def _connect(connection: HTTPConnection, policy: Policy) -> socket.socket:
    """A socket connected to the first address of the connection's host that accepts.

    Raises Rejected as `resolve` does, or TemporaryFailure.
    """
    # The name with its final dot, if it has one: that is another name for the name service.
    host, port = connection._dns_host.strip("[]"), connection.port or connection.default_port
    words = "no address"
    try:
        addresses = resolve(host, port, policy.allow_private, policy.seconds(policy.connect_timeout_s))
        for family, address in addresses:
            sock = _Socket(family, socket.SOCK_STREAM)
            try:
                for option in connection.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(policy.seconds(policy.connect_timeout_s))
                sock.connect(address)
            except OSError as error:
                sock.close()
                words = error.strerror or str(error) or type(error).__name__
            else:
                sock.policy = policy
                return sock
    except TimeoutError as error:
        words = str(error)
    raise TemporaryFailure(f"cannot connect to {host}: {words}")


class _HttpConnection(HTTPConnection):
    def __init__(self, *arguments: Any, policy: Policy, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._policy = policy

    def _new_conn(self) -> socket.socket:
        return _connect(self, self._policy)


class _HttpsConnection(HTTPSConnection):
    def __init__(self, *arguments: Any, policy: Policy, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._policy = policy

    def _new_conn(self) -> socket.socket:
        return _connect(self, self._policy)

    def connect(self) -> None:
        """Connect and shake hands; what fails here is told apart from faults of a connection that stands."""
        try:
            super().connect()
        except ssl.SSLCertVerificationError as error:
            raise Rejected("tls_error", f"{self.host}: {error.verify_message}") from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:
            raise TemporaryFailure(f"{self.host} ended the TLS handshake") from error
        except ssl.SSLError as error:
            raise Rejected("tls_error", f"{self.host}: {error.reason or 'no TLS'}") from error
        assert isinstance(self.sock, _TlsSocket)
        self.sock.policy = self._policy


class _HttpPool(HTTPConnectionPool):
    def __init__(self, *arguments: Any, policy: Policy, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ConnectionCls: Any = partial(_HttpConnection, policy=policy)


class _HttpsPool(HTTPSConnectionPool):
    def __init__(self, *arguments: Any, policy: Policy, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.ConnectionCls: Any = partial(_HttpsConnection, policy=policy)


@cache
def _tls_context(ca_bundle: str) -> ssl.SSLContext:
    """Certificates are read once per process: urllib3 alone would read them for every connection."""
    context = create_urllib3_context()
    context.load_verify_locations(ca_bundle)
    context.sslsocket_class = _TlsSocket
    return context


class CheckedAdapter(requests.adapters.HTTPAdapter):
    """Sends prepared requests over connections that hold to `policy`; several threads may use it at once.

    Certificates are verified against those of the file in the environment's REQUESTS_CA_BUNDLE, or else against
    those that come with requests.
    """

    def __init__(self, policy: Policy, threads: int) -> None:
        self._policy = policy
        super().__init__(pool_connections=KEPT_HOSTS, pool_maxsize=threads)

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        context = _tls_context(os.environ.get("REQUESTS_CA_BUNDLE") or DEFAULT_CA_BUNDLE_PATH)
        self.poolmanager = PoolManager(connections, maxsize=maxsize, block=block, ssl_context=context, **options)
        pools: dict[str, Any] = {
            "http": partial(_HttpPool, policy=self._policy),
            "https": partial(_HttpsPool, policy=self._policy),
        }
        self.poolmanager.pool_classes_by_scheme = pools

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        """Leave the certificates to the TLS context, which has them and requires them."""
