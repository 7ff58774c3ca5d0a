"""The documents against the repository: links, flags, configuration keys, paths and make targets that they name exist.

Every check returns its findings as lines ``file:line: what is wrong``.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote

import pytest
from pydantic import BaseModel

from pipeline.config import JobConfig

ROOT = Path(__file__).parents[2]
FOLDERS = ("pipeline", "jobs", "infra", "tests", ".github")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(file for folder in FOLDERS for file in (ROOT / folder).rglob("*.md"))])
README_LINES = 150

SCRAPERS_FLAGS = frozenset({"--media-metadata", "--write-metadata"})
"""Flags of other programs that the documents name without a command."""

FENCE = re.compile(r" {0,3}(```+|~~~+)")
INLINE_CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)")
HEADING = re.compile(r" {0,3}#{1,6}\s+(.*?)\s*#*\s*")
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
JOB = re.compile(r"(?:.*/)?jobs/(\w+)\.py")
FLAG = re.compile(r"--[a-z][a-z0-9-]*")
CONFIGURATION_KEY = re.compile(r"((?:ingest|clustering|reporting)\.[a-z0-9_.]*[a-z0-9_])(?:=.*)?")
REPOSITORY_PATH = re.compile(r"(?<![\w./<-])(?:jobs|pipeline|tests|infra)/[\w./-]*")

Check = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Document:
    """A Markdown file, taken apart."""

    prose: list[tuple[int, str]]
    """Lines outside code blocks, with their numbers."""
    blocks: list[tuple[int, str]]
    """Lines of code blocks with the number of the first one; lines that a backslash joins are one."""

    @property
    def code(self) -> Iterator[tuple[int, str]]:
        """All code: lines of blocks, and code within lines of prose."""
        yield from self.blocks
        for number, line in self.prose:
            yield from ((number, found[2].strip()) for found in INLINE_CODE.finditer(line))

    @property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives the headings."""
        anchors: set[str] = set()
        for _, line in self.prose:
            if heading := HEADING.fullmatch(line):
                slug = slug_of(heading[1])
                repeats = sum(1 for anchor in anchors if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", anchor))
                anchors.add(f"{slug}-{repeats}" if slug in anchors else slug)
        return anchors


def slug_of(heading: str) -> str:
    """GitHub's anchor of a heading: lower case, without markup and punctuation, hyphens for spaces."""
    text = re.sub(r"!?\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


@cache
def parsed(file: Path) -> Document:
    prose: list[tuple[int, str]] = []
    blocks: list[tuple[int, str]] = []
    fence, previous, joined = "", "", False
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        mark = FENCE.match(line)
        if mark and (not fence or mark[1].startswith(fence)):
            fence, previous = "" if fence else mark[1], "fence"
            continue
        # A block without a fence is indented; a paragraph that goes on is not.
        indented = line.startswith("    ") and previous in {"", "code"}
        if fence or indented:
            text = line.strip()
            if joined:
                first, before = blocks.pop()
                text, origin = f"{before[:-1]} {text}", first
            else:
                origin = number
            joined = text.endswith("\\")
            blocks.append((origin, text))
            previous = "code"
        else:
            prose.append((number, line))
            joined, previous = False, "text" if line.strip() else ""
    return Document(prose, blocks)


def words(command: str) -> list[str]:
    """The words of a shell command, without its comment; those of anything else, as spaces divide it."""
    try:
        return shlex.split(command, comments=True)
    except ValueError:
        return command.split()


def finding(file: Path, line: int, what: str) -> str:
    shown = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file.name
    return f"{shown}:{line}: {what}"


class ParserBuiltError(Exception):
    """Ends a job when its parser is complete; its message is the usage."""


@cache
def flags_of(job: str) -> frozenset[str]:
    """The flags of ``jobs/<job>.py``, from the parser that its `main` builds; nothing else of it runs."""

    def stop(parser: argparse.ArgumentParser, *_: object) -> None:
        raise ParserBuiltError(parser.format_usage())

    module = importlib.import_module(f"jobs.{job}")
    with patch.object(argparse.ArgumentParser, "parse_args", stop):
        try:
            module.main()
        except ParserBuiltError as built:
            return frozenset({"--help", *FLAG.findall(str(built))})
    raise AssertionError(f"jobs/{job}.py: main does not parse its arguments with argparse")


@cache
def known_flags() -> frozenset[str]:
    """The flags of all jobs and benchmarks, and those of other programs."""
    flags = set(SCRAPERS_FLAGS)
    for job in ROOT.glob("jobs/*.py"):
        flags |= flags_of(job.stem)
    for benchmark in ROOT.glob("tests/benchmarks/*.py"):
        flags |= set(re.findall(rf'"({FLAG.pattern})"', benchmark.read_text(encoding="utf-8")))
    return frozenset(flags)


def configuration_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """All keys of `model` as ``--set`` takes them, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from configuration_keys(field.annotation, f"{prefix}{name}.")


@cache
def make_targets() -> frozenset[str]:
    return frozenset(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def broken_links(file: Path) -> list[str]:
    """Relative links whose file does not exist, or whose anchor is no heading of it."""
    found = []
    for number, line in parsed(file).prose:
        for link in LINK.findall(INLINE_CODE.sub("code", line)):
            if SCHEME.match(link):
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / unquote(path)).resolve() if path else file
            if not target.exists():
                found.append(finding(file, number, f"link to {link}: there is no such file"))
            elif anchor and (target.suffix != ".md" or anchor not in parsed(target).anchors):
                found.append(finding(file, number, f"link to {link}: there is no such heading"))
    return found


def unknown_flags(file: Path) -> list[str]:
    """Flags of commands that run a job which that job does not have, and lone flags that nothing has."""
    found = []
    for number, code in parsed(file).code:
        command = words(code)
        job = next((index for index, word in enumerate(command) if JOB.fullmatch(word)), None)
        if job is not None:
            name = JOB.sub(r"\1", command[job])
            if not (ROOT / "jobs" / f"{name}.py").exists():  # for the check of paths to say
                continue
            known, whose, command = flags_of(name), f"jobs/{name}.py", command[job + 1 :]
        elif code.startswith("--"):
            known, whose = known_flags(), "any job or benchmark"
        else:
            continue
        flags = (word.partition("=")[0] for word in command if FLAG.match(word))
        found += [finding(file, number, f"{flag} is no flag of {whose}") for flag in flags if flag not in known]
    return found


def unknown_keys(file: Path) -> list[str]:
    """Keys of ``--set`` and dotted keys in code that the configuration does not have."""
    known = set(configuration_keys(JobConfig))
    found = []
    for number, code in parsed(file).code:
        command = words(code)
        values = [after for word, after in pairwise(command) if word == "--set"]
        values += [word.partition("=")[2] for word in command if word.startswith("--set=")]
        keys = [value.partition("=")[0] for value in values if value != "A.B=C"]
        if lone := CONFIGURATION_KEY.fullmatch(code):
            keys.append(lone[1])
        found += [finding(file, number, f"{key} is no key of the configuration") for key in keys if key not in known]
    return found


def missing_paths(file: Path) -> list[str]:
    """Paths of the repository in code that do not exist."""
    return [
        finding(file, number, f"{path}: there is no such file or folder")
        for number, code in parsed(file).code
        for path in REPOSITORY_PATH.findall(code)
        if not (ROOT / path.rstrip(".")).exists()
    ]


def unknown_targets(file: Path) -> list[str]:
    """Targets of ``make`` that the Makefile does not have."""
    return [
        finding(file, number, f"make {target}: there is no such target")
        for number, code in parsed(file).code
        if (command := words(code))[:1] == ["make"]
        for target in command[1:]
        if target not in make_targets()
    ]


CHECKS: list[Check] = [broken_links, unknown_flags, unknown_keys, missing_paths, unknown_targets]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
@pytest.mark.parametrize("file", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_document_names_what_exists(file: Path, check: Check) -> None:
    findings = check(file)
    assert not findings, "\n".join(findings)


def test_the_readme_is_short() -> None:
    lines = len((ROOT / "README.md").read_text(encoding="utf-8").splitlines())
    assert lines <= README_LINES, f"README.md:{lines}: at most {README_LINES} lines; move details to the folders"


@pytest.mark.parametrize(
    ("check", "line", "what"),
    [
        (broken_links, "[text](nowhere.md)", "link to nowhere.md: there is no such file"),
        (broken_links, "[text](#nowhere)", "link to #nowhere: there is no such heading"),
        (unknown_flags, "`python jobs/cluster_collection.py --n 3`", "--n is no flag of jobs/cluster_collection.py"),
        (unknown_flags, "`--nothing`", "--nothing is no flag of any job or benchmark"),
        (unknown_flags, "    python jobs/assign_collection.py \\\n        --k=3", "--k is no flag of jobs/assign"),
        (unknown_keys, "`--set clustering.nothing=1`", "clustering.nothing is no key of the configuration"),
        (unknown_keys, "```\npython x.py --set=k=1\n```", "k is no key of the configuration"),
        (unknown_keys, "`ingest.http.nothing`", "ingest.http.nothing is no key of the configuration"),
        (missing_paths, "`pipeline/nothing.py`", "pipeline/nothing.py: there is no such file or folder"),
        (unknown_targets, "`make nothing`  # comment", "make nothing: there is no such target"),
    ],
)
def test_a_check_finds_what_is_wrong(tmp_path: Path, check: Check, line: str, what: str) -> None:
    (tmp_path / "page.md").write_text(f"# Heading\n\n{line}\n", encoding="utf-8")
    (found,) = check(tmp_path / "page.md")
    assert found.startswith(f"page.md:{4 if line.startswith('```') else 3}: {what}")


@pytest.mark.parametrize(
    "line",
    [
        "[text](#a-second-heading-of-jobsxpy) and [other](#heading-1), [web](https://example.org/nowhere#x)",
        "`[text](nowhere.md)`, `ray job submit --address X -- python jobs/cluster_collection.py --k 3`",
        "    pytest --unheard-of --set-nothing",
        "`python -m pytest -m faults --strict-markers`, `make`, `make test  # make nothing`",
        "`--set clustering.schedule.window=3`, `clustering.batch_size=128`, `ingest.` and `crawls/x/jobs/y`",
    ],
)
def test_a_check_leaves_other_programs_alone(tmp_path: Path, line: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Heading\n\n## Heading\n\n## A second, *Heading* of `jobs/x.py`\n\n{line}\n", encoding="utf-8")
    assert [found for check in CHECKS if check is not missing_paths for found in check(page)] == []
