"""Read images and labels from array files: IDX, the format of MNIST and similar data sets, and NumPy's ``.npz``.

Array files are hostile input like any crawl: nothing is unpickled, and memory is allocated for the actual content of a
file, not for what its header claims.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from pipeline.errors import SourceError, StorageError
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.sources.content import file_uri, open_stream, raise_machine_fault
from pipeline.ingest.sources.metadata import storable
from pipeline.records import Pixels

MAX_ARRAY_BYTES = 8 * 2**30
"""Maximum size of an array in bytes, decompressed: every process that builds shards of it holds it in memory."""

MAX_LABEL_BYTES = 4096
"""Maximum size of one label in bytes."""

MAX_COMPRESSION = 1100
"""Maximum ratio of the size in a header to the size of its file; Deflate reaches at most 1032."""

CHUNK_BYTES = 1 << 20
"""Number of bytes that are read at once."""

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Type of the values of an IDX file by its third byte."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ArrayFile:
    """Result of reading a file of images completely once."""

    images: int
    """Number of images."""
    size: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file's bytes, hexadecimal."""


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def inspect_images(path: Path) -> ArrayFile:
    """Inspect the images file `path`: an ``.npz`` with the array ``images``, or an IDX file. It is read once per state.

    Images are uint8, or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3.

    Raises:
        SourceError: the file has another format, is cut off, or is larger or smaller than its header claims.
        StorageError: a fault of the machine; another attempt may succeed.
    """
    with _translate_errors(path):
        status = path.stat()
        return _inspect(path, status.st_size, status.st_mtime_ns)


def read_labels(path: Path, images: int) -> list[str | None] | None:
    """Return the labels of `images` images in the IDX file `path`, or in the array ``labels`` of the ``.npz`` file.

    Labels are integers or texts of shape (N,). A negative number and an empty text mean that an image has no label;
    they become None. An ``.npz`` file without the array gives None.

    Raises the same errors as `inspect_images`.
    """
    if _is_npz(path):
        with _translate_errors(path), _open_file(path) as file, zipfile.ZipFile(file) as archive:
            if "labels.npy" not in archive.namelist():
                return None
    with _open_array(path, "labels") as (header, stream):
        if header.dtype.kind not in "iuUS" or len(header.shape) != 1:
            raise _source_error(path, f"labels are {_describe(header)}, expected integers or texts of shape (N,)")
        if header.shape != (images,):
            raise _source_error(path, f"{images} images, but {header.shape[0]} labels; expected one label per image")
        if header.dtype.itemsize > MAX_LABEL_BYTES:
            raise _source_error(
                path, f"labels of {header.dtype.itemsize:,} bytes; expected at most {MAX_LABEL_BYTES:,} bytes each"
            )
        array = _assemble(header, _chunks(path, header, stream))
    try:
        values = array.tolist()
    except (ValueError, SystemError) as error:  # invalid code points
        raise _source_error(path, "labels contain invalid text; expected integers or texts of shape (N,)") from error
    return [_label(value) for value in values]


def read_image(path: Path, index: int, sha256: str) -> Pixels:
    """Return image `index` of the file `path`: uint8, height x width x 1 or 3. A process reads the file only once.

    Args:
        path: a file for `inspect_images`.
        index: position of the image, from 0.
        sha256: digest of the file when it was listed.

    Raises:
        Rejected: corrupt, where the image contains values outside [0, 1] or values that are not numbers.
        StorageError: the file has changed since it was listed, or a fault of the machine.
    """
    image: Array = _load(path, sha256)[index]
    if image.dtype.kind == "f":
        if not (image.min() >= 0 and image.max() <= 1):  # false for NaN, too
            raise Rejected("corrupt", f"values from {image.min():g} to {image.max():g}, expected 0 to 1")
        image = np.rint(image.astype(np.float64) * 255)
    return np.ascontiguousarray(image, np.uint8)


@lru_cache(maxsize=16)
def _inspect(path: Path, size: int, modified_ns: int) -> ArrayFile:
    """Inspect `path`. `modified_ns` is part of the cache key, so that a changed file is read again."""
    with _open_array(path, "images") as (header, stream):
        _channels_last(path, header)
        for _ in _chunks(path, header, stream):
            pass
    return ArrayFile(header.shape[0], size, _digest(path))


@lru_cache(maxsize=1)
def _load(path: Path, sha256: str) -> Array:
    """Return all images of a file, as (N, H, W, C)."""
    with _translate_errors(path):
        if not path.exists() or _digest(path) != sha256:
            raise StorageError(f"{storable(str(path))} has changed since it was listed; run the same command again")
    with _open_array(path, "images") as (header, stream):
        axes = _channels_last(path, header)
        images = _assemble(header, _chunks(path, header, stream))
    return (images[..., None] if images.ndim == 3 else images).transpose(axes)


def _digest(path: Path) -> str:
    with _open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _open_file(path: Path) -> BinaryIO:
    """Open `path` if it is a regular file: opening a pipe would wait for its writer."""
    return cast(BinaryIO, io.BufferedReader(cast(Any, open_stream(file_uri(str(path))))))


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def _label(value: int | str | bytes) -> str | None:
    if isinstance(value, int):
        return str(value) if value >= 0 else None
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else storable(value)
    return text or None


def _channels_last(path: Path, header: _Header) -> tuple[int, ...]:
    """Return the axes that transpose images to (N, H, W, C), after a channel axis was added if they had none."""
    shape = header.shape
    if (header.dtype.kind == "f" or header.dtype == np.uint8) and 0 not in shape:
        if len(shape) == 3 or (len(shape) == 4 and shape[3] in {1, 3}):
            return (0, 1, 2, 3)
        if len(shape) == 4 and shape[1] in {1, 3}:
            return (0, 2, 3, 1)
    raise _source_error(
        path,
        f"images are {_describe(header)}, expected uint8, or floats from 0 to 1, of shape (N, H, W), "
        "(N, H, W, C) or (N, C, H, W) with 1 or 3 channels and at least one image",
    )


@contextmanager
def _open_array(path: Path, name: str) -> Iterator[tuple[_Header, BinaryIO]]:
    """Open the array `name` of an ``.npz`` file, or the array of an IDX file; yield its header and its content."""
    with _translate_errors(path), _open_file(path) as file:
        if not _is_npz(path):
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
            yield _check_size(path, _idx_header(path, stream)), stream
            return
        with zipfile.ZipFile(file) as archive:
            if f"{name}.npy" not in archive.namelist():
                found = ", ".join(sorted(n.removesuffix(".npy") for n in archive.namelist())[:5]) or "nothing"
                raise _source_error(
                    path, f"has no array {name} (found {storable(found)}); expected images and, optionally, labels"
                )
            with archive.open(f"{name}.npy") as member:
                yield _check_size(path, _npy_header(path, name, member)), member  # type: ignore[misc]


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    """Translate errors of reading a file to SourceError or StorageError."""
    try:
        yield
    except Rejected as error:
        raise _source_error(path, error.detail) from error
    except gzip.BadGzipFile as error:
        raise _source_error(path, f"not a gzip file ({error})") from error
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise _source_error(path, f"cut off or damaged ({error}); expected a complete file, fetch it again") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or an unsupported compression
        raise _source_error(path, f"cannot be read ({error}); expected a file written by numpy.savez") from error
    except OSError as error:
        if error.errno is None:  # raised by a decompressor
            raise _source_error(
                path, f"cut off or damaged ({error}); expected a complete file, fetch it again"
            ) from error
        if not isinstance(error, FileNotFoundError):
            raise_machine_fault(storable(str(path)), error)
        raise _source_error(path, error.strerror or str(error)) from error


def _idx_header(path: Path, stream: BinaryIO) -> _Header:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES:
        raise _source_error(
            path, f"starts with {magic.hex() or 'nothing'}, expected the header of an IDX file (00000803 for images)"
        )
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise _source_error(path, "cut off inside its header; expected a complete file, fetch it again")
    return _Header(np.dtype(IDX_TYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sizes))


def _npy_header(path: Path, name: str, member: Any) -> _Header:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = readers[np.lib.format.read_magic(member)](member)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
        raise
    except Exception as error:  # the header is a Python literal; a hostile one can cause any exception
        raise _source_error(path, f"array {name} is invalid; expected an array written by numpy.savez") from error
    if not all(type(size) is int and size >= 0 for size in shape) or not dtype.itemsize:
        raise _source_error(
            path,
            f"array {name} claims the shape {shape} with {dtype.itemsize} bytes per value; expected a shape without "
            "negative numbers and at least 1 byte per value",
        )
    if dtype.hasobject:
        raise _source_error(
            path, f"array {name} contains Python objects, which can run code; expected numbers or texts"
        )
    return _Header(dtype, shape, fortran_order)


def _check_size(path: Path, header: _Header) -> _Header:
    """Return `header`. Raises SourceError if it claims more bytes than its file can hold or than MAX_ARRAY_BYTES."""
    if header.nbytes > MAX_COMPRESSION * path.stat().st_size:
        raise _source_error(path, f"its header claims {header.nbytes:,} bytes, far more than the file can hold")
    if header.nbytes > MAX_ARRAY_BYTES:
        raise _source_error(
            path, f"{header.nbytes:,} bytes, at most {MAX_ARRAY_BYTES:,} are read; split it into several files"
        )
    return header


def _chunks(path: Path, header: _Header, stream: BinaryIO) -> Iterator[bytes]:
    """Yield the content of an array. Raises SourceError if its length differs from that in the header."""
    missing = header.nbytes
    while missing and (chunk := stream.read(min(CHUNK_BYTES, missing))):
        missing -= len(chunk)
        yield chunk
    if missing:
        raise _source_error(path, f"ends {missing:,} bytes too early; expected a complete file, fetch it again")
    if stream.read(1):  # reading to the end also makes gzip and zip compare their checksums
        raise _source_error(path, f"contains more than the {_describe(header)} of its header")


def _assemble(header: _Header, chunks: Iterator[bytes]) -> Array:
    content = bytearray()
    for chunk in chunks:
        content += chunk
    shape = header.shape[::-1] if header.fortran_order else header.shape
    array = np.frombuffer(content, header.dtype).reshape(shape)
    return array.T if header.fortran_order else array


def _describe(header: _Header) -> str:
    return f"{header.dtype.name} of shape {header.shape}"


def _source_error(path: Path, message: str) -> SourceError:
    return SourceError(f"source {storable(str(path))}: {message}")
