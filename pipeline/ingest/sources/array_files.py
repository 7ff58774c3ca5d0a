"""Array files to images and labels: IDX, the format of MNIST and its kin, and NumPy's ``.npz``.

They are hostile input like any crawl: nothing is unpickled, and memory is taken for what a file holds, not for what
its header claims.
"""

from __future__ import annotations

import gzip
import hashlib
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
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import SourceError, StorageError
from pipeline.ingest.fetch import raise_machine_fault
from pipeline.ingest.images import Pixels
from pipeline.ingest.rejection import Rejected
from pipeline.ingest.text import storable

MAX_ARRAY_BYTES = 8 * 2**30
"""Of one array, decompressed: every process that builds shards of it holds it in memory."""

MAX_COMPRESSION = 1100
"""Deflate makes at most 1032 bytes of one; a header that claims more of its file is wrong."""

CHUNK_BYTES = 1 << 20

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Type of the values by the third byte of an IDX file."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class ArrayFile:
    """A file of images that was read through once."""

    images: int
    size: int
    """Of the file in bytes."""
    sha256: str
    """Of the file's bytes, hexadecimal."""


@dataclass(frozen=True)
class _Header:
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool = False

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def inspect_images(path: Path) -> ArrayFile:
    """What the images file `path` holds: an ``.npz`` with the array ``images``, or an IDX file. Read once per state.

    Images are uint8, or floats in [0, 1], of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with C = 1 or 3.

    Raises:
        SourceError: not such a file, cut off, or larger or smaller than its header says.
        StorageError: the machine is at fault, and another attempt may succeed.
    """
    with _reading(path):
        status = path.stat()
        return _inspect(path, status.st_size, status.st_mtime_ns)


def read_labels(path: Path) -> list[str | None] | None:
    """The labels in the IDX file or in the array ``labels`` of the ``.npz`` file `path`; None where it has no array.

    They are integers or texts of shape (N,). A negative number and an empty text mean that an image has no label.

    Raises what `inspect_images` does.
    """
    if _is_npz(path):
        with _reading(path), zipfile.ZipFile(path) as file:
            if "labels.npy" not in file.namelist():
                return None
    with _opened(path, "labels") as (header, stream):
        if header.dtype.kind not in "iuUS" or len(header.shape) != 1:
            raise _wrong(path, f"labels are {_described(header)}, expected integers or texts of shape (N,)")
        array = _assembled(header, _chunks(path, header, stream))
    try:
        values = array.tolist()
    except (ValueError, SystemError) as error:  # code points that are none
        raise _wrong(path, "labels are no texts") from error
    return [_label(value) for value in values]


def read_image(path: Path, index: int, sha256: str) -> Pixels:
    """Image `index` of the file `path`: uint8, height x width x 1 or x 3. A process reads the file once.

    Args:
        path: as `inspect_images` takes it.
        index: from 0.
        sha256: of the file when it was listed.

    Raises:
        Rejected: corrupt, where the image holds values outside [0, 1], or none at all.
        StorageError: the file has changed since, or the machine is at fault.
    """
    image: Array = _load(path, sha256)[index]
    if image.dtype.kind == "f":
        if not (image.min() >= 0 and image.max() <= 1):  # not a number is neither
            raise Rejected("corrupt", f"values from {image.min():g} to {image.max():g}, expected 0 to 1")
        image = np.rint(image.astype(np.float64) * 255)
    return np.ascontiguousarray(image, np.uint8)


@lru_cache(maxsize=16)
def _inspect(path: Path, size: int, modified_ns: int) -> ArrayFile:
    """`modified_ns` only keeps another state of the file from being taken for this one."""
    with _opened(path, "images") as (header, stream):
        _channels_last(path, header)
        for _ in _chunks(path, header, stream):
            pass
    return ArrayFile(header.shape[0], size, _digest(path))


@lru_cache(maxsize=1)
def _load(path: Path, sha256: str) -> Array:
    """All images of a file, as (N, H, W, C)."""
    with _reading(path):
        if not path.exists() or _digest(path) != sha256:
            raise StorageError(f"{storable(str(path))} has changed since it was listed; run the same command again")
    with _opened(path, "images") as (header, stream):
        axes = _channels_last(path, header)
        images = _assembled(header, _chunks(path, header, stream))
    return (images[..., None] if images.ndim == 3 else images).transpose(axes)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_npz(path: Path) -> bool:
    return path.suffix.lower() == ".npz"


def _label(value: int | str | bytes) -> str | None:
    if isinstance(value, int):
        return str(value) if value >= 0 else None
    text = value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else storable(value)
    return text or None


def _channels_last(path: Path, header: _Header) -> tuple[int, ...]:
    """How to transpose images, with their channel axis if they had none, to (N, H, W, C)."""
    shape = header.shape
    if (header.dtype.kind == "f" or header.dtype == np.uint8) and 0 not in shape:
        if len(shape) == 3 or (len(shape) == 4 and shape[3] in {1, 3}):
            return (0, 1, 2, 3)
        if len(shape) == 4 and shape[1] in {1, 3}:
            return (0, 2, 3, 1)
    raise _wrong(
        path,
        f"images are {_described(header)}, expected uint8, or floats from 0 to 1, of shape (N, H, W), "
        "(N, H, W, C) or (N, C, H, W) with 1 or 3 channels and at least one image",
    )


@contextmanager
def _opened(path: Path, name: str) -> Iterator[tuple[_Header, BinaryIO]]:
    """Header and content of an array: `name` of an ``.npz`` file, or all of an IDX file."""
    with _reading(path), path.open("rb") as file:
        if not _is_npz(path):
            compressed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if compressed else file
            yield _checked(path, _idx_header(path, stream)), stream
            return
        with zipfile.ZipFile(file) as archive:
            if f"{name}.npy" not in archive.namelist():
                found = ", ".join(sorted(n.removesuffix(".npy") for n in archive.namelist())[:5]) or "nothing"
                raise _wrong(path, f"has no array {name} (found {storable(found)}); expected images, and labels")
            with archive.open(f"{name}.npy") as member:
                yield _checked(path, _npy_header(path, name, member)), member  # type: ignore[misc]


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong with a file, as the errors of this package."""
    try:
        yield
    except gzip.BadGzipFile as error:
        raise _wrong(path, f"not a gzip file ({error})") from error
    except (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise _wrong(path, f"cut off or damaged ({error}); expected a whole file, fetch it again") from error
    except (RuntimeError, NotImplementedError) as error:  # encrypted, or compressed in a way this Python has not
        raise _wrong(path, f"cannot be read ({error}); expected a file as numpy.savez writes it") from error
    except OSError as error:
        if error.errno is None:  # of a decompressor
            raise _wrong(path, f"cut off or damaged ({error}); expected a whole file, fetch it again") from error
        if not isinstance(error, FileNotFoundError):
            raise_machine_fault(storable(str(path)), error)
        raise _wrong(path, error.strerror or str(error)) from error


def _idx_header(path: Path, stream: BinaryIO) -> _Header:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in IDX_TYPES:
        raise _wrong(path, f"starts with {magic.hex() or 'nothing'}, not as an IDX file does (00000803 for images)")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise _wrong(path, "cut off inside its header; expected a whole file, fetch it again")
    return _Header(np.dtype(IDX_TYPES[magic[2]]), struct.unpack(f">{magic[3]}I", sizes))


def _npy_header(path: Path, name: str, member: Any) -> _Header:
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    try:
        shape, fortran_order, dtype = readers[np.lib.format.read_magic(member)](member)
    except (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile):
        raise
    except Exception as error:  # the header is a Python literal, and a hostile one fails in every way
        raise _wrong(path, f"array {name} is not one that numpy.savez wrote") from error
    if not all(type(size) is int and size >= 0 for size in shape) or not dtype.itemsize:
        raise _wrong(
            path, f"array {name} claims the shape {shape} of {dtype.itemsize} bytes each; expected sizes from 0"
        )
    if dtype.hasobject:
        raise _wrong(path, f"array {name} holds Python objects, which can run code; expected numbers or texts")
    return _Header(dtype, shape, fortran_order)


def _checked(path: Path, header: _Header) -> _Header:
    """`header`, unless it claims more than its file can hold or a machine should."""
    if header.nbytes > MAX_COMPRESSION * path.stat().st_size:
        raise _wrong(path, f"its header claims {header.nbytes:,} bytes, far more than the file can hold")
    if header.nbytes > MAX_ARRAY_BYTES:
        raise _wrong(path, f"{header.nbytes:,} bytes, at most {MAX_ARRAY_BYTES:,} are read; split it into several")
    return header


def _chunks(path: Path, header: _Header, stream: BinaryIO) -> Iterator[bytes]:
    """The content of an array, which must be exactly as long as its header says."""
    missing = header.nbytes
    while missing and (chunk := stream.read(min(CHUNK_BYTES, missing))):
        missing -= len(chunk)
        yield chunk
    if missing:
        raise _wrong(path, f"ends {missing:,} bytes before its header says; expected a whole file, fetch it again")
    if stream.read(1):  # also makes gzip and zip compare their checksums
        raise _wrong(path, f"holds more than the {_described(header)} that its header says")


def _assembled(header: _Header, chunks: Iterator[bytes]) -> Array:
    content = bytearray()
    for chunk in chunks:
        content += chunk
    shape = header.shape[::-1] if header.fortran_order else header.shape
    array = np.frombuffer(content, header.dtype).reshape(shape)
    return array.T if header.fortran_order else array


def _described(header: _Header) -> str:
    return f"{header.dtype.name} of shape {header.shape}"


def _wrong(path: Path, what: str) -> SourceError:
    return SourceError(f"source {storable(str(path))}: {what}")
