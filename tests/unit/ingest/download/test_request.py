"""A single request to a real server on the loopback interface."""

from __future__ import annotations

import errno
import gzip
import socket
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import HttpConfig
from pipeline.errors import StorageError
from pipeline.ingest.download import connections, request
from pipeline.ingest.download.request import HttpClient, Redirect, opt_out, retry_after_s
from pipeline.ingest.download.urls import host_of
from pipeline.ingest.rejection import Rejected, TemporaryFailure
from tests.support.fuzzing import fuzzed
from tests.support.http_server import Handler, Site, serving, tls_files

BODY = b"\xff\xd8 some bytes"


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        site.pages["/ok"] = lambda handler: handler.reply(200, BODY)
        yield site


def get(url: str, seconds: float = 5.0, max_bytes: int = 1 << 20, **options: Any) -> bytes | Redirect:
    config = HttpConfig(**{"allow_private_hosts": True, **options})
    client = HttpClient(config, max_bytes)
    try:
        answer = client.get(url, seconds)
        if isinstance(answer, Redirect):
            return answer
        with answer:
            return answer.read()
    finally:
        client.close()


def names(monkeypatch: pytest.MonkeyPatch, **addresses: list[str]) -> list[str]:
    """Fake the name service: successive lookups of a name get its `addresses` in turn. Return the list of lookups."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        answers = addresses[host.partition(".")[0]]
        address = answers.pop(0) if len(answers) > 1 else answers[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def test_the_body_comes_back_and_the_request_says_who_asks(site: Site) -> None:
    assert get(site.url("/ok/a%20b?c=d"), user_agent="tester/2 (+mail)") == BODY
    seen = site.seen[0]
    assert seen.path == "/ok/a%20b?c=d"
    assert seen.headers["User-Agent"] == "tester/2 (+mail)"
    assert seen.headers["Accept-Encoding"] == "identity"
    assert seen.headers["Host"] == f"127.0.0.1:{site.port}"
    assert "Authorization" not in seen.headers
    assert "Cookie" not in seen.headers


def test_connections_are_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    connect = connections._connect

    def counted(*arguments: Any) -> socket.socket:
        opened.append(arguments)
        return connect(*arguments)

    monkeypatch.setattr(connections, "_connect", counted)
    client = HttpClient(HttpConfig(allow_private_hosts=True), 1000)
    for path in ["/ok", "/ok", "/none", "/ok"]:
        try:
            answer = client.get(site.url(path), 5)
            assert not isinstance(answer, Redirect)
            answer.close()
        except Rejected as rejected:
            assert rejected.reason == "http_error"
    client.close()
    assert len(opened) == 1


@pytest.mark.parametrize("status", [204, 206, 304, 400, 401, 403, 404, 410, 451])
def test_a_refusal_is_permanent_with_any_body(site: Site, status: int) -> None:
    site.pages["/no"] = lambda handler: handler.reply(status, b"" if status in {204, 304} else BODY)
    with pytest.raises(Rejected, match=rf"http_error.*HTTP {status} "):
        get(site.url("/no"))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_a_server_in_trouble_may_recover(site: Site, status: int) -> None:
    site.pages["/busy"] = lambda handler: handler.reply(status, b"later", {"Retry-After": "7"})
    with pytest.raises(TemporaryFailure, match=f"HTTP {status}") as caught:
        get(site.url("/busy"))
    assert caught.value.retry_after_s == 7
    assert caught.value.host_is_busy == (status == 429)


@pytest.mark.parametrize(
    ("location", "leads_to"),
    [
        ("/b?c", "http://127.0.0.1:{port}/b?c"),
        ("//other.test/x", "http://other.test/x"),
        ("https://other.test/\xc3\xa9", "https://other.test/é"),
        ("https://other.test/caf\xe9%20a?b=\xfc", "https://other.test/caf%E9%20a?b=%FC"),
        ("file:///etc/passwd", "file:///etc/passwd"),
    ],
)
def test_a_redirect_is_told_and_not_followed(site: Site, location: str, leads_to: str) -> None:
    site.pages["/moved"] = lambda handler: handler.reply(302, b"", {"Location": location})
    assert get(site.url("/moved")) == Redirect(leads_to.format(port=site.port))


def test_a_redirect_without_a_place_is_an_error(site: Site) -> None:
    site.pages["/moved"] = lambda handler: handler.reply(302)
    with pytest.raises(Rejected, match="http_error"):
        get(site.url("/moved"))


def test_a_redirect_with_an_endless_body_is_not_read(site: Site) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(302)
        handler.send_header("Location", "/ok")
        handler.end_headers()
        while True:
            handler.wfile.write(bytes(1 << 16))

    site.pages["/moved"] = endless
    started = time.monotonic()
    assert get(site.url("/moved")) == Redirect(site.url("/ok"))
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "ftp://a.test/", "gopher://a.test", "http://", "http:///x", "http://a.test:port/", "x", "", "http://[::1/",
     "http://a.test/" + "a" * 9000, "http://\x00.test/"],
)  # fmt: skip
def test_what_cannot_be_asked_for_is_a_bad_url(url: str) -> None:
    with pytest.raises(Rejected) as caught:
        get(url)
    assert caught.value.reason == "bad_url"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254"]
)
def test_nothing_outside_the_internet_is_connected_to(site: Site, host: str) -> None:
    with pytest.raises(Rejected) as caught:
        get(site.url("/ok", host), allow_private_hosts=False)
    assert caught.value.reason == "private_address"
    assert not site.seen


def test_a_name_is_resolved_once_and_that_address_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, rebinds=["93.184.215.14", "127.0.0.1"])
    reached = []

    def connect(self: socket.socket, address: Any) -> None:
        reached.append(address)
        raise OSError(errno.ECONNREFUSED, "Connection refused")

    monkeypatch.setattr(connections._Socket, "connect", connect, raising=False)
    with pytest.raises(TemporaryFailure, match=r"cannot connect to rebinds\.test: Connection refused"):
        get("http://rebinds.test:81/", allow_private_hosts=False)
    assert (asked, reached) == (["rebinds.test"], [("93.184.215.14", 81)])
    with pytest.raises(Rejected, match="private_address"):
        get("http://rebinds.test:81/", allow_private_hosts=False)


def test_a_kept_connection_asks_no_name_server_again(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = names(monkeypatch, photos=["127.0.0.1", "192.0.2.1"])
    client = HttpClient(HttpConfig(allow_private_hosts=True), 1000)
    for _ in range(3):
        answer = client.get(site.url("/ok", "photos.test"), 5)
        assert not isinstance(answer, Redirect)
        answer.close()
    client.close()
    assert asked == ["photos.test"]
    assert {seen.headers["Host"] for seen in site.seen} == {f"photos.test:{site.port}"}


def test_tls_verifies_the_name_at_the_checked_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority, context = tls_files(tmp_path, "photos.test")
    names(monkeypatch, photos=["127.0.0.1"], wrong=["127.0.0.1"])
    with serving(context) as site:
        site.pages["/ok"] = lambda handler: handler.reply(200, BODY)

        def slow(handler: Handler) -> None:
            handler.send_response(200)
            handler.end_headers()
            handler.drip(bytes(1000))

        site.pages["/slow"] = slow
        url = f"https://photos.test:{site.port}/ok"
        with pytest.raises(Rejected, match=r"tls_error.*photos\.test: .*issuer"):
            get(url)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority))
        assert get(url) == BODY
        assert site.names[-1] == "photos.test"
        assert site.seen[-1].headers["Host"] == f"photos.test:{site.port}"
        with pytest.raises(Rejected, match=r"tls_error.*[Hh]ostname mismatch"):
            get(url.replace("photos", "wrong"))
        started = time.monotonic()
        with pytest.raises(TemporaryFailure, match="no response in time"):
            get(url.replace("/ok", "/slow"), seconds=0.3)
        assert time.monotonic() - started < 1.5


def test_a_server_without_tls_behind_an_https_address_is_a_permanent_failure(site: Site) -> None:
    with pytest.raises(Rejected) as caught:
        get(f"https://127.0.0.1:{site.port}/ok")
    assert caught.value.reason == "tls_error"


def test_proxies_of_the_environment_are_not_used(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    assert get(site.url("/ok")) == BODY


def test_nobody_there_may_pass() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(TemporaryFailure, match=r"cannot connect to 127\.0\.0\.1: Connection refused"):
            get(f"http://127.0.0.1:{unused.getsockname()[1]}/")


def slow_status(handler: Handler) -> None:
    handler.drip(b"HTTP/1.1 200 OK\r\n" + b"X-Fill: 1\r\n" * 100)


def slow_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.drip(bytes(1000))


def slow_chunks(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.drip(b"1\r\nx\r\n" * 1000)


@pytest.mark.parametrize("page", [slow_status, slow_body, slow_chunks])
def test_a_server_that_drips_meets_the_deadline(site: Site, page: Any) -> None:
    site.pages["/slow"] = page
    started = time.monotonic()
    with pytest.raises(TemporaryFailure, match="no response in time"):
        get(site.url("/slow"), seconds=0.3)
    assert 0.25 < time.monotonic() - started < 1.5


def test_a_silent_server_meets_the_read_timeout(site: Site) -> None:
    site.pages["/silent"] = lambda handler: time.sleep(1.5)
    started = time.monotonic()
    with pytest.raises(TemporaryFailure, match="no response in time"):
        get(site.url("/silent"), read_timeout_s=0.2)
    assert time.monotonic() - started < 1


def test_a_server_that_breaks_off_may_pass(site: Site) -> None:
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(bytes(10))
        handler.close_connection = True

    def nothing(handler: Handler) -> None:
        handler.close_connection = True

    def noise(handler: Handler) -> None:
        handler.wfile.write(b"this is no HTTP\r\n\r\n")
        handler.close_connection = True

    site.pages |= {"/cut": cut, "/nothing": nothing, "/noise": noise}
    for path, words in {"/cut": "ended early", "/nothing": "no valid response", "/noise": "no valid response"}.items():
        with pytest.raises(TemporaryFailure, match=words) as caught:
            get(site.url(path))
        assert " at 0x" not in caught.value.detail


def test_more_bytes_than_allowed_are_not_read(site: Site) -> None:
    sent = 0

    def endless(handler: Handler) -> None:
        nonlocal sent
        handler.send_response(200)
        handler.end_headers()
        while True:
            sent += handler.wfile.write(bytes(1 << 16))

    def announced(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(10**12))
        handler.end_headers()

    site.pages |= {"/endless": endless, "/announced": announced}
    with pytest.raises(Rejected, match=r"too_many_bytes.*more than 1048576 bytes"):
        get(site.url("/endless"))
    assert sent < 20 << 20
    with pytest.raises(Rejected, match=r"too_many_bytes.*1000000000000 bytes"):
        get(site.url("/announced"))
    site.pages["/exact"] = lambda handler: handler.reply(200, bytes(1 << 20))
    assert get(site.url("/exact")) == bytes(1 << 20)


def test_a_bomb_of_an_encoding_is_defused(site: Site) -> None:
    encodings = {"gzip": gzip.compress(bytes(100 << 20)), "deflate": zlib.compress(bytes(100 << 20))}
    tracemalloc.start()
    for name, bomb in encodings.items():
        site.pages["/bomb"] = lambda handler, name=name, bomb=bomb: handler.reply(200, bomb, {"Content-Encoding": name})  # type: ignore[misc]
        with pytest.raises(Rejected, match="too_many_bytes"):
            get(site.url("/bomb"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_an_encoding_that_was_not_asked_for_is_undone(site: Site) -> None:
    site.pages["/gzip"] = lambda handler: handler.reply(200, gzip.compress(BODY), {"Content-Encoding": "gzip"})
    site.pages["/broken"] = lambda handler: handler.reply(200, b"no gzip", {"Content-Encoding": "gzip"})
    assert get(site.url("/gzip")) == BODY
    with pytest.raises(Rejected, match="corrupt"):
        get(site.url("/broken"))


def test_a_large_body_waits_on_disk_and_a_full_disk_is_no_fault_of_the_server(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request, "IN_MEMORY_BYTES", 1000)
    site.pages["/large"] = lambda handler: handler.reply(200, bytes(200_000))
    assert get(site.url("/large")) == bytes(200_000)

    class Full:
        def write(self, _: bytes) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def close(self) -> None:
            pass

    monkeypatch.setattr("pipeline.ingest.download.request.tempfile.SpooledTemporaryFile", lambda _: Full())
    with pytest.raises(StorageError, match=r"cannot write to .*: No space left on device"):
        get(site.url("/large"))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], None),
        (["noai"], "noai"),
        (["nofollow", "NoImageAI"], "noimageai"),
        (["nofollow, noindex"], "noindex"),
        (["none"], "none"),
        (["noimageindex"], "noimageindex"),
        (["all, nofollow, noarchive, max-snippet: -1"], None),
        (["otherbot: noindex, noai"], None),
        (["otherbot: nofollow", "noai"], "noai"),
        (["visual-trends: noai"], "noai"),
        (["Visual-Trends: nofollow, noindex"], "noindex"),
        (["otherbot: noai, visual-trends: noai"], "noai"),
        (["*: noai"], "noai"),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"], "noai"),
        ([" noai ,"], "noai"),
    ],
)
def test_who_opts_out(values: list[str], found: str | None) -> None:
    assert opt_out(values, "visual-trends/0.1 (+mail)") == found


def test_an_opt_out_is_honoured_by_default(site: Site) -> None:
    def page(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("X-Robots-Tag", "nofollow")
        handler.send_header("X-Robots-Tag", "noai, noimageai")
        handler.send_header("Content-Length", str(len(BODY)))
        handler.end_headers()
        handler.wfile.write(BODY)

    site.pages["/mine"] = page
    with pytest.raises(Rejected, match=r"robots_opt_out.*X-Robots-Tag: noai"):
        get(site.url("/mine"))
    assert get(site.url("/mine"), honour_robots=False) == BODY


def test_when_to_come_back() -> None:
    assert retry_after_s("120") == 120
    assert retry_after_s(" 0 ") == 0
    assert retry_after_s("9" * 400) == 999_999_999
    for nothing in (None, "", "soon", "-1", "1.5", "²"):
        assert retry_after_s(nothing) is None
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    assert 95 < (retry_after_s(later) or 0) <= 100
    assert retry_after_s("Fri, 31 Dec 1999 23:59:59 GMT") == 0


def test_credentials_go_to_their_host_and_nowhere_else(site: Site) -> None:
    url = site.url("/ok").replace("//", "//user:secret@")
    assert get(url) == BODY
    assert site.seen[0].headers["Authorization"].startswith("Basic ")
    with pytest.raises(Rejected) as rejected:
        get(url.replace("/ok", "/none"))
    with pytest.raises(TemporaryFailure) as failed:
        get("http://user:secret@127.0.0.1:1/")
    for error in (rejected.value, failed.value):
        assert "secret" not in str(error)


@pytest.mark.fuzz
@fuzzed(300)
@given(
    st.one_of(
        st.text(),
        st.text().map("http://".__add__),
        st.from_regex(r"https?://([a-z0-9.*%@:\[\]-]{0,20})(:[0-9]{0,6})?[/?#]?.{0,20}", fullmatch=True),
    )
)
def test_no_url_is_more_than_rejected(url: str) -> None:
    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(Rejected) as caught:
            get(url, allow_private_hosts=False)
    assert caught.value.reason in {"bad_url", "unknown_host"}


@given(st.lists(st.text()), st.text())
def test_no_header_is_more_than_unknown(values: list[str], user_agent: str) -> None:
    assert opt_out(values, user_agent) in {None, *request.OPT_OUTS}
    assert all((retry_after_s(value) or 0) >= 0 for value in values)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("/a%7Eb%2fc", "/a%7Eb%2fc"),
        ("/100%.jpg", "/100%.jpg"),
        ("/a?sig=%2B%3D&x=y%", "/a?sig=%2B%3D&x=y%"),
        ("/ü/a b?é#part", "/%C3%BC/a%20b?%C3%A9"),
        ("/a/../b/./c", "/b/c"),
        ("/%2e%2E/b", "/%2e%2E/b"),
        ("//a//b", "//a//b"),
        ("?q", "/?q"),
        ("", "/"),
        ("/a;b=(c)!*'$&,~[1]@:", "/a;b=(c)!*'$&,~[1]@:"),
        ("/a\x00\r\nb\\c", "/a%00%0D%0Ab%5Cc"),
    ],
)
def test_the_target_of_a_request_is_sent_as_it_came(site: Site, path: str, sent: str) -> None:
    for name in [
        "/a%7Eb%2fc",
        "/100%.jpg",
        "/a",
        "/b",
        "/",
        "/%2e%2E",
        "/%C3%BC",
        "/a;b=(c)!*'$&,~[1]@:",
        "/a%00%0D%0Ab%5Cc",
    ]:
        site.pages[name] = lambda handler: handler.reply(200, BODY)
    assert get(site.url(path)) == BODY
    assert site.seen[0].path == sent.replace("//a//b", "/a//b")  # the test server itself drops the first slash


@pytest.mark.parametrize(
    "template", ["http://{a}\\@{b}/x", "http://{a}#@{b}/x", "http://{a}?@{b}/x", "http://{b}@{a}/x"]
)
def test_limits_and_connection_agree_on_the_host_of_a_url(site: Site, template: str) -> None:
    url = template.format(a=f"127.0.0.1:{site.port}", b="silenced.test")
    assert host_of(url) == "127.0.0.1"
    with pytest.raises(Rejected, match="http_error"):
        get(url)
    assert len(site.seen) == 1


def test_a_host_has_one_name_in_all_spellings() -> None:
    spellings = [
        "http://BÜCHER.test./a",
        "https://bücher.test:8443/b",
        "//xn--bcher-kva.test/",
        "http://xn--bcher-kva.test",
    ]
    assert [host_of(url) for url in spellings] == ["xn--bcher-kva.test"] * 2 + ["", "xn--bcher-kva.test"]


def raw_site(answer: bytes) -> str:
    """Return the URL of a server that sends `answer` to one request and closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, suppress(OSError):
            connection, _ = listener.accept()
            with connection:
                connection.settimeout(5)
                while b"\r\n\r\n" not in connection.recv(65536):
                    pass
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}/a"


GOOD = b"Content-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\n" + GOOD,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\n" + GOOD,
        b"HTTP/1.1 200 OK\r\nnot a header\r\n" + GOOD,
        b"HTTP/1.1 200 OK\r\nX: 1\r\n folded\r\nno header\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
        b"HTTP/1.1 200\r\n" + GOOD,
        b"HTTP/1.0 200 OK\r\n\r\nabc",
    ],
)
def test_answers_that_bend_the_rules_are_understood(answer: bytes) -> None:
    assert get(raw_site(answer)) == b"abc"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nabc",
        b"HTTP/1.1 404 Gone\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nabc",
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
        b"HTTP/9.9 200 OK\r\n" + GOOD,
        b"HTTP/1.1 999999999999 OK\r\n" + GOOD,
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nabc",
        b"\x00\xff\xfe" * 100,
        b"",
    ],
)
def test_whatever_a_server_sends_ends_as_a_row(answer: bytes) -> None:
    with pytest.raises((Rejected, TemporaryFailure)):
        get(raw_site(answer))


PIECES = st.sampled_from(
    [
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 302 Found\r\n", b"HTTP/1.1 103 x\r\n", b"HTTP/1.1 ", b"-1", b"0", b"\r\n",
        b"\n", b"Content-Length: ", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"\x1f\x8b\x08",
        b"Content-Encoding: gzip\r\n", b"Content-Encoding: gzip, br, zstd\r\n", b"Location: ", b"http://[::1", b"//",
        b"\xff\xfe", b"Retry-After: 9e9\r\n", b"X-Robots-Tag: a:b:noai,\r\n", b"ffffffffffffffffffff", b":",
        b"3\r\nabc\r\n", b"Connection: close\r\n",
    ]
)  # fmt: skip


@pytest.mark.fuzz
@fuzzed(300)
@given(st.lists(st.one_of(PIECES, st.binary(max_size=20)), max_size=12), st.booleans())
def test_no_answer_is_more_than_a_row(pieces: list[bytes], has_status: bool) -> None:
    answer = (b"HTTP/1.1 200 OK\r\n" if has_status else b"") + b"".join(pieces)
    with suppress(Rejected, TemporaryFailure):
        assert isinstance(get(raw_site(answer), read_timeout_s=2), bytes | Redirect)


def test_robots_txt_is_honoured_where_the_user_asks(site: Site) -> None:
    rules = b"User-agent: *\nDisallow: /private/\n\nUser-agent: tester\nDisallow: /ok/for-others\n"
    site.pages["/robots.txt"] = lambda handler: handler.reply(301, b"", {"Location": "/rules"})
    site.pages["/rules"] = lambda handler: handler.reply(200, rules)
    site.pages["/private"] = lambda handler: handler.reply(200, BODY)
    assert get(site.url("/private/a")) == BODY
    with pytest.raises(Rejected, match=r"robots_opt_out.*/robots\.txt of 127"):
        get(site.url("/private/a"), robots_txt=True)
    assert get(site.url("/ok"), robots_txt=True) == BODY
    assert get(site.url("/private/a"), robots_txt=True, user_agent="tester/2") == BODY
    with pytest.raises(Rejected, match="robots_opt_out"):
        get(site.url("/ok/for-others"), robots_txt=True, user_agent="tester/2")
    assert site.hits() == {"/private/a": 2, "/robots.txt": 1, "/rules": 1, "/ok": 1}


def test_a_host_without_robots_txt_allows_all_and_one_in_trouble_nothing(site: Site) -> None:
    assert get(site.url("/ok"), robots_txt=True) == BODY
    with serving() as busy:
        busy.pages["/robots.txt"] = lambda handler: handler.reply(503)
        with pytest.raises(TemporaryFailure, match="HTTP 503"):
            get(busy.url("/ok"), robots_txt=True)


@pytest.mark.parametrize("status", [400, 401, 403, 410])
@pytest.mark.parametrize(
    "text",
    [
        b"URL signature expired", b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>",
        b"<Code>ExpiredToken</Code>", b"Signature not valid in the specified time frame: Start [..]",
    ],
)  # fmt: skip
def test_an_address_whose_signature_has_expired_is_gone_for_good(site: Site, status: int, text: bytes) -> None:
    site.pages["/signed"] = lambda handler: handler.reply(status, text)
    with pytest.raises(Rejected, match=rf"expired.*HTTP {status} .*the signature of the address has expired"):
        get(site.url("/signed"))


def test_the_time_in_an_address_says_that_it_has_expired(site: Site) -> None:
    site.pages["/signed"] = lambda handler: handler.reply(403, b"Bad URL hash")
    with pytest.raises(Rejected, match="expired"):
        get(site.url("/signed?stp=x&oe=5F5E1000&_nc_sid=1"))
    with pytest.raises(Rejected, match="http_error"):
        get(site.url("/signed?stp=x&oe=FFFFFFF0"))


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (403, b"Forbidden"),
        (403, b"<html>your session expired</html>"),
        (404, b"expired"),
        (403, b""),
        (451, b"expired"),
    ],
)
def test_other_refusals_are_not_about_signatures(site: Site, status: int, body: bytes) -> None:
    site.pages["/no"] = lambda handler: handler.reply(status, body)
    with pytest.raises(Rejected, match="http_error"):
        get(site.url("/no"))
    with pytest.raises(Rejected, match="http_error"):
        get(raw_site(b"HTTP/1.1 403 Forbidden\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n"))
