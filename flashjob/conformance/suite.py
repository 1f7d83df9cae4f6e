# SPDX-License-Identifier: Apache-2.0
"""All checks, and the runner.

Rules (tests name them):

1. A check whose needs are not met, and one that finds the device in no state to be asked, is not testable: never passed.
2. A device that falls silent in a check, or breaks its clients, has failed that check; the next ones are still made.
3. After each check the device is taken back to rest. What cannot be is said at the check that left it so.
4. The verdict is the worst outcome: one failed check is a failed device.
"""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Callable, Iterable
from typing import Final

from pydantic import ValidationError

from attestation.errors import Reject
from flashjob.conformance import channel, confirming, deltas, framing, hostile_grants, identity, installing, owner_keys
from flashjob.conformance.check import Broken, Check, Need, NotTestable, Outcome, Result
from flashjob.conformance.line import HttpLine, Silent
from flashjob.conformance.subject import Subject
from flashjob.errors import FlashJobError

ALL: Final[tuple[Check, ...]] = (
    *identity.CHECKS, *channel.CHECKS, *framing.CHECKS, *hostile_grants.CHECKS, *installing.CHECKS, *confirming.CHECKS,
    *deltas.CHECKS, *owner_keys.CHECKS,
)  # fmt: skip
_FAULTS: Final = (Broken, Silent, Reject, ValidationError, FlashJobError, OSError)


def chosen(patterns: Iterable[str]) -> tuple[Check, ...]:
    """The checks whose ids match one of the shell patterns; all where there are none."""
    wanted = tuple(patterns)
    return tuple(c for c in ALL if not wanted or any(fnmatch.fnmatchcase(c.id, one) for one in wanted))


def missing(subject: Subject, check: Check) -> list[Need]:
    """What the check needs and nobody gave (rule 1)."""
    materials, network = subject.materials, isinstance(subject.line, HttpLine)
    given = {
        Need.NETWORK: network,
        Need.SERIAL: not network,
        Need.TLS: isinstance(subject.line, HttpLine) and subject.line.tls,
        Need.GRANT_KEY: materials.grant_key is not None,
        Need.RELEASE_KEY: materials.release_key is not None,
        Need.GENERATION: materials.generation is not None,
        Need.IMAGE: materials.image is not None,
        Need.RESET: materials.reset is not None,
    }
    return [need for need in check.needs if not given[need]]


async def run(
    subject: Subject, checks: Iterable[Check] = ALL, seen: Callable[[Result], None] = lambda _result: None
) -> list[Result]:
    """Make the checks one after the other.

    Args:
        subject: the device.
        checks: which, in their order.
        seen: called with each result as it comes.
    """
    results = []
    for check in checks:
        started = time.monotonic()
        outcome, detail = await _one(subject, check)
        elsewhere = bool({Need.NETWORK, Need.SERIAL, Need.TLS} & set(missing(subject, check)))
        result = Result(check, outcome, detail, round(time.monotonic() - started, 3), elsewhere)
        results.append(result)
        seen(result)
    return results


async def _one(subject: Subject, check: Check) -> tuple[Outcome, str]:
    if lacking := missing(subject, check):
        return Outcome.NOT_TESTABLE, "needs " + "; ".join(need.value for need in lacking)
    outcome, detail = Outcome.PASS, ""
    try:
        await check.run(subject)
    except NotTestable as error:
        outcome, detail = Outcome.NOT_TESTABLE, str(error)
    except _FAULTS as error:
        outcome, detail = Outcome.FAIL, str(error)
    try:
        await subject.settle()
    except _FAULTS as error:
        outcome, detail = Outcome.FAIL, f"{detail}; afterwards: {error}".removeprefix("; ")
    return outcome, detail
