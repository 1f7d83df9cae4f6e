# SPDX-License-Identifier: Apache-2.0
"""A run's results for people, for scripts and for CI. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from rich.text import Text

from flashjob.conformance.check import Outcome, Result

_STYLES = {Outcome.PASS: "green", Outcome.FAIL: "bold red", Outcome.NOT_TESTABLE: "yellow"}


def counts(results: Sequence[Result]) -> dict[str, int]:
    """How many of each outcome."""
    found = Counter(result.outcome for result in results)
    return {outcome.value: found[outcome] for outcome in Outcome}


def conforms(results: Sequence[Result]) -> bool:
    """Something was tested, and nothing is broken."""
    found = counts(results)
    return found[Outcome.PASS] > 0 and found[Outcome.FAIL] == 0


def line(result: Result) -> Text:
    """Outcome, name, the protocol's sentence, and below it what was found instead."""
    text = Text(f"{result.outcome.value:<13}", style=_STYLES[result.outcome])
    text.append(f"{result.check.id:<27}", style="bold")
    text.append(result.check.sentence, style="default")
    if result.detail:
        text.append(f"\n{'':<40}{result.detail}", style=_STYLES[result.outcome])
    return text


def summary(results: Sequence[Result]) -> str:
    """Counts in words; what is about the other kind of line is counted apart."""
    here = [result for result in results if not result.elsewhere]
    words = ", ".join(f"{number} {name}" for name, number in counts(here).items())
    other = len(results) - len(here)
    return f"{words}; {other} are for another kind of line" if other else words


def to_json(device: str, results: Sequence[Result]) -> dict[str, Any]:
    """One object for scripts."""
    return {
        "device": device,
        "conforms": conforms(results),
        "counts": counts(results),
        "checks": [
            {
                "id": result.check.id,
                "sentence": result.check.sentence,
                "outcome": result.outcome.value,
                "detail": result.detail,
                "seconds": result.seconds,
            }
            for result in results
        ],
    }


def to_junit(device: str, results: Sequence[Result]) -> bytes:
    """A JUnit XML file; what was not testable is skipped."""
    found = counts(results)
    suite = ElementTree.Element(
        "testsuite",
        name=f"device protocol, {device}",
        tests=str(len(results)),
        failures=str(found[Outcome.FAIL]),
        skipped=str(found[Outcome.NOT_TESTABLE]),
        time=f"{sum(result.seconds for result in results):.3f}",
    )
    for result in results:
        case = ElementTree.SubElement(
            suite, "testcase", classname="device-protocol", name=result.check.id, time=f"{result.seconds:.3f}"
        )
        if result.outcome is not Outcome.PASS:
            kind = "failure" if result.outcome is Outcome.FAIL else "skipped"
            ElementTree.SubElement(case, kind, message=_printable(result.detail)).text = result.check.sentence
    data: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return data


def _printable(text: str) -> str:
    """XML knows no control characters, not even escaped."""
    return "".join(char if char.isprintable() else "?" for char in text)
