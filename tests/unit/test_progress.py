from __future__ import annotations

import time

import pytest

from pipeline.console import Laps, rated


@pytest.mark.parametrize(
    ("n", "seconds", "expected"),
    [
        (1200, 4.0, "1,200 images in 4.0 s, 300 images/s"),
        (1, 8.0, "1 image in 8.0 s, 0.125 images/s"),
        (10_000_000, 1.0, "10,000,000 images in 1.0 s, 10,000,000 images/s"),
        (0, 0.0, "0 images in 0.0 s, 0 images/s"),
    ],
)
def test_a_rate_stands_beside_what_it_comes_from(n: int, seconds: float, expected: str) -> None:
    assert rated(n, "image", seconds) == expected


def test_parts_take_the_time_since_the_part_before(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 13.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    laps = Laps()
    assert laps.end("assign") == 2.5
    laps.end("page")
    assert laps.seconds == {"assign": 2.5, "page": 0.5}
