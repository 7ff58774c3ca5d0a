"""The formats of image files: those that are decoded, and those that are only recognised, so that they can be named.

Only formats in which photographs come are decoded. Decoders of other formats are slow, hardly tested, or decode one
format inside another; a crawl could use them to occupy a CPU for hours.
"""

from __future__ import annotations

import re
from functools import cache

from PIL import Image, TiffImagePlugin

from pipeline.ingest.rejection import Rejected

ACCEPTED = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")
"""Formats that are decoded, by Pillow's names; HEIF, too, if the package pi-heif is installed. MPO, several pictures in
one file, begins like JPEG and is opened by its decoder."""

HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"mif2"})
"""Brands of HEIF files; mif1 may also be the brand of an AVIF file, which Pillow recognises itself."""

HEIF_REMEDY = "HEIF, which needs the package pi-heif: install visual-trends[heif]"

SIGNATURES: tuple[tuple[str, re.Pattern[bytes]], ...] = tuple(
    (name, re.compile(pattern, re.DOTALL))
    for name, pattern in {
        "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
        "Canon raw": rb"(II\*\0|MM\0\*).{4}CR|....ftypcrx |II\x1a\0\0\0HEAPCCDR",
        "Fujifilm raw": rb"FUJIFILMCCD-RAW",
        "Olympus raw": rb"IIR[OS]|MMOR",
        "Panasonic raw": rb"IIU\0",
        "Sigma raw": rb"FOVb",
        "Minolta raw": rb"\0MRM",
        "JPEG XR": rb"II\xbc\x01",
        "Photoshop": rb"8BPS",
        "GIMP": rb"gimp xcf",
        "OpenEXR": rb"\x76\x2f\x31\x01",
        "Radiance HDR": rb"#\?(RADIANCE|RGBE)",
        "FITS": rb"SIMPLE  =",
        "BLP": rb"BLP[12]",
        "QOI": rb"qoif",
        "DDS": rb"DDS ",
        "PPM": rb"P[1-7fF]\s",
        "icon": rb"\0\0[\x01\x02]\0",
        "ICNS": rb"icns",
        "PCX": rb"\n[\x00-\x05]\x01[\x01\x02\x04\x08]",
        "SGI": rb"\x01\xda[\x00\x01][\x01\x02]",
        "Sun raster": rb"\x59\xa6\x6a\x95",
        "BPG": rb"BPG\xfb",
        "FLIF": rb"FLIF",
        "MNG": rb"\x8a(MNG|JNG)\r\n",
        "DjVu": rb"AT&TFORM",
        "ILBM": rb"FORM....(ILBM|PBM )",
        "DICOM": rb".{128}DICM",
        "PDF": rb"%PDF-",
        "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6",
        "Windows metafile": rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF",
    }.items()
)
"""Formats that are not decoded, by the first bytes of their files."""

_VIDEO = re.compile(
    rb"\x1a\x45\xdf\xa3"  # Matroska, WebM
    rb"|\0\0\x01[\xba\xb3]"  # MPEG program stream, MPEG video
    rb"|\x30\x26\xb2\x75"  # Windows Media
    rb"|FLV\x01"
    rb"|RIFF....AVI ",
    re.DOTALL,
)
_STILL_BRANDS = frozenset({b"avif", b"avis", b"crx "}) | HEIF_BRANDS

SUB_IFDS, NEW_SUBFILE_TYPE, DNG_VERSION, COMPRESSION, PHOTOMETRIC = 330, 254, 50706, 259, 262
"""Tags of TIFF files by which camera raw is recognised."""

PHOTOMETRIC_OF_RAW = frozenset({32803, 34892})
"""Values of PHOTOMETRIC for the pixels of a sensor: a colour filter array, and linear raw."""


@cache
def accepted_formats() -> tuple[str, ...]:
    """Return the formats that are decoded, by Pillow's names."""
    Image.init()
    try:
        import pi_heif
    except ImportError:
        return ACCEPTED
    pi_heif.options.DECODE_THREADS = 1  # each task has one CPU
    pi_heif.register_heif_opener()
    return (*ACCEPTED, "HEIF")


def is_video(data: bytes) -> bool:
    """Return whether a file begins like a video."""
    if data[4:8] == b"ftyp":  # MP4 and QuickTime; AVIF and HEIF images use the same container
        return data[8:12] not in _STILL_BRANDS
    return _VIDEO.match(data) is not None


def refuse_unsupported(data: bytes) -> None:
    """Raise Rejected (unsupported_format) if a file, of which `data` is the beginning, has a known other format.

    HEIF is refused with the remedy if its decoder is not installed.
    """
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS and "HEIF" not in accepted_formats():
        if b"avif" not in data[8:64]:
            raise Rejected("unsupported_format", HEIF_REMEDY)
        return
    for name, signature in SIGNATURES:
        if signature.match(data):
            raise Rejected("unsupported_format", f"{name}; photographs are read in {', '.join(accepted_formats())}")


def refuse_raw(image: Image.Image) -> None:
    """Raise Rejected if a TIFF file is camera raw, of which Pillow would decode the thumbnail."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    is_thumbnail = bool(tags.get(NEW_SUBFILE_TYPE, 0) & 1) or tags.get(COMPRESSION) == 6
    if DNG_VERSION in tags or tags.get(PHOTOMETRIC) in PHOTOMETRIC_OF_RAW or (SUB_IFDS in tags and is_thumbnail):
        raise Rejected("unsupported_format", "camera raw; convert it to JPEG first")


def refuse_run_lengths(image: Image.Image) -> None:
    """Raise Rejected if a BMP file is compressed by run lengths, which Pillow decodes in Python, slowly."""
    if image.format == "BMP" and image.info.get("compression") in {1, 2}:
        raise Rejected("unsupported_format", "BMP with run lengths")
