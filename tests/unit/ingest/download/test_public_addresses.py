from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from pipeline.ingest.download.public_addresses import is_public, resolve
from pipeline.ingest.rejection import Rejected, TemporaryFailure


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::1"]
)
def test_hosts_of_the_internet_are_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.8.8.8", "169.254.169.254",
        "172.16.0.1", "192.168.1.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
        "255.255.255.255", "168.63.129.16", "::", "::1", "fe80::1", "fe80::1%2", "fc00::1",
        "fd00:ec2::254", "fec0::1", "ff02::1", "ff0e::1", "2001:db8::1", "2001::1", "100::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::808:808",
        "2002:7f00:1::1", "2002:a9fe:a9fe::1", "4000::1",
    ],
)  # fmt: skip
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(address)


def answering(*addresses: str) -> Any:
    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return getaddrinfo


def test_every_address_of_a_name_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", answering("8.8.8.8", "10.0.0.1"))
    with pytest.raises(Rejected, match=r"private_address.*a\.test resolves to 10\.0\.0\.1"):
        resolve("a.test", 80, allow_private=False, timeout_s=5)
    assert len(resolve("a.test", 80, allow_private=True, timeout_s=5)) == 2


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "0177.0.0.1", "localhost", "0"])
def test_other_spellings_of_an_address_lead_nowhere_else(host: str) -> None:
    with pytest.raises(Rejected, match="private_address"):
        resolve(host, 80, allow_private=False, timeout_s=5)


@pytest.mark.parametrize(
    ("code", "permanent"), [(socket.EAI_NONAME, True), (socket.EAI_AGAIN, False), (socket.EAI_FAIL, False)]
)
def test_a_name_that_is_unknown_and_one_that_was_not_found_out(
    code: int, permanent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(code, "words")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(Rejected if permanent else TemporaryFailure, match=r"a\.test: words"):
        resolve("a.test", 80, allow_private=False, timeout_s=5)


def test_a_name_server_that_is_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(5))
    with pytest.raises(TemporaryFailure, match=r"not resolved within 0\.1 s"):
        resolve("a.test", 80, allow_private=False, timeout_s=0.1)
    over.set()


@pytest.mark.parametrize("host", ["a" * 70 + ".test", "a..test"])
def test_what_is_no_name_is_a_bad_url(host: str) -> None:
    with pytest.raises(Rejected, match="bad_url"):
        resolve(host, 80, allow_private=False, timeout_s=5)
