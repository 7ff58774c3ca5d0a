"""Bytes of any origin to an upright square, and back to the image file that the shards hold.

A crawl is hostile input: whatever Pillow does with it, the outcome is an image or a Rejected. Only the decoded image
is as large as a file makes it; what follows takes a strip of it at a time.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from pipeline.config import ImageFormat, IngestConfig
from pipeline.ingest.rejection import Rejected

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

UNSAFE_FORMATS = frozenset(
    {
        "EPS",  # a PostScript program, which Pillow hands to Ghostscript
        "IPTC",  # a container; opens its content in any format, EPS included
        "BUFR", "GRIB", "HDF5", "WMF",  # decoded by whatever another library or the system has registered
        "MPEG",  # recognised but never decoded
    }
)  # fmt: skip
"""Formats that Pillow knows and that are not read."""

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""

STRIP_PIXELS = 1 << 21
"""Pixels that are converted at once."""

MAX_JPEG_SCANS = 200
"""Each is a pass over the whole image, however few bytes it takes; encoders write about ten."""

PIECE_BYTES = 1 << 20
"""Of a JPEG file that are searched for scans at once."""

PREFIX_BYTES = 16
"""Pillow's plugins recognise their formats by this many first bytes."""


_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""Of those with a length behind them, and the end of the image; inside a scan, no other bytes look like it."""


@dataclass(frozen=True)
class DecodedImage:
    """A photograph, cropped to a square."""

    pixels: Pixels
    """uint8, image_size x image_size x 3 (RGB) or x 1 (grey), upright."""
    format: str
    """Name of the file's format, such as ``JPEG``."""
    width: int
    """Of the file in px, upright, before cropping."""
    height: int
    """Of the file in px, upright, before cropping."""


def decode_square(data: bytes, config: IngestConfig) -> DecodedImage:
    """Decode the file content `data` (the first frame of an animation) to a square of `config.image_size` px.

    The EXIF orientation is applied, transparency becomes white, the short side is resized to `image_size` with
    antialiasing and the rest of the long side is cropped off at both ends. Grey values are those of the RGB image
    by ITU-R 601; a grey image keeps its own.

    Raises:
        Rejected: empty, video, not_an_image, too_many_pixels (before decoding), too_small, truncated or corrupt.
        MemoryError: the machine has too little; it says nothing about the file.
    """
    if not data:
        raise Rejected("empty", "0 bytes")
    try:
        with _pixel_limit(config.max_pixels), Image.open(io.BytesIO(data), formats=_formats()) as image:
            width, height = image.size
            _check_sides(width, height, config)
            if image.format in {"JPEG", "MPO"}:
                _check_scans(data)
            # JPEG decodes at 1/2, 1/4 or 1/8 faster; half more than the wanted size is enough to resample from.
            enough = 3 * config.image_size // 2
            drafted = image.draft(None, (enough, enough))
            image.load()
            orientation = _orientation(image)
            # The last column and row of such an image stand for less of the file: its middle is not that of the file.
            middle = _middle((width, height), width / drafted[1][2]) if drafted else _middle(image.size)
            square = _square(image, middle, config)
            file_format = image.format or "unknown"
    except (Rejected, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Rejected("too_many_pixels", f"more than {config.max_pixels} pixels") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:  # plugins fail in every way on hostile bytes: SyntaxError, struct.error, …
        raise _undecodable(data, error) from error
    if orientation in ORIENTATIONS:
        square = square.transpose(ORIENTATIONS[orientation])
    if orientation in {5, 6, 7, 8}:
        width, height = height, width
    return DecodedImage(np.atleast_3d(np.array(square)), file_format, width, height)


def square_of(pixels: Pixels, file_format: str, config: IngestConfig) -> DecodedImage:
    """The image `pixels` (uint8, height x width x 1 or x 3) of an array of `file_format`, made what `config` asks for.

    A square of the right size and number of channels is not changed.

    Raises Rejected: too_small or too_many_pixels.
    """
    height, width, _ = pixels.shape
    if height * width > config.max_pixels:
        raise Rejected("too_many_pixels", f"more than {config.max_pixels} pixels")
    _check_sides(width, height, config)
    square = _square(_from_array(pixels), _middle((width, height)), config)
    return DecodedImage(np.atleast_3d(np.array(square)), file_format, width, height)


def encode(pixels: Pixels, image_format: ImageFormat, jpeg_quality: int) -> bytes:
    """`pixels` (uint8, height x width x 1 or x 3) as a file; the same pixels give the same bytes.

    JPEG has no chroma subsampling; PNG is lossless.
    """
    buffer = io.BytesIO()
    if image_format == "png":
        _from_array(pixels).save(buffer, "PNG")
    else:
        _from_array(pixels).save(buffer, "JPEG", quality=jpeg_quality, subsampling="4:4:4")
    return buffer.getvalue()


def _from_array(pixels: Pixels) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def _check_sides(width: int, height: int, config: IngestConfig) -> None:
    if min(width, height) < config.smallest_side:
        raise Rejected("too_small", f"{width} x {height} px, the short side needs {config.smallest_side}")


def _check_scans(jpeg: bytes) -> None:
    """Reject a `jpeg` of so few bytes a scan that decoding it would take hours."""
    octets = np.frombuffer(jpeg, np.uint8)
    found = 0
    for start in range(0, len(octets), PIECE_BYTES):  # in half the time of bytes.count, and in little memory
        piece = octets[start : start + PIECE_BYTES + 1]
        found += int(np.count_nonzero((piece[:-1] == 0xFF) & (piece[1:] == 0xDA)))
    if found <= MAX_JPEG_SCANS:  # those in thumbnails and behind the image included
        return
    at = scans = 0
    while (marker := _JPEG_MARKER.search(jpeg, at)) is not None and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        at = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    if scans > MAX_JPEG_SCANS:
        raise Rejected("corrupt", f"{scans} scans, at most {MAX_JPEG_SCANS} are read")


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in UNSAFE_FORMATS)


@contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    """Pillow's own check for decompression bombs, at our limit and as an exception; its other warnings are muted."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of a loaded image, 1 where there is none. (TIFF files become upright as they load.)"""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a broken EXIF block does not make a bad photograph
        return 1


def _middle(size: tuple[int, int], scale: float = 1.0) -> tuple[float, float, float, float]:
    """The middle square of a file of `size` px: left, top, right, bottom, in px of an image `scale` times smaller."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left / scale, top / scale, (left + side) / scale, (top + side) / scale


def _square(image: Image.Image, middle: tuple[float, float, float, float], config: IngestConfig) -> Image.Image:
    """The square `middle` of a loaded image, of the size and colour mode of `config`.

    Large images are averaged to between two and four times the size first, which is fast and leaves the resampling
    nothing to miss.
    """
    size = config.image_size
    left, top = int(middle[0]), int(middle[1])
    right, bottom = math.ceil(middle[2]), math.ceil(middle[3])
    factor = max(1, (right - left) // (2 * size))
    if factor == 1 and image.mode in {"RGB", "L"} and not image.has_transparency_data:
        square = image.resize((size, size), Image.Resampling.BICUBIC, middle)
        return square.convert("L" if config.color_mode == "grayscale" else "RGB")
    levels = _levels(image) if image.mode[0] in "IF" else None
    reduced = Image.new("RGB", (-(-(right - left) // factor), -(-(bottom - top) // factor)))
    for y, strip in _strips(image, (left, top, right, bottom), factor):
        reduced.paste(_to_rgb(strip, levels).reduce(factor), (0, y // factor))
    x0, y0, x1, y1 = middle
    whole = ((x0 - left) / factor, (y0 - top) / factor, (x1 - left) / factor, (y1 - top) / factor)
    square = reduced.resize((size, size), Image.Resampling.BICUBIC, whole)
    return square.convert("L") if config.color_mode == "grayscale" else square


def _strips(image: Image.Image, box: tuple[int, int, int, int], multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """`box` of `image` from top to bottom: where each strip starts in it, a `multiple` of rows, and the strip."""
    left, top, right, bottom = box
    rows = max(1, STRIP_PIXELS // (right - left) // multiple) * multiple
    for y in range(top, bottom, rows):
        yield y - top, image.crop((left, y, right, min(y + rows, bottom)))


def _to_rgb(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    """`image` in RGB on white; `levels` are the black and white of deep grey values."""
    if levels is not None:
        black, white = levels
        from_black = np.clip(np.nan_to_num(np.asarray(image).astype(np.float64)), black, white) - black
        grey = np.rint(from_black * (255.0 / ((white - black) or 1.0)))
        return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode == "LAB":
        converted = ImageCms.applyTransform(image, _lab_to_rgb())
        assert converted is not None
        return converted
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba).convert("RGB")


@cache
def _lab_to_rgb() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")


def _levels(image: Image.Image) -> tuple[float, float]:
    """The values of a deep grey image that are black and white.

    16-bit images use their whole range. 32-bit images do not say what white is: it is the first of 1 (floats
    only), 255 and 65535 that no value of the whole image exceeds, and black is 0; images with values beyond those,
    or below 0, go from their darkest to their lightest. Values that are no finite numbers do not count.
    """
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    darkest, lightest = np.inf, -np.inf
    for _, strip in _strips(image, (0, 0, *image.size)):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            darkest, lightest = min(darkest, float(finite.min())), max(lightest, float(finite.max()))
    if darkest > lightest:
        return 0.0, 0.0
    usual_whites = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    white = next((w for w in usual_whites if darkest >= 0 and lightest <= w), None)
    return (0.0, white) if white is not None else (darkest, lightest)


def _unidentified(data: bytes) -> Rejected:
    if _is_video(data):
        return Rejected("video", "the file holds a video")
    for name in _formats():
        accepts = Image.OPEN[name][1]
        try:
            recognised = accepts is not None and accepts(data[:PREFIX_BYTES])
        except Exception:  # a prefix that is too short
            recognised = False
        if recognised:
            return Rejected("corrupt", f"starts as {name}, with an unreadable header")
    return Rejected("not_an_image", "no image format that is read")


def _undecodable(data: bytes, error: Exception) -> Rejected:
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    message = str(error).lower()
    ended_early = isinstance(error, EOFError) or any(sign in message for sign in ("truncated", "end of file", "eof"))
    if ended_early or _webp_is_short(data):
        return Rejected("truncated", detail)
    return Rejected("corrupt", detail)


def _webp_is_short(data: bytes) -> bool:
    """Whether a WebP file holds fewer bytes than its header says: its decoder does not tell."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")


def _is_video(data: bytes) -> bool:
    if data[4:8] == b"ftyp":  # MP4 and QuickTime; the same container holds AVIF and HEIC images
        return data[8:12] not in {b"avif", b"avis", b"heic", b"heix", b"heim", b"heis", b"mif1", b"msf1"}
    return (
        data.startswith(
            (
                b"\x1a\x45\xdf\xa3",  # Matroska, WebM
                b"\x00\x00\x01\xba",  # MPEG program stream
                b"\x00\x00\x01\xb3",  # MPEG video
                b"\x30\x26\xb2\x75",  # Windows Media
                b"FLV\x01",
            )
        )
        or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")
    )
