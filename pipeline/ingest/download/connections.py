"""Connections that follow a policy: they reach public addresses only, and end at a deadline.

requests and urllib3 implement the protocol; this module provides the sockets below them. The host name is still used in
the Host header, as the server name of TLS and to verify the certificate; only the socket uses the checked address. A
connection that is kept open leads to the address that was checked when it was opened.
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
from pipeline.ingest.download.tolerant import TolerantResponse
from pipeline.ingest.rejection import Rejected, TemporaryFailure

KEPT_HOSTS = 64
"""Maximum number of hosts to which connections are kept open."""


class Policy(threading.local):
    """Restrictions on the connections of a client. Each thread makes one request at a time, with its own deadline."""

    def __init__(self, config: HttpConfig) -> None:
        self.allow_private = config.allow_private_hosts
        self.connect_timeout_s = config.connect_timeout_s
        self.read_timeout_s = config.read_timeout_s
        self.deadline = float("inf")
        """Deadline of this thread's request, in the time of `time.monotonic`."""
        self.target = "/"
        """Path and query of this thread's request, as they are sent."""

    def limit(self, timeout_s: float) -> float:
        """Return `timeout_s`, or the seconds until the deadline if these are fewer. Raises TimeoutError after it."""
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise TimeoutError("the deadline has passed")
        return min(timeout_s, remaining_s)


class _Socket(socket.socket):
    """A socket that observes the deadline; the timeout of a plain socket starts again with every byte it receives."""

    policy: Policy | None = None

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        if self.policy is not None:
            self.settimeout(self.policy.limit(self.policy.read_timeout_s))
        return super().recv_into(*arguments, **options)


class _TlsSocket(ssl.SSLSocket):
    """A TLS socket that observes the deadline."""

    policy: Policy | None = None

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        if self.policy is not None:
            self.settimeout(self.policy.limit(self.policy.read_timeout_s))
        return super().recv_into(*arguments, **options)


def _connect(connection: HTTPConnection, policy: Policy) -> socket.socket:
    """Connect to the first address of the connection's host that accepts.

    Raises Rejected as `resolve` does, and TemporaryFailure if no address accepts in time.
    """
    # _dns_host keeps a final dot of the name, which matters to the name service.
    host, port = connection._dns_host.strip("[]"), connection.port or connection.default_port
    cause = "the host has no address"
    try:
        addresses = resolve(host, port, policy.allow_private, policy.limit(policy.connect_timeout_s))
        for family, address in addresses:
            sock = _Socket(family, socket.SOCK_STREAM)
            try:
                for option in connection.socket_options or ():
                    sock.setsockopt(*option)
                sock.settimeout(policy.limit(policy.connect_timeout_s))
                sock.connect(address)
            except OSError as error:
                sock.close()
                cause = error.strerror or str(error) or type(error).__name__
            else:
                sock.policy = policy
                return sock
    except TimeoutError as error:
        cause = str(error)
    raise TemporaryFailure(f"cannot connect to {host}: {cause}")


class _HttpConnection(HTTPConnection):
    response_class = TolerantResponse

    def __init__(self, *arguments: Any, policy: Policy, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._policy = policy

    def _new_conn(self) -> socket.socket:
        return _connect(self, self._policy)

    def putrequest(self, method: str, url: str, *arguments: Any, **options: Any) -> None:
        """Send the target of the policy: urllib3 has changed the percent signs of `url`."""
        super().putrequest(method, self._policy.target, *arguments, **options)


class _HttpsConnection(_HttpConnection, HTTPSConnection):
    """A connection over TLS."""

    def connect(self) -> None:
        """Connect, and turn errors of the TLS handshake into Rejected or TemporaryFailure."""
        try:
            super().connect()
        except ssl.SSLCertVerificationError as error:
            raise Rejected("tls_error", f"{self.host}: {error.verify_message}") from error
        except (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError) as error:
            raise TemporaryFailure(f"{self.host} closed the connection during the TLS handshake") from error
        except ssl.SSLError as error:
            raise Rejected("tls_error", f"{self.host}: {error.reason or 'the TLS handshake failed'}") from error
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
    """Return a TLS context with the certificates in `ca_bundle`, which are read only once per process.

    Without it, urllib3 would read them for every connection.
    """
    context = create_urllib3_context()
    context.load_verify_locations(ca_bundle)
    context.sslsocket_class = _TlsSocket
    return context


class CheckedAdapter(requests.adapters.HTTPAdapter):
    """Sends prepared requests over connections that follow `policy`; several threads may use it at once.

    Certificates are verified with the file that the environment variable REQUESTS_CA_BUNDLE names, or else with the
    certificates that come with requests.
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
        """Do nothing: the TLS context has the certificates and requires verification."""
