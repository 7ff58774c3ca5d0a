"""HTTP server on loopback for tests of downloads, with and without TLS."""

from __future__ import annotations

import datetime
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec


class Handler(BaseHTTPRequestHandler):
    """Request handler that calls the page of the site for the first part of the path."""

    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        """Record the request and answer it."""
        with self.site.lock:
            self.site.seen.append(Seen(self.path, dict(self.headers.items()), time.monotonic()))
            self.site.running += 1
            self.site.most_at_once = max(self.site.most_at_once, self.site.running)
        try:
            answer = self.site.pages.get("/" + self.path.split("/")[1].partition("?")[0])
            if answer is None:
                self.reply(404, b"nothing here")
            else:
                answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with self.site.lock:
                self.site.running -= 1

    def reply(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        """Send a complete response."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self, data: bytes, pause_s: float = 0.03) -> None:
        """Send `data` byte by byte, with a pause of `pause_s` seconds after each byte."""
        for i in range(len(data)):
            self.wfile.write(data[i : i + 1])
            self.wfile.flush()
            time.sleep(pause_s)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Suppress the log."""


@dataclass(frozen=True)
class Seen:
    """A request that the server received."""

    path: str
    headers: dict[str, str]
    at: float


@dataclass
class Site:
    """State of the server: its pages, and the requests that it received."""

    pages: dict[str, Callable[[Handler], None]] = field(default_factory=dict)
    """Functions that answer requests, by the first part of the path, such as ``/photo``."""
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    names: list[str | None] = field(default_factory=list)
    """Server names (SNI) of the TLS handshakes."""
    running: int = 0
    """Number of requests that are being answered."""
    most_at_once: int = 0
    """Maximum of `running` so far."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str = "", host: str = "127.0.0.1") -> str:
        """Return the URL of `path` on this server."""
        return f"http://{host}:{self.port}{path}"

    def hits(self) -> Counter[str]:
        """Return the number of requests by path."""
        return Counter(seen.path for seen in self.seen)


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Context with a server on a free port of 127.0.0.1."""
    site = Site()

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            """Ignore clients that close their connection, which tests do."""

    server = Server(("127.0.0.1", 0), type("SiteHandler", (Handler,), {"site": site}))
    if tls is not None:
        tls.set_servername_callback(lambda _socket, name, _context: site.names.append(name))
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=True)
    site.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


def tls_files(folder: Path, *names: str) -> tuple[Path, ssl.SSLContext]:
    """Return the certificate file of a new authority, and the TLS context of a server that it certifies for `names`."""
    authority_key, server_key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test authority")])
    now = datetime.datetime.now(datetime.UTC)

    def certificate(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return builder.sign(authority_key, hashes.SHA256())

    root = certificate(authority, authority_key, x509.BasicConstraints(ca=True, path_length=None))
    general = [x509.IPAddress(ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names]
    leaf = certificate(x509.Name([]), server_key, x509.SubjectAlternativeName(general))
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(root.public_bytes(pem))
    (folder / "server.pem").write_bytes(
        server_key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + leaf.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return folder / "authority.pem", context
