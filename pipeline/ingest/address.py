"""Addresses of members of tars: ``<tar>#member=<name>&offset=<bytes>&size=<bytes>[&gzip]``.

Where the member lies is part of the address, so that whoever opens it reads its bytes and no others, and never has to
believe its name: nothing is extracted to a path that a tar chose.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes

_MEMBER = re.compile(
    r"(?P<archive>.+)#member=(?P<name>[^#&]*)&offset=(?P<offset>[0-9]{1,18})&size=(?P<size>[0-9]{1,18})(?P<gzip>&gzip)?",
    re.DOTALL,
)


@dataclass(frozen=True)
class MemberAddress:
    """A regular file inside a tar."""

    archive: str
    """Address of the tar: an absolute path, ``file://`` or ``s3://``."""
    name: str
    """As the tar has it; for people only."""
    offset: int
    """Of its first byte in the tar, decompressed."""
    size: int
    """In bytes."""
    gzip: bool = False
    """Whether the tar is compressed: its members are reached by decompressing what lies before them."""

    @property
    def uri(self) -> str:
        name = quote(self.name.encode("utf-8", "surrogateescape"), safe="/")
        return f"{self.archive}#member={name}&offset={self.offset}&size={self.size}{'&gzip' if self.gzip else ''}"


def parse_member(uri: str) -> MemberAddress | None:
    """The member that `uri` names; None where `uri` is another address."""
    if (found := _MEMBER.fullmatch(uri)) is None:
        return None
    name = unquote_to_bytes(found["name"]).decode("utf-8", "surrogateescape")
    return MemberAddress(found["archive"], name, int(found["offset"]), int(found["size"]), found["gzip"] is not None)
