"""Decodes image files of any origin to upright squares, and encodes the squares as the image files of the shards.

A crawl is hostile input: the outcome of decoding is always an image or a Rejected, for any exception of Pillow. Only
the decoded image takes memory in proportion to its size; it is then converted strip by strip.
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin, UnidentifiedImageError

from pipeline.config import ImageFormat, IngestConfig
from pipeline.ingest.image_formats import accepted_formats, is_video, refuse_raw, refuse_run_lengths, refuse_unsupported
from pipeline.ingest.image_repair import continued, without_metadata
from pipeline.ingest.rejection import Rejected
from pipeline.records import Pixels

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

MAX_SCAN_PIXELS = 2_000_000_000
"""Maximum number of scans of a JPEG file times its pixels. Each scan is a pass over the whole image, however few bytes
it has; encoders write about ten. The bound allows 20 scans of 100 million pixels; they take about two seconds."""

MAX_JPEG_MARKERS = 100_000
"""Maximum number of markers of a JPEG file with unusually many scans."""

PIECE_BYTES = 1 << 20
"""Number of bytes of a JPEG file that are searched for scans at once."""

PREFIX_BYTES = 16
"""Number of first bytes of a file by which Pillow's plugins recognise their formats."""

MAX_ICC_BYTES = 1 << 20
"""Maximum size of a colour profile in bytes; images with larger ones are not converted."""

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

    An RGB image with another colour profile than sRGB is converted to sRGB.

    A PNG whose metadata is broken, and a JPEG that lacks only its end marker, are decoded, too.

    Raises:
        Rejected: empty, video, unsupported_format, not_an_image, too_many_pixels (before decoding), too_small,
            truncated or corrupt.
        MemoryError: this machine has too little memory; the file may be sound.
    """
    if not data:
        raise Rejected("empty", "the file has 0 bytes")
    try:
        return _decode(data, config)
    except Rejected as rejected:
        if rejected.reason not in {"truncated", "corrupt"} or (repaired := _repaired(data, config)) is None:
            raise
        try:
            return _decode(repaired, config)
        except Rejected:
            raise rejected from None


def _repaired(data: bytes, config: IngestConfig) -> bytes | None:
    """Return `data` without broken metadata, or with a missing end marker; None if it lacks something else."""
    if (pair := continued(data)) is None:
        return without_metadata(data)
    try:
        first, second = (_pixel_digest(part, config) for part in pair)
    except Exception:
        return None
    return pair[0] if first == second else None


def _pixel_digest(data: bytes, config: IngestConfig) -> str:
    """Return a digest of all pixels of the image in `data`. Raises any exception of Pillow."""
    digest = hashlib.sha256()
    with _pixel_limit(config.max_pixels), Image.open(io.BytesIO(data), formats=accepted_formats()) as image:
        _check_time(image, data)
        for _, strip in _strips(image, (0, 0, *image.size)):
            digest.update(strip.tobytes())
    return digest.hexdigest()


def _decode(data: bytes, config: IngestConfig) -> DecodedImage:
    try:
        with _pixel_limit(config.max_pixels), Image.open(io.BytesIO(data), formats=accepted_formats()) as image:
            if image.format == "TIFF":
                refuse_unsupported(data)
                refuse_raw(image)
            refuse_run_lengths(image)
            width, height = image.size
            _check_sides(width, height, config)
            _check_time(image, data)
            # JPEG decodes faster at 1/2, 1/4 or 1/8 of its size; 1.5 times the target size is enough to resample from.
            enough = 3 * config.image_size // 2
            drafted = image.draft(None, (enough, enough))
            image.load()
            orientation = _orientation(image)
            # The last column and row of such a reduced image cover fewer pixels of the file than the others do, so its
            # centre square is computed from the size of the file.
            box = _centre_square((width, height), width / drafted[1][2]) if drafted else _centre_square(image.size)
            square = _in_srgb(_square(image, box, config), image)
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


def _check_time(image: Image.Image, data: bytes) -> None:
    """Raise Rejected if the opened `image`, whose file is `data`, has scans that would take minutes to decode."""
    pixels = image.width * image.height
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        if "jpeg" not in str(image.info.get("compression")):
            return
        tags = image.tag_v2  # each strip or tile is a JPEG of its own
        rows = min(int(tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height)), image.height)
        pixels = int(tags.get(322, image.width)) * int(tags.get(323, rows))
    elif image.format not in {"JPEG", "MPO"}:
        return
    allowed = MAX_SCAN_PIXELS // max(1, pixels)
    values = np.frombuffer(data, np.uint8)
    count = 0
    for start in range(0, len(values), PIECE_BYTES):  # twice as fast as bytes.count, and takes little memory
        piece = values[start : start + PIECE_BYTES + 1]
        count += int(np.count_nonzero((piece[:-1] == 0xFF) & (piece[1:] == 0xDA)))
    if count > allowed and (image.format == "TIFF" or _has_more_scans(data, allowed)):
        raise Rejected("corrupt", f"more than {allowed} scans of {pixels} pixels; they would take minutes to decode")


def _has_more_scans(jpeg: bytes, allowed: int) -> bool:
    """Return whether a JPEG has more than `allowed` scans, without those of thumbnails and after its end."""
    position = scans = 0
    for _ in range(MAX_JPEG_MARKERS):
        marker = _JPEG_MARKER.search(jpeg, position)
        if marker is None or marker[0] == b"\xff\xd9":
            return False
        scans += marker[0] == b"\xff\xda"
        if scans > allowed:
            return True
        position = marker.end() + int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big")
    return True


def _in_srgb(square: Image.Image, image: Image.Image) -> Image.Image:
    """Return `square`, which was made of `image`, converted from the colour profile of the file to sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode not in {"RGB", "RGBA"} or square.mode != "RGB" or not isinstance(profile, bytes):
        return square
    if not 128 <= len(profile) <= MAX_ICC_BYTES or (transform := _to_srgb(profile)) is None:
        return square
    try:
        return ImageCms.applyTransform(square, transform) or square
    except ImageCms.PyCMSError:
        return square


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return the transform of a colour profile to sRGB; None if it is sRGB, or broken."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != "RGB" or "sRGB" in ImageCms.getProfileDescription(source):
            return None
        return ImageCms.buildTransform(
            source, ImageCms.createProfile("sRGB"), "RGB", "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
        )
    except Exception:  # a photograph with a broken profile is still usable
        return None


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
    if is_video(data):
        return Rejected("video", "the file contains a video")
    try:
        refuse_unsupported(data)
    except Rejected as rejected:
        return rejected
    for name in accepted_formats():
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
