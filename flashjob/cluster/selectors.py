# SPDX-License-Identifier: Apache-2.0
"""Label and field selectors in their query form: building them for the API server, and matching them in memory."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from .resources import Obj

_SET = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s+(?P<operator>in|notin)\s*\((?P<values>[^()]*)\)\s*$")
_EQUAL = re.compile(r"^\s*(?P<key>[^\s!=,()]+)\s*(?P<operator>==|!=|=)\s*(?P<value>[^\s!=,()]*)\s*$")
_EXISTS = re.compile(r"^\s*(?P<operator>!?)\s*(?P<key>[^\s!=,()]+)\s*$")


def labels_equal(labels: Mapping[str, str]) -> str:
    """The label selector that demands all of these labels."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def label_matcher(selector: str) -> Callable[[Obj], bool]:
    """A predicate on objects for a label selector; "" matches all.

    Raises:
        ValueError: the selector cannot be read.
    """
    tests = [_requirement(part) for part in _split(selector)]
    return lambda obj: all(test(obj.get("metadata", {}).get("labels") or {}) for test in tests)


def field_matcher(selector: str) -> Callable[[Obj], bool]:
    """A predicate on objects for a field selector (`path=value`, `path!=value`); "" matches all.

    Raises:
        ValueError: the selector cannot be read.
    """
    tests: list[tuple[list[str], str, bool]] = []
    for part in _split(selector):
        found = _EQUAL.match(part)
        if not found:
            raise ValueError(f"not a field selector: {part!r}")
        tests.append((found["key"].split("."), found["value"], found["operator"] != "!="))
    return lambda obj: all((_field(obj, path) == value) is wanted for path, value, wanted in tests)


def _field(obj: Obj, path: list[str]) -> str:
    value: Any = obj
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _split(selector: str) -> list[str]:
    """Split at commas that are not inside parentheses."""
    return [part for part in re.split(r",(?![^()]*\))", selector) if part.strip()]


def _requirement(text: str) -> Callable[[Mapping[str, str]], bool]:
    if found := _SET.match(text):
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["operator"] == "in":
            return lambda labels: labels.get(key) in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUAL.match(text):
        key, value = found["key"], found["value"]
        if found["operator"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _EXISTS.match(text):
        key, wanted = found["key"], not found["operator"]
        return lambda labels: (key in labels) is wanted
    raise ValueError(f"not a label selector: {text!r}")
