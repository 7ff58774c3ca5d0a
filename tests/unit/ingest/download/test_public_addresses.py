from __future__ import annotations

import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
        "2002:7f00:1::1", "2002:a9fe:a9fe::1", "4000::1", "192.0.0.192", "192.0.0.9", "192.88.99.1", "192.31.196.1",
        "3fff::1", "3fff:fff::1", "5f00::1", "2620:4f:8000::1", "2001:20::1", "2001:1ff::1", "100:0:0:1::1",
    ],
)  # fmt: skip
def test_everything_else_is_not(address: str) -> None:
    assert not is_public(address)


IANA = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
    "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
    "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4", "::1/128", "::/128", "64:ff9b:1::/48",
    "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20", "5f00::/16",
    "fc00::/7", "fe80::/10",
]  # fmt: skip
"""IANA's registries of special-purpose addresses; those that contain an IPv4 address are tested above."""


@pytest.mark.parametrize("network", IANA)
def test_no_network_of_special_purpose_is_public(network: str) -> None:
    special = ip_network(network)
    assert not is_public(str(special[0]))
    assert not is_public(str(special[-1]))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_nothing_is_public_that_the_standard_library_calls_private(address: IPv4Address | IPv6Address) -> None:
    if is_public(str(address)) and not isinstance(address, IPv6Address):
        assert address.is_global
    elif is_public(str(address)) and address not in ip_network("2002::/16"):
        assert address.is_global or address in ip_network("64:ff9b::/96") or address in ip_network("::ffff:0:0/96")


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
