# SPDX-License-Identifier: Apache-2.0
"""What one check of the suite is, and what may come of it.

Rules:

1. A check is one sentence of the protocol. It passes, is broken, or could not be tested, and then says what was missing.
2. A check stands alone: it makes the state that it needs, and the runner takes the device back to rest after it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flashjob.conformance.subject import Subject


class Need(Enum):
    """What a check cannot be made without; the value tells a person how to give it."""

    NETWORK = "a device on the network"
    SERIAL = "a device on a serial line"
    TLS = "a device that speaks TLS: its address as https://HOST:PORT"
    GRANT_KEY = "--grant-key: the private half of a grant key that the device holds"
    RELEASE_KEY = "--release-key: the private half of a release key that the device holds"
    GENERATION = "--generation: of test successions, above what the device holds"
    IMAGE = "--image: an application that this device may boot"
    RESET = "--reset-command: a command that presses the device's reset button"


class Outcome(StrEnum):
    """What came of a check."""

    PASS = "pass"
    FAIL = "fail"
    NOT_TESTABLE = "not testable"


class Broken(Exception):
    """The device does not do what the sentence says; the message says what it did instead."""


class NotTestable(Exception):
    """This device is in no state to be asked; the message says why."""


Body = Callable[["Subject"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Check:
    """One sentence of the protocol, and how to find out."""

    id: str
    sentence: str
    needs: tuple[Need, ...]
    run: Body


def check(name: str, *needs: Need) -> Callable[[Body], Check]:
    """Make a check of a function; its docstring is the sentence."""

    def make(body: Body) -> Check:
        return Check(name, " ".join((body.__doc__ or "").split()), needs, body)

    return make


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check."""

    check: Check
    outcome: Outcome
    detail: str = ""
    seconds: float = 0.0
    elsewhere: bool = False
    """It is about the other kind of line, and so nothing that could be tested here."""
