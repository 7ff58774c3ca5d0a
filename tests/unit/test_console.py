from __future__ import annotations

import time

import pytest

from pipeline import console
from pipeline.console import Laps, Progress, StatusLine, about, duration, rated, say


@pytest.mark.parametrize(
    ("n", "seconds", "expected"),
    [
        (1200, 4.0, "1,200 images in 4.0 s, 300 images/s"),
        (1, 8.0, "1 image in 8.0 s, 8.0 s per image"),
        (2, 2302.0, "2 images in 38 min 22 s, 19 min 11 s per image"),
        (10_000_000, 1.0, "10,000,000 images in 1.0 s, 10,000,000 images/s"),
        (0, 0.0, "0 images"),
    ],
)
def test_a_count_is_shown_with_its_duration_and_rate(n: int, seconds: float, expected: str) -> None:
    assert rated(n, "image", seconds) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min"), (75, "1 min 15 s"), (3600, "1 h"), (7500, "2 h 5 min")],
)
def test_durations_are_shown_in_readable_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_a_part_takes_the_time_since_the_previous_part(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 13.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    laps = Laps()
    assert laps.end("assign") == 2.5
    laps.end("page")
    assert laps.seconds == {"assign": 2.5, "page": 0.5}


class Clock:
    """Replacement of `time.monotonic` that a test advances."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


def test_a_log_has_a_line_when_a_stage_begins_and_one_when_it_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Progress("ingest", 1000, "record", done=200) as progress:
        for _ in range(8):
            clock.now += 0.5
            progress.advance(100, "7 accepted")
    assert capsys.readouterr().out.splitlines() == [
        "ingest    begins: 1,000 records, 200 of them done already",
        "ingest    800 records in 4.0 s, 200 records/s; 7 accepted",
    ]


def test_a_log_of_a_long_stage_has_lines_at_intervals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Progress("survey", 4000, "image") as progress:
        for _ in range(4):
            clock.now += console.LOG_INTERVAL_S / 2
            progress.advance(1000)
    assert capsys.readouterr().out.splitlines() == [
        "survey    begins: 4,000 images",
        "survey    2,000 of 4,000 images, 3.33 images/s, 10 min left",
        "survey    4,000 of 4,000 images, 3.33 images/s, 0.0 s left",
        "survey    4,000 images in 20 min, 3.33 images/s",
    ]


def test_a_stage_without_units_prints_nothing_and_a_failed_one_has_no_last_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with Progress("search", 0, "shard"):
        pass
    with pytest.raises(KeyError), Progress("search", 2, "shard"):
        raise KeyError
    assert capsys.readouterr().out.splitlines() == ["search    begins: 2 shards"]


def test_with_many_subjects_only_last_lines_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with about("rome"):
        with Progress("draw", 3, "cluster") as progress:
            progress.advance(3)
        StatusLine("cluster").show("iteration 5")
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("draw      rome: 3 clusters in ")


class Terminal:
    """Replacement of standard output that behaves like a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_a_terminal_has_one_status_line_that_is_removed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    with Progress("assign", 10, "image") as progress:
        progress.advance(4)
        console.say("assign", "a line between")
        progress.advance(6)
    assert "4 of 10 images" in terminal.text
    assert "?" not in terminal.text
    lines = [line.rpartition("\r")[2] for line in terminal.text.split("\n")]
    assert lines[0] == "assign    a line between"
    assert lines[1].startswith("assign    10 images in ")
    assert lines[2:] == [""]


def test_names_cannot_change_the_terminal_or_imitate_lines(capsys: pytest.CaptureFixture[str]) -> None:
    say("ingest", "a\x1b[2Jb\ndone      all\r\u202egnp.exe \U0001f468\u200d\U0001f469 http://u:secret@a.test/x")
    assert capsys.readouterr().out == (
        "ingest    a\\x1b[2Jb\\ndone      all\\r\\u202egnp.exe \U0001f468\u200d\U0001f469 http://a.test/x\n"
    )
