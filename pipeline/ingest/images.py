"""Decodes image files of any origin to upright squares, and encodes the squares as the image files of the shards.

A crawl is hostile input: the outcome of decoding is always an image or a Rejected, for any exception of Pillow. Only
the decoded image takes memory in proportion to its size; it is then converted strip by strip.
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

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from pipeline.config import ImageFormat, IngestConfig
from pipeline.ingest.rejection import Rejected
from pipeline.records import Pixels

UNSAFE_FORMATS = frozenset(
    {
        "EPS",  # a PostScript program, which Pillow passes to Ghostscript
        "IPTC",  # a container that opens its content in any format, including EPS
        "BUFR", "GRIB", "HDF5", "WMF",  # decoded by handlers of other libraries or of the system
        "MPEG",  # recognised, but never decoded
    }
)  # fmt: skip
"""Formats that Pillow supports and that are not accepted."""

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Operation that turns an image upright, by its EXIF orientation."""

STRIP_PIXELS = 1 << 21
"""Maximum number of pixels that are converted at once."""

MAX_JPEG_SCANS = 200
"""Maximum number of scans of a JPEG file. Each scan is a pass over the whole image, however few bytes it has; encoders
write about ten."""

PIECE_BYTES = 1 << 20
"""Number of bytes of a JPEG file that are searched for scans at once."""

PREFIX_BYTES = 16
"""Number of first bytes of a file by which Pillow's plugins recognise their formats."""

_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)
"""A marker that is followed by a length, or the end of the image; no bytes inside a scan look like one."""


@dataclass(frozen=True)
class DecodedImage:
    """An image that was decoded and cropped to a square."""

    pixels: Pixels
    """Pixels of the upright square: uint8, image_size x image_size x 3 (RGB) or x 1 (grey)."""
    format: str
    """Name of the format of the file, such as ``JPEG``."""
    width: int
    """Width in px of the upright image before cropping."""
    height: int
    """Height in px of the upright image before cropping."""


def decode_square(data: bytes, config: IngestConfig) -> DecodedImage:
    """Decode the file content `data` to a square of `config.image_size` px; of an animation, the first frame counts.

    The EXIF orientation is applied, transparency becomes white, the short side is resized to `image_size` with
    antialiasing, and the long side is cropped equally at both ends. Grey values are computed from RGB by ITU-R 601;
    a grey image keeps its values.

    Raises:
        Rejected: empty, video, not_an_image, too_many_pixels (before decoding), too_small, truncated or corrupt.
        MemoryError: this machine has too little memory; the file may be sound.
    """
    if not data:
        raise Rejected("empty", "the file has 0 bytes")
    try:
        with _pixel_limit(config.max_pixels), Image.open(io.BytesIO(data), formats=_accepted_formats()) as image:
            width, height = image.size
            _check_sides(width, height, config)
            if image.format in {"JPEG", "MPO"}:
                _check_scans(data)
            # JPEG decodes faster at 1/2, 1/4 or 1/8 of its size; 1.5 times the target size is enough to resample from.
            enough = 3 * config.image_size // 2
            drafted = image.draft(None, (enough, enough))
            image.load()
            orientation = _orientation(image)
            # The last column and row of such a reduced image cover fewer pixels of the file than the others do, so its
            # centre square is computed from the size of the file.
            box = _centre_square((width, height), width / drafted[1][2]) if drafted else _centre_square(image.size)
            square = _square(image, box, config)
            file_format = image.format or "unknown"
    except (Rejected, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise Rejected("too_many_pixels", f"more than {config.max_pixels} pixels (ingest.max_pixels)") from error
    except UnidentifiedImageError as error:
        raise _unidentified(data) from error
    except Exception as error:  # on hostile bytes, plugins raise anything: SyntaxError, struct.error, …
        raise _undecodable(data, error) from error
    if orientation in ORIENTATIONS:
        square = square.transpose(ORIENTATIONS[orientation])
    if orientation in {5, 6, 7, 8}:
        width, height = height, width
    return DecodedImage(np.atleast_3d(np.array(square)), file_format, width, height)


def square_of(pixels: Pixels, file_format: str, config: IngestConfig) -> DecodedImage:
    """Convert the image `pixels` (uint8, height x width x 1 or x 3) of an array file to a square as in `config`.

    A square that has the right size and number of channels already is not changed. `file_format` is the format of the
    array file.

    Raises Rejected: too_small or too_many_pixels.
    """
    height, width, _ = pixels.shape
    if height * width > config.max_pixels:
        raise Rejected("too_many_pixels", f"more than {config.max_pixels} pixels (ingest.max_pixels)")
    _check_sides(width, height, config)
    square = _square(_from_array(pixels), _centre_square((width, height)), config)
    return DecodedImage(np.atleast_3d(np.array(square)), file_format, width, height)


def encode(pixels: Pixels, image_format: ImageFormat, jpeg_quality: int) -> bytes:
    """Encode `pixels` (uint8, height x width x 1 or x 3) as an image file; equal pixels give equal bytes.

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
        raise Rejected(
            "too_small", f"{width} x {height} px; the short side must have at least {config.smallest_side} px"
        )


def _check_scans(jpeg: bytes) -> None:
    """Reject a JPEG file with more than MAX_JPEG_SCANS scans, which could take hours to decode."""
    values = np.frombuffer(jpeg, np.uint8)
    count = 0
    for start in range(0, len(values), PIECE_BYTES):  # twice as fast as bytes.count, and takes little memory
        piece = values[start : start + PIECE_BYTES + 1]
        count += int(np.count_nonzero((piece[:-1] == 0xFF) & (piece[1:] == 0xDA)))
    if count <= MAX_JPEG_SCANS:  # this includes scans in thumbnails and after the end of the image
        return
    position = scans = 0
    while (marker := _JPEG_MARKER.search(jpeg, position)) is not None and marker[0] != b"\xff\xd9":
        scans += marker[0] == b"\xff\xda"
        position = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    if scans > MAX_JPEG_SCANS:
        raise Rejected("corrupt", f"the JPEG file has {scans} scans; at most {MAX_JPEG_SCANS} are accepted")


@cache
def _accepted_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name not in UNSAFE_FORMATS)


@contextmanager
def _pixel_limit(max_pixels: int) -> Iterator[None]:
    """Make Pillow raise for images of more than `max_pixels` (its check for decompression bombs), and mute warnings."""
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
    """EXIF orientation of a loaded image; 1 if it has none. Pillow turns TIFF files upright while loading them."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a photograph with a broken EXIF block is still usable
        return 1


def _centre_square(size: tuple[int, int], scale: float = 1.0) -> tuple[float, float, float, float]:
    """Centre square of a file of `size` px: left, top, right and bottom, in px of the image reduced `scale` times."""
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left / scale, top / scale, (left + side) / scale, (top + side) / scale


def _square(image: Image.Image, box: tuple[float, float, float, float], config: IngestConfig) -> Image.Image:
    """Resize the square `box` of a loaded image to the size and colour mode of `config`.

    Large images are first averaged to between two and four times the target size. This is fast, and no pixel is lost
    to the resampling that follows.
    """
    size = config.image_size
    left, top = int(box[0]), int(box[1])
    right, bottom = math.ceil(box[2]), math.ceil(box[3])
    factor = max(1, (right - left) // (2 * size))
    if factor == 1 and image.mode in {"RGB", "L"} and not image.has_transparency_data:
        square = image.resize((size, size), Image.Resampling.BICUBIC, box)
        return square.convert("L" if config.color_mode == "grayscale" else "RGB")
    levels = _levels(image) if image.mode[0] in "IF" else None
    reduced = Image.new("RGB", (-(-(right - left) // factor), -(-(bottom - top) // factor)))
    for y, strip in _strips(image, (left, top, right, bottom), factor):
        reduced.paste(_to_rgb(strip, levels).reduce(factor), (0, y // factor))
    x0, y0, x1, y1 = box
    reduced_box = ((x0 - left) / factor, (y0 - top) / factor, (x1 - left) / factor, (y1 - top) / factor)
    square = reduced.resize((size, size), Image.Resampling.BICUBIC, reduced_box)
    return square.convert("L") if config.color_mode == "grayscale" else square


def _strips(image: Image.Image, box: tuple[int, int, int, int], multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """Yield the strips of `box` from top to bottom: the first row in `box`, divisible by `multiple`, and the strip."""
    left, top, right, bottom = box
    rows = max(1, STRIP_PIXELS // (right - left) // multiple) * multiple
    for y in range(top, bottom, rows):
        yield y - top, image.crop((left, y, right, min(y + rows, bottom)))


def _to_rgb(image: Image.Image, levels: tuple[float, float] | None) -> Image.Image:
    """Convert `image` to RGB on white; `levels` are the black and white of a grey image of more than 8 bits."""
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
    """Values of black and white in a grey image of more than 8 bits.

    16-bit images use their whole range. 32-bit images do not define white. It is taken to be the first of 1 (floats
    only), 255 and 65535 that no value of the whole image exceeds, and black is 0. If an image has larger values, or
    values below 0, black and white are its darkest and lightest values. Values that are not finite are ignored.
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
        return Rejected("video", "the file contains a video")
    for name in _accepted_formats():
        accepts = Image.OPEN[name][1]
        try:
            recognised = accepts is not None and accepts(data[:PREFIX_BYTES])
        except Exception:  # the prefix is too short for this plugin
            recognised = False
        if recognised:
            return Rejected("corrupt", f"begins like a {name} file, but its header cannot be read")
    return Rejected("not_an_image", "the content is in no supported image format")


def _undecodable(data: bytes, error: Exception) -> Rejected:
    detail = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    message = str(error).lower()
    ended_early = isinstance(error, EOFError) or any(words in message for words in ("truncated", "end of file", "eof"))
    if ended_early or _webp_is_short(data):
        return Rejected("truncated", detail)
    return Rejected("corrupt", detail)


def _webp_is_short(data: bytes) -> bool:
    """Whether a WebP file has fewer bytes than its header states; the decoder does not report this."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")


def _is_video(data: bytes) -> bool:
    if data[4:8] == b"ftyp":  # MP4 and QuickTime; AVIF and HEIC images use the same container
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
