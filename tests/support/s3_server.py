"""A real S3 server on loopback, for tests: import `s3_server`, `s3_endpoint` and `s3_bucket` as fixtures."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from pipeline.ingest.sources import s3

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}

Refusal = tuple[str, str]
"""HTTP status line and S3 error code, such as ``403 Forbidden`` and ``AccessDenied``."""


class S3Server:
    """S3 server that can be told to refuse requests."""

    def __init__(self) -> None:
        from moto.moto_server.threaded_moto_server import MotoRequestHandler
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, True, request_handler=MotoRequestHandler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.refuse: Callable[[str, str], Refusal | None] = lambda method, path: None
        """Function of the method and the path (with its query) that returns the refusal of a request, or None."""
        self.refuse_without_payer = False
        """Whether to refuse requests whose sender does not accept their costs, as a requester-pays bucket does."""
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()

    def _answer(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        refusal = self.refuse(environ["REQUEST_METHOD"], path)
        if self.refuse_without_payer and environ.get("HTTP_X_AMZ_REQUEST_PAYER") != "requester":
            refusal = "403 Forbidden", "AccessDenied"
        if refusal is None:
            answer: Iterable[bytes] = self._app(environ, start_response)
            return answer
        status, code = refusal
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>refused by the test</Message></Error>".encode()
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """The server, shared by all tests of the session."""
    server = S3Server()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def s3_endpoint(s3_server: S3Server) -> str:
    """Address of the server."""
    return s3_server.endpoint


@pytest.fixture
def s3_bucket(s3_server: S3Server, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of an empty bucket; the environment variables of boto3 point to the server."""
    import boto3

    for name, value in {"AWS_ENDPOINT_URL_S3": s3_endpoint, **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    s3._cached_client.cache_clear()
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    yield bucket
    s3_server.refuse = lambda method, path: None
    s3_server.refuse_without_payer = False
    s3._cached_client.cache_clear()
