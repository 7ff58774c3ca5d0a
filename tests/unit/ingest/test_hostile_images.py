"""Decoding of malicious files, of truncated files of every format, and of randomly damaged files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.config import IngestConfig
from pipeline.ingest.images import DecodedImage, decode_square
from pipeline.ingest.rejection import Rejected, RejectReason
from tests.support.crawl_files import photograph
from tests.support.fuzzing import fuzzed
from tests.support.hostile_files import ICC_BOMB, PHOTOGRAPHS, REJECTED, WHITE, every_format

CONFIG = IngestConfig(image_size=16)
FUZZ_CONFIG = IngestConfig(image_size=16, max_pixels=1_000_000)
FORMATS = every_format()
MB = 2**20


def outcome(data: bytes, config: IngestConfig = CONFIG) -> DecodedImage | str:
    """Return the decoded image or the reason of the rejection, and check both."""
    try:
        decoded = decode_square(data, config)
    except Rejected as rejected:
        assert rejected.reason in get_args(RejectReason)
        assert rejected.detail
        rejected.detail.encode()
        return rejected.reason
    assert decoded.pixels.shape == (16, 16, 3)
    assert decoded.pixels.dtype == np.uint8
    assert 0 < decoded.width * decoded.height <= config.max_pixels
    return decoded


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_strange_files_are_the_photographs_that_they_show(name: str) -> None:
    decoded = outcome(PHOTOGRAPHS[name])
    assert isinstance(decoded, DecodedImage)
    assert np.abs(decoded.pixels.astype(int) - np.asarray(photograph(1).resize((16, 16)))).mean() < 12


@pytest.mark.parametrize("name", WHITE)
def test_white_stays_white_and_nothing_becomes_white(name: str) -> None:
    decoded = outcome(WHITE[name])
    assert isinstance(decoded, DecodedImage)
    assert decoded.pixels.min() == 255


@pytest.mark.parametrize("name", REJECTED)
def test_traps_are_rejected_with_a_reason_that_fits(name: str) -> None:
    data, reasons = REJECTED[name]
    assert outcome(data) in reasons


def test_endless_scans_cost_no_time() -> None:
    started = time.process_time()
    outcome(REJECTED["endless scans"][0])
    assert time.process_time() - started < 2


def test_traps_take_little_memory(tmp_path: Path) -> None:
    traps = [*PHOTOGRAPHS.values(), *WHITE.values(), *(data for data, _ in REJECTED.values()), ICC_BOMB]
    for number, data in enumerate(traps):
        (tmp_path / str(number)).write_bytes(data)
    measure = (
        "import sys, pathlib; from pipeline.config import IngestConfig; from pipeline.ingest import images\n"
        "for path in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    try: images.decode_square(path.read_bytes(), IngestConfig(image_size=16, max_pixels=1_000_000))\n"
        "    except images.Rejected: pass\n"
        "print(pathlib.Path('/proc/self/status').read_text())"
    )
    result = subprocess.run([sys.executable, "-c", measure, str(tmp_path)], check=True, capture_output=True, text=True)
    peak_kb = int(result.stdout.partition("VmHWM:")[2].split()[0])
    assert peak_kb < 256 * 1024


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_is_read_and_a_cut_one_has_an_outcome(name: str) -> None:
    data = FORMATS[name]
    assert isinstance(outcome(data), DecodedImage)
    for part in range(1, 20):
        cut = outcome(data[: len(data) * part // 20])
        # In files of several images, such as icons and animations, the first image may be complete.
        assert isinstance(cut, DecodedImage) or cut in {"truncated", "corrupt", "not_an_image"}


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Generate a file of any format with flipped bits, pieces of other files, and repeated or missing parts."""
    data = bytearray(FORMATS[draw(st.sampled_from(sorted(FORMATS)))][:20_000])
    for _ in range(draw(st.integers(1, 4))):
        # Damage in headers has the worst effects.
        at = draw(st.one_of(st.integers(0, 120), st.integers(0, 20_000))) % max(1, len(data))
        length = draw(st.integers(1, 64))
        kind = draw(st.sampled_from(["flip", "number", "splice", "repeat", "delete", "cut"]))
        if kind == "flip":
            data[at : at + 1] = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in data[at : at + 1])
        elif kind == "number":
            number = draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
            data[at : at + 4] = number.to_bytes(4, draw(st.sampled_from(["big", "little"])))
        elif kind == "splice":
            other = FORMATS[draw(st.sampled_from(sorted(FORMATS)))]
            data[at : at + length] = other[at : at + length]
        elif kind == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 8))
        elif kind == "delete":
            del data[at : at + length]
        else:
            del data[at:]
    return bytes(data)


@contextmanager
def memory_growth_below(limit_bytes: int) -> Iterator[None]:
    """Check that the peak memory of this process grows by less than `limit_bytes` within the context."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    except OSError:
        pytest.skip("a process cannot reset its peak memory on this machine")
    before = _peak_bytes()
    yield
    assert _peak_bytes() - before < limit_bytes


def _peak_bytes() -> int:
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.fuzz
def test_damage_of_any_kind_has_an_outcome_and_takes_little_memory() -> None:
    @fuzzed(1_000)
    @given(damaged())
    @example(b"\xff\xd8\xff")
    def any_damage(data: bytes) -> None:
        outcome(data, FUZZ_CONFIG)

    for data in FORMATS.values():  # memory that decoders allocate once is not counted
        outcome(data)
    with memory_growth_below(128 * MB):
        any_damage()
