"""Explains to the user, in one line, what is wrong with a configuration."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

EXPECTED_TEXT = {
    "run_id": "at most 200 letters, digits and . = + - _, beginning with a letter, a digit or _",
    "ingest.http.user_agent": "at most 500 printable ASCII characters, not beginning with a space",
}
"""Expected values of the texts that must match a pattern."""

# In the location of an error, pydantic names the member of a union that it has tried.
_TRIED_TYPE = re.compile(r"constrained-\w+|\w+\[.*\]|int|str|float|bool|function-\w+.*|nullable.*|literal.*")


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """Return what is wrong with the values of `model`: each faulty key once, what was expected, and what was found."""
    by_key: dict[str, list[str]] = {}
    for detail in error.errors():
        key = ".".join(str(part) for part in detail["loc"] if not _TRIED_TYPE.fullmatch(str(part)))
        messages = by_key.setdefault(key, [])
        if (message := _message(detail, key, model)) not in messages:
            messages.append(message)
    return "; ".join(_joined(messages) for messages in by_key.values())


def similar(word: str, known: Mapping[str, str]) -> str:
    """Return the value of `known` whose key is most similar to `word`, as the end of a sentence, if any is similar."""
    plain = {re.sub(r"[^a-z0-9]", "", name.lower()): value for name, value in known.items()}
    found = difflib.get_close_matches(re.sub(r"[^a-z0-9]", "", word.lower()), plain, n=1, cutoff=0.75)
    return f"; did you mean {plain[found[0]]}?" if found else ""


def _message(detail: Any, key: str, model: type[BaseModel]) -> str:
    if detail["type"] == "extra_forbidden":
        *sections, last = (str(part) for part in detail["loc"])
        prefix = "".join(f"{section}." for section in sections)
        siblings = {name: prefix + name for name in _fields(model, sections)}
        elsewhere = {key.rpartition(".")[2]: key for key in reversed(_all_keys(model))}
        suggestion = similar(last, siblings) or similar(last, elsewhere)
        return f"{key}: unknown key{suggestion or '; pipeline/config.py lists all keys'}"
    if detail["type"] == "missing":
        return f"{key}: required, but not given; give --{key.replace('_', '-')} or set it in the file of --config"
    if detail["type"] == "string_pattern_mismatch" and key in EXPECTED_TEXT:
        return f"{key}: expected {EXPECTED_TEXT[key]} (found {detail['input']!r})"
    message = str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "should be")
    if not key or message.split(":")[0] == key:
        return message
    found = "" if detail["type"] == "value_error" else f" (found {detail['input']!r})"
    return f"{key}: {message}{found}"


def _joined(messages: Sequence[str]) -> str:
    """Join the messages of the members of a union: ``key: a (found x)`` and ``key: b (found x)`` to one."""
    if len(messages) == 1:
        return messages[0]
    first, *others = (message.partition(" (found ")[0] for message in messages)
    key = first.partition(": ")[0]
    alternatives = " or ".join([first, *(other.removeprefix(f"{key}: ") for other in others)])
    _, found, value = messages[0].partition(" (found ")
    return alternatives + found + value


def _fields(model: type[BaseModel], sections: Sequence[str]) -> list[str]:
    """Return the names of the fields of the section at the path `sections`; empty if it is not a section."""
    for section in sections:
        field = model.model_fields.get(section)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return all keys of `model` with those of its sections, dotted."""
    keys = []
    for name in model.model_fields:
        keys.append(prefix + name)
        if inner := _fields(model, [name]):
            annotation: Any = model.model_fields[name].annotation
            keys += _all_keys(annotation, f"{prefix}{name}.") if inner else []
    return keys
