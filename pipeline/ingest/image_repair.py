"""Files that every viewer shows although a part that has no pixels is broken or missing."""

from __future__ import annotations

import re
from collections.abc import Iterator

PNG_START = b"\x89PNG\r\n\x1a\n"

PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})
"""Chunks of a PNG that its pixels need, and its orientation; the others hold texts, colour profiles, animations."""

END_OF_IMAGE = b"\xff\xd9"

PROBES = tuple(
    b"".join(noise * 64 + bytes([0xFF, 0xD0 + i % 8]) for i in range(first, first + 64))
    for noise, first in ((b"\x2f\x9d\x51\x6b\xe4\x83\x1a\xc7", 0), (b"\xd3\x15\x8e\x7a\x29\xb6\x44\x5c", 4))
)
"""Bytes with which two copies of a JPEG are continued: they differ in the pixels that the file itself lacks. A decoder
that waits for a restart marker finds different ones, of which it skips at most one."""

_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""A marker that is followed by a length, or the end of the image; no bytes inside a scan look like one."""


def without_metadata(png: bytes) -> bytes | None:
    """Return a PNG without the chunks that its pixels do not need; None if it is no PNG, or has no such chunks.

    Pillow refuses a whole image for a text that is too long, or for a broken colour profile.
    """
    if not png.startswith(PNG_START):
        return None
    kept, removed = [PNG_START], False
    for kind, chunk in _chunks(png):
        if kind in PNG_CHUNKS:
            kept.append(chunk)
        else:
            removed = True
    return b"".join(kept) if removed else None


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the kind of each chunk of a PNG, and the whole chunk."""
    position = len(PNG_START)
    while position + 8 <= len(png):
        end = position + 12 + int.from_bytes(png[position : position + 4], "big")
        yield png[position + 4 : position + 8], png[position:end]
        position = end


def continued(jpeg: bytes) -> tuple[bytes, bytes] | None:
    """Return two JPEG files that show the same image only if `jpeg` lacks nothing but its end marker.

    The two files continue the last scan with different bytes, which a decoder ignores if the scan is complete. None if
    `jpeg` has an end marker, or lacks scans.
    """
    if not jpeg.startswith(b"\xff\xd8") or not _has_all_scans(jpeg):
        return None
    body = jpeg.rstrip(b"\xff") if jpeg.endswith(b"\xff") else jpeg
    first, second = (body + probe + END_OF_IMAGE for probe in PROBES)
    return first, second


def _has_all_scans(jpeg: bytes) -> bool:
    """Return whether the scans of a JPEG without an end marker cover all coefficients to their last bit.

    A progressive JPEG that was cut between two scans shows all of the image, but not all of its detail.
    """
    position = components = 0
    covered: dict[int, set[int]] = {}
    progressive = False
    while (marker := _MARKER.search(jpeg, position)) is not None:
        kind = marker[0][1]
        if kind == 0xD9:
            return False
        length = int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
        segment = jpeg[marker.end() + 2 : marker.end() + length]
        if kind in {0xC0, 0xC1, 0xC2} and len(segment) >= 6:
            components, progressive = segment[5], kind == 0xC2
        elif kind == 0xDA and segment and len(segment) >= 2 * segment[0] + 4:
            count = segment[0]
            low, high, bits = segment[1 + 2 * count : 4 + 2 * count]
            for i in range(count):
                done = covered.setdefault(segment[1 + 2 * i], set())
                if bits & 15 == 0:
                    done.update(range(low, min(high, 63) + 1) if progressive else range(64))
        position = marker.end() + max(length, 1)
    return bool(components) and len(covered) == components and all(len(done) == 64 for done in covered.values())
