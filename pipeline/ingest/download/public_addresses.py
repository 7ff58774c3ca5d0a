"""Which network addresses belong to the public internet, and the names that lead to them.

A crawl names the hosts that this cluster connects to. Only what a name resolves to says where a connection goes, so
that is what is checked, and the caller connects to exactly what was checked: asking twice would let a hostile name
server answer differently the second time.
"""

from __future__ import annotations

import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from urllib3.util.connection import allowed_gai_family

from pipeline.ingest.rejection import Rejected, TemporaryFailure

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Its addresses end in an IPv4 address, to which a gateway of the network leads."""

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")

PLATFORM_SERVICES = frozenset({ipaddress.ip_address("168.63.129.16")})
"""A public address at which a large cloud serves metadata to its own machines, and only to them."""

NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME), socket.EAI_FAMILY})

_lookups = ThreadPoolExecutor(64, "name-lookup")
"""Lookups know no timeout; whoever asked may leave, the lookup ends by itself."""

SocketAddress = tuple[int, Any]
"""Address family, and what `socket.connect` takes in it."""


def is_public(address: str) -> bool:
    """Whether the IP `address` is a single host of the public internet, also by the IPv4 address inside an IPv6 one.

    Raises ValueError where `address` is none.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        inner = _inner_ipv4(ip)
        if inner is None:
            return ip in GLOBAL_UNICAST and ip.is_global
        ip = inner
    return ip.is_global and not ip.is_multicast and ip not in PLATFORM_SERVICES


def _inner_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 host that `ip` stands for: mapped, 6to4 or NAT64."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None


def resolve(host: str, port: int, allow_private: bool, timeout_s: float) -> list[SocketAddress]:
    """Where `host` and `port` lead: all of its addresses, in the order in which to try them.

    Raises:
        Rejected: bad_url, unknown_host, or private_address where any of the addresses is not public, unless allowed.
        TemporaryFailure: the name service does not answer, or not within `timeout_s`.
    """
    lookup = _lookups.submit(socket.getaddrinfo, host, port, allowed_gai_family(), socket.SOCK_STREAM)
    try:
        found = lookup.result(timeout_s)
    except TimeoutError as error:
        raise TemporaryFailure(f"the name {host} was not resolved within {timeout_s:.1f} s") from error
    except socket.gaierror as error:
        if error.errno in NO_SUCH_NAME:
            raise Rejected("unknown_host", f"{host}: {error.strerror}") from error
        raise TemporaryFailure(f"{host}: {error.strerror}") from error
    except UnicodeError as error:  # a label that is empty or too long
        raise Rejected("bad_url", f"{host}: no host name") from error
    if not allow_private:
        for *_, address in found:
            if not is_public(str(address[0])):
                raise Rejected("private_address", f"{host} is {address[0]}, outside the public internet")
    return [(family, address) for family, _, _, _, address in found]
