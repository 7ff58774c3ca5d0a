from __future__ import annotations

import base64
import io
import re
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, TiffImagePlugin

from pipeline.config import ColorMode, IngestConfig
from pipeline.ingest import image_formats
from pipeline.ingest.images import DecodedImage, decode_square, encode, square_of
from pipeline.ingest.rejection import Rejected
from pipeline.records import Pixels
from pipeline.shards import Sample
from tests.support.crawl_files import encoded, photograph, png_bomb
from tests.support.fuzzing import fuzzed

CONFIG = IngestConfig(image_size=16)


def reason(data: bytes, config: IngestConfig = CONFIG) -> str:
    with pytest.raises(Rejected) as caught:
        decode_square(data, config)
    assert caught.value.detail
    return caught.value.reason


def distance(pixels: Pixels, image: Image.Image) -> float:
    """Mean absolute difference in grey levels between `pixels` and the square that `image` should become."""
    expected = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.LANCZOS), np.float64)
    return float(np.abs(pixels - expected).mean())


@pytest.mark.parametrize(
    ("file_format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("JPEG2000", {}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_usual_formats_are_read(file_format: str, options: dict[str, object]) -> None:
    decoded = decode_square(encoded(photograph(), file_format, **options), CONFIG)
    assert decoded.pixels.shape == (16, 16, 3)
    assert decoded.pixels.dtype == np.uint8
    assert (decoded.format, decoded.width, decoded.height) == (file_format, 48, 48)
    assert distance(decoded.pixels, photograph()) < 5


@pytest.mark.parametrize(
    ("mode", "file_format", "tolerance"),
    [("RGBA", "PNG", 1), ("P", "PNG", 12), ("CMYK", "JPEG", 4), ("YCbCr", "TIFF", 3), ("LAB", "TIFF", 4)],
)
def test_colour_modes_keep_their_colours(mode: str, file_format: str, tolerance: float) -> None:
    photo = photograph()
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        converted = ImageCms.profileToProfile(photo, *profiles, outputMode="LAB")
        assert converted is not None
    else:
        converted = photo.quantize(256) if mode == "P" else photo.convert(mode)
    decoded = decode_square(encoded(converted, file_format), CONFIG)
    assert distance(decoded.pixels, photo) < tolerance


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes_become_grey(mode: str) -> None:
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 48).astype(np.uint8), (48, 1)))
    pixels = decode_square(encoded(ramp.convert(mode), "PNG"), CONFIG).pixels
    assert np.ptp(pixels, axis=2).max() == 0
    assert pixels[:, 0].mean() < 20
    assert pixels[:, -1].mean() > 235


@pytest.mark.parametrize(
    ("dtype", "white", "file_format"),
    [(np.uint16, 65535, "PNG"), (np.int32, 65535, "TIFF"), (np.int32, 255, "TIFF"), (np.int32, 10**9, "TIFF")]
    + [(np.float32, white, "TIFF") for white in (1.0, 255.0, 1e6)],
)
def test_deep_grey_images_are_scaled_and_not_clipped(dtype: type[np.generic], white: float, file_format: str) -> None:
    ramp = np.tile(np.linspace(0, white, 48), (48, 1)).astype(dtype)
    pixels = decode_square(encoded(Image.fromarray(ramp), file_format), CONFIG).pixels
    expected = np.linspace(255 / 32, 255 - 255 / 32, 16)
    assert np.abs(pixels.mean(axis=(0, 2)) - expected).max() < 8


def test_values_that_are_no_numbers_do_no_harm() -> None:
    strange = np.full((48, 48), np.nan, np.float32)
    assert decode_square(encoded(Image.fromarray(strange), "TIFF"), CONFIG).pixels.max() == 0
    for even in (-5.0, 1e9):
        strange[:] = even
        assert decode_square(encoded(Image.fromarray(strange), "TIFF"), CONFIG).pixels.max() == 0
    strange[:, :24], strange[:, 24:] = -np.inf, np.inf
    decode_square(encoded(Image.fromarray(strange), "TIFF"), CONFIG)


def test_the_white_of_a_deep_image_is_that_of_the_whole_image() -> None:
    wide = np.full((64, 256), 0.5, np.float32)
    wide[0, 0] = 255
    assert decode_square(encoded(Image.fromarray(wide), "TIFF"), CONFIG).pixels.max() <= 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "LAB", "I", "F", "I;16"])
def test_large_images_of_any_mode_come_out_as_small_ones_do(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.ingest.images.STRIP_PIXELS", 20_000)  # several strips
    small = photograph(4, 250, 170)
    if mode in {"I", "F", "I;16"}:
        values = np.asarray(small.convert("L"))
        dtype = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        small = Image.fromarray(values.astype(dtype) * dtype(257 if mode == "I;16" else 1))
    elif mode == "LAB":
        small = Image.merge("LAB", small.split())
    else:
        small = small.convert(mode)
    if mode in {"LA", "RGBA"}:
        small.putalpha(Image.linear_gradient("L").resize(small.size))
    options = {"transparency": bytes(range(0, 250))} if mode == "P" else {}
    pixels = []
    for image in (small, small.resize((1000, 680), Image.Resampling.NEAREST)):
        data = encoded(image, "TIFF" if mode in {"CMYK", "LAB", "I", "F"} else "PNG", **options)
        pixels.append(decode_square(data, CONFIG).pixels.astype(int))
    assert np.ptp(pixels[0]) > 50
    assert np.abs(pixels[0] - pixels[1]).mean() < 2


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["F", "P"])
def test_a_huge_image_takes_little_more_than_its_decoded_size(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "huge.tif"
    Image.new(mode, (9990, 9990), 1).save(path, compression="tiff_adobe_deflate")
    measure = (
        "import sys, pathlib; from pipeline.config import IngestConfig; from pipeline.ingest import images\n"
        "images.decode_square(pathlib.Path(sys.argv[1]).read_bytes(), IngestConfig())\n"
        "print(pathlib.Path('/proc/self/status').read_text())"
    )
    result = subprocess.run([sys.executable, "-c", measure, str(path)], check=True, capture_output=True, text=True)
    peak_kb = int(result.stdout.partition("VmHWM:")[2].split()[0])  # ru_maxrss would include the parent process
    assert peak_kb < ({"F": 381, "P": 96}[mode] + 200) * 1024


def test_a_lack_of_memory_is_not_blamed_on_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pipeline.ingest.images._square", fail)
    with pytest.raises(MemoryError):
        decode_square(encoded(photograph()), CONFIG)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette", "grey key"])
def test_transparency_becomes_white(kind: str) -> None:
    if kind == "palette":
        image, options = Image.new("P", (48, 48), 0), {"transparency": 0}
    elif kind == "grey key":
        image, options = Image.new("L", (48, 48), 7), {"transparency": 7}
    else:
        image, options = Image.new(kind, (48, 48), (9, 9, 9, 0) if kind == "RGBA" else (9, 0)), {}
    assert decode_square(encoded(image, "PNG", **options), CONFIG).pixels.min() == 255


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_made_upright(orientation: int, file_format: str) -> None:
    corner = np.zeros((64, 96, 3), np.uint8)
    corner[:32, :48] = (255, 0, 0)
    corner[:32, 48:] = (0, 255, 0)
    corner[32:, :48] = (0, 0, 255)
    stored = Image.fromarray(corner)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the Image.Transpose that produces each orientation
    if orientation in undo:
        stored = stored.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_square(encoded(stored, file_format, exif=exif), CONFIG)
    assert (decoded.width, decoded.height) == (96, 64)
    assert distance(decoded.pixels, Image.fromarray(corner[:, 16:80])) < 6


def test_broken_exif_does_not_reject_a_photograph() -> None:
    data = encoded(photograph(), exif=b"Exif\0\0MM\0*" + b"\xff" * 40)
    assert decode_square(data, CONFIG).width == 48


def test_the_first_frame_of_an_animation_counts() -> None:
    first, second = photograph(1), photograph(2)
    for file_format in ("GIF", "WEBP", "PNG"):
        data = encoded(first, file_format, save_all=True, append_images=[second])
        assert distance(decode_square(data, CONFIG).pixels, first) < 12


def test_the_middle_is_kept() -> None:
    wide = np.zeros((40, 120, 3), np.uint8)
    wide[:, 40:80] = 255
    decoded = decode_square(encoded(Image.fromarray(wide), "PNG"), CONFIG)
    assert decoded.pixels.min() > 200
    assert (decoded.width, decoded.height) == (120, 40)


def test_fine_patterns_do_not_alias() -> None:
    pattern = np.indices((512, 512)).sum(axis=0) % 2 * 255
    pixels = decode_square(encoded(Image.fromarray(pattern.astype(np.uint8)), "PNG"), CONFIG).pixels
    assert np.abs(pixels.astype(int) - 127).max() < 4


@pytest.mark.parametrize("size", [(641, 479), (802, 533), (1061, 1599)])
def test_an_image_that_is_decoded_smaller_is_not_moved(size: tuple[int, int]) -> None:
    large = photograph(3, *size)
    side = min(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    middle = large.crop((left, top, left + side, top + side))
    config = IngestConfig(image_size=128)
    decoded = decode_square(encoded(large, quality=95), config).pixels.astype(int)
    whole = np.asarray(middle.resize((128, 128), Image.Resampling.BICUBIC))
    assert np.mean((decoded - whole) ** 2) < 255**2 / 10**3.8  # 38 dB


def test_decoding_at_a_smaller_scale_loses_nothing_visible() -> None:
    large = photograph(3, 640, 640)
    assert distance(decode_square(encoded(large, quality=95), CONFIG).pixels, large) < 1


WHOLE = {name: encoded(photograph(0, 200, 200), name) for name in ("JPEG", "PNG", "WEBP", "GIF", "TIFF")}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>Login</html>", "not_an_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not_an_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n", "unsupported_format"),
        (b"\xd7\xcd\xc6\x9a\0\0" + bytes(80), "unsupported_format"),
        (b"\0\0\0\x20ftypisom" + bytes(200), "video"),
        (b"\x1a\x45\xdf\xa3" + bytes(200), "video"),
        (b"\0\0\x01\xba" + bytes(200), "video"),
        (b"\x89PNG\r\n\x1a\n" + bytes(200), "corrupt"),
        (WHOLE["JPEG"][: len(WHOLE["JPEG"]) // 2], "truncated"),
        (WHOLE["PNG"][: len(WHOLE["PNG"]) // 2], "truncated"),
        (WHOLE["WEBP"][: len(WHOLE["WEBP"]) // 2], "truncated"),
        (WHOLE["GIF"][: len(WHOLE["GIF"]) // 2], "truncated"),
        (encoded(Image.new("RGB", (1, 1)), "PNG"), "too_small"),
        (png_bomb(60_000, 60_000), "too_many_pixels"),
        (png_bomb(10_001, 10_000), "too_many_pixels"),
    ],
)
def test_what_cannot_become_an_image_is_named(data: bytes, expected: str) -> None:
    assert reason(data) == expected


def test_the_pixel_limit_is_exact_and_leaves_pillow_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    data = encoded(photograph(0, 50, 40))
    assert reason(data, IngestConfig(image_size=16, max_pixels=1999)) == "too_many_pixels"
    assert decode_square(data, IngestConfig(image_size=16, max_pixels=2000)).width == 50
    assert before == Image.MAX_IMAGE_PIXELS


def test_the_smallest_side_is_exact_and_small_images_grow() -> None:
    config = IngestConfig(image_size=64)
    assert reason(encoded(photograph(0, 15, 300)), config) == "too_small"
    assert decode_square(encoded(photograph(0, 16, 300)), config).pixels.shape == (64, 64, 3)


@pytest.mark.parametrize("file_format", ["ICO", "PPM", "DDS", "QOI", "ICNS", "PCX", "SGI"])
def test_formats_in_which_no_photographs_come_are_named_and_not_decoded(file_format: str) -> None:
    with pytest.raises(Rejected, match="unsupported_format"):
        decode_square(encoded(photograph(), file_format), CONFIG)


@pytest.mark.parametrize(
    "start",
    [
        b"\xff\x0a\xfa", b"\0\0\0\x0cJXL \r\n\x87\n", b"II*\0\x10\0\0\0CR\x02\0", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
        b"FUJIFILMCCD-RAW 0201", b"IIRO\x08\0\0\0", b"IIU\0\x18\0\0\0", b"8BPS\0\1", b"SIMPLE  =                    T",
        b"BLP2", b"%PDF-1.7", b"%!PS-Adobe-3.0 EPSF-3.0", b"gimp xcf ", b"\x76\x2f\x31\x01", bytes(128) + b"DICM",
    ],
)  # fmt: skip
def test_other_formats_are_recognised_by_their_first_bytes(start: bytes) -> None:
    assert reason(start + bytes(2000)) == "unsupported_format"


def tiff_with(tags: dict[int, object]) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        directory[tag] = value
    return encoded(photograph(), "TIFF", tiffinfo=directory)


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {330: 8, 254: 1}])
def test_the_thumbnail_of_camera_raw_is_no_photograph(tags: dict[int, object]) -> None:
    with pytest.raises(Rejected, match=r"unsupported_format.*camera raw"):
        decode_square(tiff_with(tags), CONFIG)


def test_a_tiff_with_further_sizes_is_a_photograph() -> None:
    assert decode_square(tiff_with({330: 8}), CONFIG).format == "TIFF"


def run_length_bmp() -> bytes:
    grey = Image.new("P", (32, 32), 7)
    plain = bytearray(encoded(grey, "BMP"))
    plain[30:34] = (1).to_bytes(4, "little")
    return bytes(plain)


def test_a_bmp_of_run_lengths_is_not_decoded() -> None:
    with pytest.raises(Rejected, match=r"unsupported_format.*run lengths"):
        decode_square(run_length_bmp(), CONFIG)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True, "quality": 30}])
def test_a_jpeg_that_lacks_only_its_end_marker_is_whole(options: dict[str, Any]) -> None:
    whole = encoded(photograph(3, 200, 160), **options)
    expected = decode_square(whole, CONFIG).pixels
    for data in (whole[:-2], whole[:-1], whole[:-2] + b"\xff"):
        assert np.array_equal(decode_square(data, CONFIG).pixels, expected)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("image_size", [16, 128])
def test_a_jpeg_that_lacks_pixels_is_truncated_wherever_it_was_cut(options: dict[str, Any], image_size: int) -> None:
    config = IngestConfig(image_size=image_size, min_side=16)
    whole = encoded(photograph(3, 200, 260), quality=90, **options)
    for part in range(20, 97, 4):
        assert reason(whole[: len(whole) * part // 100], config) == "truncated"


def test_a_progressive_jpeg_that_was_cut_between_its_scans_is_truncated() -> None:
    whole = encoded(photograph(3, 200, 260), progressive=True)
    starts = [match.start() for match in re.finditer(b"\xff\xda", whole)]
    assert len(starts) > 5
    for start in starts[1:]:
        # What lies between two scans, such as a table of codes, belongs to the next one.
        for cut in (start, whole.rindex(b"\xff\xc4", 0, start)):
            assert reason(whole[:cut], CONFIG) == "truncated"


def display_p3(image: Image.Image) -> bytes:
    """A JPEG of `image`, given in sRGB, in the wide gamut of phones; its profile is written by hand."""
    return encoded(image, icc_profile=wide_gamut_profile(), quality=98, subsampling=0)


def wide_gamut_profile() -> bytes:
    """An ICC profile with the primaries of Display P3, adapted to D50, and a gamma of 2.2."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(*values: float) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(map(fixed, values))

    curve = b"curv\0\0\0\0\0\0\0\1" + round(2.2 * 256).to_bytes(2, "big") + b"\0\0"
    text = b"mluc" + bytes(4) + (1).to_bytes(4, "big") + (12).to_bytes(4, "big") + b"enUS" + (4).to_bytes(4, "big")
    tags = {
        b"desc": text + (28).to_bytes(4, "big") + "P3".encode("utf-16-be"), b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": xyz(0.51512, 0.24120, -0.00105), b"gXYZ": xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": xyz(0.15710, 0.06657, 0.78407), b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    table, body = len(tags).to_bytes(4, "big"), b""
    start = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += name + (start + len(body)).to_bytes(4, "big") + len(content).to_bytes(4, "big")
        body += content + bytes(-len(content) % 4)
    header = bytearray(128)
    header[0:4] = (start + len(body)).to_bytes(4, "big")
    header[8:12], header[12:24], header[36:40] = b"\4\0\0\0", b"mntrRGB XYZ ", b"acsp"
    header[68:80] = fixed(0.9642) + fixed(1.0) + fixed(0.8249)
    return bytes(header) + table + body


def test_wide_gamut_colours_are_converted_to_srgb() -> None:
    # In Display P3, (234, 51, 35) is the red (255, 0, 0) of sRGB; the gamma differs a little.
    decoded = decode_square(display_p3(Image.new("RGB", (48, 48), (234, 51, 35))), CONFIG)
    assert np.abs(decoded.pixels.astype(int) - (255, 0, 0)).max() < 16
    grey = decode_square(display_p3(Image.new("RGB", (48, 48), (128, 128, 128))), CONFIG)
    assert np.abs(grey.pixels.astype(int) - 128).max() < 5


def test_an_srgb_profile_changes_nothing() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encoded(photograph(), icc_profile=profile)
    assert np.array_equal(decode_square(data, CONFIG).pixels, decode_square(encoded(photograph()), CONFIG).pixels)


HEIC_BRAND = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAVZtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAAAA"
    "AERAAAEAAQAAAAABegABAAAAAAAAACUAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA1mlwcnAAAAC3"
    "aXBjbwAAAHhodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQArQgEBA3AAAAMAkAAAAwAA"
    "AwAeoCCBBZbqSSmubgIaDAgAAAMAyAAAAwAIQGIAAQAHRAHBcrAiQAAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAAABBw"
    "aXhpAAAAAAMICAgAAAAXaXBtYQAAAAAAAAABAAEEgQIDBAAAAC1tZGF0AAAAISgBr1j5DpJf//Gev/9iUkPkR0N63/646GfhJhv9fH6J+A=="
)
"""A HEIC file of 64 x 64 px: the upper half is red, (200, 40, 30), the lower half blue, (20, 60, 200)."""


def test_heic_is_decoded_where_its_decoder_is_installed() -> None:
    pytest.importorskip("pi_heif")
    decoded = decode_square(HEIC, CONFIG)
    assert (decoded.format, decoded.width, decoded.height) == ("HEIF", 64, 64)
    assert np.abs(decoded.pixels[:6].astype(int) - (200, 40, 30)).max() < 12
    assert np.abs(decoded.pixels[10:].astype(int) - (20, 60, 200)).max() < 12
    assert reason(HEIC[:300]) in {"corrupt", "truncated"}


def test_heic_without_its_decoder_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "accepted_formats", lambda: image_formats.ACCEPTED)
    with pytest.raises(Rejected, match=r"unsupported_format.*install visual-trends\[heif\]"):
        image_formats.refuse_unsupported(HEIC_BRAND)


def test_jpegs_are_reproducible_and_without_chroma_subsampling() -> None:
    pixels = np.asarray(photograph())
    data = encode(pixels, "jpeg", 95)
    assert data == encode(pixels.copy(), "jpeg", 95)
    with Image.open(io.BytesIO(data)) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
        assert np.abs(np.asarray(image).astype(int) - pixels).mean() < 2


@pytest.mark.parametrize(("channels", "color_mode"), [(1, "grayscale"), (3, "rgb")])
def test_arrays_of_the_right_size_come_through_png_as_they_are(channels: int, color_mode: ColorMode) -> None:
    config = IngestConfig(image_size=28, color_mode=color_mode)
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, channels)).astype(np.uint8)
    square = square_of(pixels, "NPZ", config)
    assert (square.format, square.width, square.height) == ("NPZ", 28, 28)
    sample = Sample("a", encode(square.pixels, "png", 95), {}, image_format="png")
    assert np.array_equal(sample.pixels(), pixels)
    assert sample.data == encode(square.pixels.copy(), "png", 95)


def test_arrays_are_resized_cropped_and_converted_as_files_are() -> None:
    image = photograph(0, 40, 24)
    for color_mode, channels in (("rgb", 3), ("grayscale", 1)):
        config = IngestConfig.model_validate({"image_size": 16, "color_mode": color_mode})
        square = square_of(np.asarray(image), "NPZ", config)
        assert square.pixels.shape == (16, 16, channels)
        assert np.array_equal(square.pixels, decode_square(encoded(image, "PNG"), config).pixels)


def test_arrays_meet_the_limits_of_files() -> None:
    pixels = np.zeros((20, 30, 1), np.uint8)
    for limits, expected in (({"max_pixels": 599}, "too_many_pixels"), ({"min_side": 21}, "too_small")):
        with pytest.raises(Rejected) as caught:
            square_of(pixels, "IDX", IngestConfig.model_validate({"image_size": 16, **limits}))
        assert caught.value.reason == expected


def test_a_grey_photograph_has_one_channel_and_survives_jpeg() -> None:
    square = decode_square(encoded(photograph()), IngestConfig(image_size=16, color_mode="grayscale"))
    assert square.pixels.shape == (16, 16, 1)
    read = Sample("a", encode(square.pixels, "jpeg", 95), {}).pixels()
    assert read.shape == (16, 16, 1)
    assert np.abs(read.astype(int) - square.pixels).mean() < 2


def attempt(data: bytes) -> DecodedImage | None:
    try:
        return decode_square(data, CONFIG)
    except Rejected:
        return None


MAGIC = [b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF\0\0\0\0WEBP", b"8BPS", b"P6\n", b"BM"]


@fuzzed(150)
@given(st.sampled_from(MAGIC), st.binary(max_size=400))
def test_no_bytes_crash_it(start: bytes, rest: bytes) -> None:
    attempt(start + rest)


@fuzzed(250)
@given(st.data())
def test_no_damage_crashes_it(data: st.DataObject) -> None:
    damaged = bytearray(WHOLE[data.draw(st.sampled_from(sorted(WHOLE)))])
    for _ in range(data.draw(st.integers(1, 6))):
        # Damage in headers has the worst effects.
        at = data.draw(st.one_of(st.integers(0, 80), st.integers(0, len(damaged) - 5)))
        damaged[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1)))
    decoded = attempt(bytes(damaged[: data.draw(st.integers(1, len(damaged)))]))
    assert decoded is None or decoded.pixels.shape == (16, 16, 3)
