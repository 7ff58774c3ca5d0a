"""Resolves host names, and checks that their addresses belong to the public internet.

A crawl selects the hosts that this cluster connects to. The target of a connection is determined by the addresses that
a host name resolves to, so these addresses are checked. The caller must connect to the checked addresses: if the name
were resolved a second time, a hostile name server could return another address.
"""

from __future__ import annotations

import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from urllib3.util.connection import allowed_gai_family

from pipeline.ingest.rejection import Rejected, TemporaryFailure

NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Network of IPv6 addresses that end in an IPv4 address, which a gateway connects to."""

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""Network of the IPv6 addresses of single hosts on the public internet."""

SPECIAL_IPV4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24",
        "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
        "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
        "168.63.129.16/32",  # serves metadata to the machines of a cloud provider
    )
)  # fmt: skip
"""Networks of IANA's registry of special-purpose IPv4 addresses, and of multicast: none holds a host with images."""

SPECIAL_IPV6 = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
)
"""Networks of IANA's registry of special-purpose IPv6 addresses within GLOBAL_UNICAST."""

NO_SUCH_NAME = frozenset({socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME), socket.EAI_FAMILY})
"""Error codes of `socket.getaddrinfo` for a name that does not exist."""

_lookups = ThreadPoolExecutor(64, "name-lookup")
"""Threads for lookups, which have no timeout: the caller stops waiting, and the lookup ends later in its thread."""

SocketAddress = tuple[int, Any]
"""Address family, and the address in the form that `socket.connect` takes for it."""


def is_public(address: str) -> bool:
    """Whether the IP `address` is a single host of the public internet.

    Of an IPv6 address that contains an IPv4 address, the IPv4 address is checked.

    Raises ValueError if `address` is not an IP address.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        embedded = _embedded_ipv4(ip)
        if embedded is None:
            return ip in GLOBAL_UNICAST and not any(ip in network for network in SPECIAL_IPV6)
        ip = embedded
    return not any(ip in network for network in SPECIAL_IPV4)


def _embedded_ipv4(ip: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that `ip` contains as a mapped, 6to4 or NAT64 address; None if it contains none."""
    if ip.ipv4_mapped is not None:
        return ip.ipv4_mapped
    if ip.sixtofour is not None:
        return ip.sixtofour
    return ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None


def resolve(host: str, port: int, allow_private: bool, timeout_s: float) -> list[SocketAddress]:
    """Resolve `host`; return all of its addresses, with `port`, in the order in which to try them.

    Raises:
        Rejected: bad_url, unknown_host, or private_address (an address is not public, and `allow_private` is not set).
        TemporaryFailure: the name service failed, or did not answer within `timeout_s`.
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
        raise Rejected("bad_url", f"{host}: not a valid host name") from error
    if not allow_private:
        for *_, address in found:
            if not is_public(str(address[0])):
                raise Rejected(
                    "private_address", f"{host} resolves to {address[0]}, which is not a public internet address"
                )
    return [(family, address) for family, _, _, _, address in found]
