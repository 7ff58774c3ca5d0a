"""Malicious and broken image files, with the expected outcome of each."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

from tests.support.crawl_files import encoded, photograph, png_bomb

PNG_START = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(*chunks: bytes) -> bytes:
    """Return a valid PNG with `chunks` after its header."""
    whole = encoded(photograph(1), "PNG")
    header_end = len(PNG_START) + 25
    return whole[:header_end] + b"".join(chunks) + whole[header_end:]


def jpeg_of_size(width: int, height: int, image: Image.Image) -> bytes:
    """Return a JPEG of `image` whose header claims another size."""
    data = bytearray(encoded(image))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """Return an application segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_with(*segments: bytes) -> bytes:
    """Return a valid JPEG with `segments` at its start."""
    whole = encoded(photograph(1))
    return whole[:2] + b"".join(segments) + whole[2:]


def jpeg_of_scans(scans: int) -> bytes:
    """Return a progressive JPEG that repeats its last scan, of a few bytes, `scans` times."""
    whole = encoded(Image.new("L", (640, 640), 255), progressive=True)
    last = whole[whole.rindex(b"\xff\xda") : -2]
    return whole[:-2] + last * scans + whole[-2:]


def tags(count: int, size: int, first_tag: int = 40_000) -> bytes:
    """Return a TIFF directory of `count` tags, all of which point to the same `size` bytes."""
    directory = b"".join(struct.pack("<HHII", (first_tag + i) % 65_536, 7, size, 14 + 12 * count) for i in range(count))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", count) + directory + bytes(4) + bytes(size)


def exif(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """Return an EXIF block with one tag."""
    return b"Exif\0\0II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", tag, kind, count) + value + bytes(4)


def animation(file_format: str, frames: int) -> bytes:
    """Return an animation of `frames` frames, the first of which is photograph 1."""
    first = photograph(1)
    rest = [Image.new("RGB", first.size, (i % 256, i // 256, 0)) for i in range(frames - 1)]
    return encoded(first, file_format, save_all=True, append_images=rest, duration=20)


def zipped() -> bytes:
    """Return a ZIP archive with a path that leaves the folder of extraction."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../escape.txt", bytes(10**6))
    return buffer.getvalue()


def sixteen_bits(channels: int) -> bytes:
    """Return a PNG with 16 bits per channel: white with 3 channels, white and fully transparent with 4."""
    width = height = 48
    pixel = struct.pack(f">{channels}H", *([65_535] * 3 + [0])[:channels])
    rows = zlib.compress((b"\0" + pixel * width) * height)
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    return PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def cut_tiff_tag() -> bytes:
    """Return a TIFF whose tags are beyond the end of the file."""
    return b"II*\0" + struct.pack("<I", 2**31) + bytes(100)


BOMB = zlib.compress(bytes(64 * 2**20), 9)
"""64 MiB of zeros, compressed to 64 kB."""

PHOTOGRAPHS: dict[str, bytes] = {
    "a zip behind a JPEG": encoded(photograph(1)) + zipped(),
    "a script in a JPEG": jpeg_with(jpeg_segment(0xFE, b"*/=alert(1)/*<script>alert(1)</script><?php exit; ?>")),
    "a script behind a GIF": encoded(photograph(1), "GIF") + b"*/=1;alert(1)",
    "a page behind a PNG": encoded(photograph(1), "PNG") + b"<html><script>alert(1)</script>",
    "a broken ICC profile": jpeg_with(jpeg_segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff" * 500)),
    "half an ICC profile": jpeg_with(jpeg_segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(100))),
    "an ICC profile of numbers that are none": jpeg_with(jpeg_segment(0xE2, b"ICC_PROFILE\0\0\0")),
    "orientation 65,535": jpeg_with(jpeg_segment(0xE1, exif(0x0112, 3, 1, b"\xff\xff\0\0"))),
    "an orientation in words": jpeg_with(jpeg_segment(0xE1, exif(0x0112, 2, 4, b"up!\0"))),
    "an orientation of 4 GB": jpeg_with(jpeg_segment(0xE1, exif(0x0112, 3, 2**31, b"\x08\0\0\0"))),
    "another size in its EXIF": jpeg_with(jpeg_segment(0xE1, exif(0xA002, 4, 1, b"\xff\xff\xff\xff"))),
    "EXIF of tags that overlap": jpeg_with(
        *(jpeg_segment(0xE1, b"Exif\0\0" + tags(1000, 10**6)[i : i + 60_000]) for i in range(0, 10**6, 60_000))
    ),
    "a PNG with EXIF of tags that overlap": png_with(chunk(b"eXIf", tags(1000, 10**6))),
    "a compressed text of 64 MB": png_with(chunk(b"zTXt", b"Comment\0\0" + BOMB)),
    "an international text of 64 MB": png_with(chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB)),
    "200 compressed texts of 1 MB": png_with(
        *[chunk(b"zTXt", b"k%d\0\0" % i + zlib.compress(bytes(2**20))) for i in range(200)]
    ),
    "a PNG with a broken text": png_with(chunk(b"tEXt", b"Comment\0x")[:-4] + bytes(4)),
    "a GIF of 3,000 frames": animation("GIF", 3_000),
    "a WebP of 1,000 frames": animation("WEBP", 1_000),
    "a PNG of 1,000 frames": animation("PNG", 1_000),
}
"""Unusual files that are decoded to photograph 1."""

WHITE: dict[str, bytes] = {
    "16 bits a colour": sixteen_bits(3),
    "16 bits a colour and transparent": sixteen_bits(4),
    "much too wide": encoded(Image.new("L", (65_500, 48), 255)),
    "many scans": jpeg_of_scans(50),
}
"""Unusual files that are decoded to white images."""

REJECTED: dict[str, tuple[bytes, set[str]]] = {
    "GIF and script at once": (b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)", {"corrupt", "truncated", "too_many_pixels"}),
    "a page with a JPEG in it": (b"<html>" + encoded(photograph(1)), {"not_an_image"}),
    "a zip before a JPEG": (zipped() + encoded(photograph(1)), {"not_an_image"}),
    "65,535 px both ways": (jpeg_of_size(65_535, 65_535, photograph(1)), {"too_many_pixels"}),
    "65,535 px wide": (jpeg_of_size(65_535, 1_500, photograph(1)), {"corrupt"}),
    "65,535 px wide and 1 high": (jpeg_of_size(65_535, 1, photograph(1)), {"too_small"}),
    "a PNG of 2**31 px": (png_bomb(2**31 - 1, 2**31 - 1), {"too_many_pixels"}),
    "a directory of 65,535 tags": (tags(65_535, 10**6), {"corrupt", "truncated"}),
    "tags behind the end": (cut_tiff_tag(), {"corrupt", "truncated"}),
    "endless scans": (jpeg_of_scans(5_000), {"corrupt"}),
}  # fmt: skip
"""Rejected files, with the acceptable reasons."""

ICC_BOMB = png_with(chunk(b"iCCP", b"icc\0\0" + BOMB))
"""A PNG with a colour profile of 64 MiB: it may be ignored or rejected, but must not use that much memory."""


def every_format() -> dict[str, bytes]:
    """Return a valid file of every supported format that Pillow can write, by name."""
    photo = photograph(1, 64, 64)
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    files = {
        name: encoded(photo, name)
        for name in (
            "JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "JPEG2000", "AVIF",
        )
    }  # fmt: skip
    return files | {
        "progressive JPEG": encoded(photo, progressive=True),
        "JPEG of CMYK": encoded(photo.convert("CMYK")),
        "palette PNG": encoded(photo.quantize(64), "PNG"),
        "16-bit PNG": encoded(deep, "PNG"),
        "lossless WEBP": encoded(photo, "WEBP", lossless=True),
        "animated WEBP": animation("WEBP", 3),
        "animated GIF": animation("GIF", 3),
        "animated PNG": animation("PNG", 3),
        "LZW TIFF": encoded(photo, "TIFF", compression="tiff_lzw"),
        "deflated TIFF": encoded(photo, "TIFF", compression="tiff_adobe_deflate"),
        "JPEG TIFF": encoded(photo, "TIFF", compression="jpeg"),
        "float TIFF": encoded(photo.convert("F"), "TIFF"),
        "MPO": encoded(photo, "MPO", save_all=True, append_images=[photo]),
    }
